"""Builder of D_k^(j+1): split k rewritten by M_i, part-file by part-file, so that a crash loses one at most."""

from __future__ import annotations

import shutil
import time
from collections.abc import Iterator
from typing import Any

from fortifai_core.language.rewriting.blocks import Rewriting, Statistics, TokenisedDocument, plan_blocks
from storage.store.digests import seal
from storage.tables import parquet
from tasks.engine.context import Context
from tasks.language.files import base_folder, never_drawn, split_file, text_files
from tasks.language.specs import RegenerateSpec

# Positions of keys and values that a row of `runtime.inference_batch` stands for: with the default of 256 rows, the
# aligned engine has 32,768 of them in memory.
POSITIONS = 128


class _Progress:
    """How far a split is, in tokens; in words also how many were rewritten a second, and the share that was accepted.

    Speed and acceptance are those of the part-files that are made this time.
    """

    def __init__(self, context: Context[RegenerateSpec], *, total: int) -> None:
        self.context, self.total = context, total
        self.statistics = Statistics()
        self.rewritten, self.seconds = 0, 0.0  # of part-files that are finished
        self.before = self.tokens = self.due = 0
        self.started = 0.0

    def begin(self, *, before: int, tokens: int, due: int) -> None:
        """A part-file is begun, of so many tokens, of which `due` are rewritten, after `before` other tokens."""
        self.before, self.tokens, self.due = before, tokens, due
        self.started = time.monotonic()
        self.context.progress(before, self.total, self._words(self.rewritten, self.seconds))

    def __call__(self, done: int, of: int) -> None:
        """`done` of the part-file's blocks are rewritten."""
        share = done / max(1, of)
        rewritten = self.rewritten + round(share * self.due)
        words = self._words(rewritten, self.seconds + time.monotonic() - self.started)
        self.context.progress(self.before + int(share * self.tokens), self.total, words)

    def end(self) -> None:
        """The part-file's tokens are there."""
        self.seconds += time.monotonic() - self.started
        self.rewritten += self.due

    def _words(self, rewritten: int, seconds: float) -> str:
        words = "tokens"
        if rewritten:
            words += f", {rewritten / max(1e-9, seconds):,.0f} a second"
        if self.statistics.rewritten:
            words += f", acceptance {self.statistics.accepted / self.statistics.rewritten:.0%}"
        return words


def _groups(rows: Iterator[dict[str, Any]], *, tokens: int) -> Iterator[list[dict[str, Any]]]:
    """Whole documents, in order, in groups of about `tokens` tokens: what one part-file holds."""
    group: list[dict[str, Any]] = []
    size = 0
    for row in rows:
        group.append(row)
        size += len(row["tokens"])
        if size >= tokens:
            yield group
            group, size = [], 0
    if group:
        yield group


def build_split(context: Context[RegenerateSpec]) -> dict[str, Any]:
    """Rewrite one split. Finished part-files of an earlier attempt are kept as they are.

    Metrics: tokens that differ from the version before; with the aligned engine the acceptance, which is the share
    of the rewritten tokens that were taken over from their draft; tokens per second, of the parts made this time.
    """
    import torch

    from fortifai_core.language.rewriting.regenerate import regenerate
    from fortifai_core.measures.text_counts import UnigramCounts
    from storage.tables.models import load_model, load_tokenizer

    spec, config = context.spec, context.spec.regeneration
    split, version = spec.text.split, spec.text.version
    artifact = context.artifact(spec.model)
    tokenizer = load_tokenizer(artifact.path / "tokenizer")
    model = load_model(artifact.path, base=base_folder(context, spec.base), dtype=config.dtype).to(context.device)
    paths = text_files(context, spec.corpus, spec.text)
    rewriting = Rewriting(
        config,
        seed_parts=("regenerate", spec.seed, spec.generation, split, version),
        suppress=never_drawn(tokenizer, model),
        pad_id=tokenizer.pad_token_id,
        batch_blocks=context.runtime.inference_batch,
        budget=context.runtime.inference_batch * POSITIONS,
    )
    # part-files are cut by a fixed number of tokens, never by what a machine can hold: they are the resumable
    # unit, and with contexts that run across documents everything is one part
    limit = context.runtime.shard_blocks * config.block_tokens
    groups = _groups(
        parquet.iter_rows(paths, columns=["document", "position", "tokens"]),
        tokens=limit if not config.across_documents else 2**62,
    )
    total = sum(map(len, parquet.iter_column(paths, "tokens")))
    parts = context.workspace / "parts"
    parts.mkdir(parents=True, exist_ok=True)
    # parts of an attempt by older code lack columns
    finished = parquet.finished_parts(parts, layout={"tokens": limit, "columns": sorted(parquet.SPLIT_TEXT)})
    seen = changed = asked = accepted = 0
    progress = _Progress(context, total=total)
    synthetic, real = UnigramCounts(len(tokenizer)), UnigramCounts(len(tokenizer))
    for number, group in enumerate(groups):
        path = parts / parquet.part_name(number)
        documents = [TokenisedDocument(row["document"], row["position"], row["tokens"]) for row in group]
        due = sum(block.length for block in plan_blocks(documents, config))
        if number not in finished:
            progress.begin(before=seen, tokens=sum(len(row["tokens"]) for row in group), due=due)
            rewritten = regenerate(model, documents, rewriting, on_progress=progress, statistics=progress.statistics)
            progress.end()
            texts = tokenizer.batch_decode([d.tokens for d in rewritten], clean_up_tokenization_spaces=False)
            rows = [
                {
                    "document": d.id,
                    "position": d.position,
                    "text": text,
                    "tokens": d.tokens,
                    "kept": d.kept,
                    "same": d.same,
                    "accepted": d.accepted,
                }
                for d, text in zip(rewritten, texts, strict=True)
            ]
            parquet.write_table(path, rows, schema="split-text")
            seal(path)
        seen += sum(len(row["tokens"]) for row in group)
        asked += due
        for row in parquet.iter_rows([path], columns=["tokens", "kept", "accepted"]):
            synthetic.add(row["tokens"])
            changed += len(row["tokens"]) - row["kept"]
            accepted += row["accepted"] or 0
    for path in sorted(parts.glob("part-*.parquet")):
        shutil.copyfile(path, context.directory / path.name)
    for row in parquet.iter_rows([context.artifact(spec.corpus).file(split_file(split))], columns=["tokens"]):
        real.add(row["tokens"])
    del model
    if torch.cuda.is_available():
        torch.cuda.empty_cache()
    divergence = synthetic.kl_from(real)
    measured = [{"metric": "unigram-kl", "split": split, "value": divergence, "count": synthetic.total}]
    metrics = {"tokens-synthetic": synthetic.total, "tokens-changed": changed, "unigram-kl": divergence}
    if config.engine_used == "aligned" and asked:
        metrics["acceptance"] = accepted / asked
        measured.append({"metric": "acceptance", "split": split, "value": accepted / asked, "count": asked})
    if progress.rewritten:
        metrics["tokens-per-second"] = progress.rewritten / progress.seconds
    parquet.write_table(context.directory / "metrics.parquet", measured, schema="metrics")
    return metrics
