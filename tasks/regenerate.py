"""Builder of D_k^(j+1): split k rewritten by M_i, part-file by part-file, so that a crash loses one at most."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from fortifai_core.config import Regeneration
from storage import shards
from tasks.prepare import split_file
from tasks.train import base_folder

if TYPE_CHECKING:
    from tasks.build import Context


def _rows(paths: list[Path], columns: list[str] | None = None) -> Iterator[dict[str, Any]]:
    for batch in shards.iter_batches(paths, columns=columns):
        names = list(batch)
        for values in zip(*batch.values(), strict=True):
            yield dict(zip(names, values, strict=True))


def _report(context: Context, before: int, of_group: int, total: int, done: int, of: int) -> None:
    context.progress(before + of_group * done // max(1, of), total, "tokens")


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


def build_split(context: Context) -> dict[str, Any]:
    """Rewrite one split. Finished part-files of an earlier attempt are kept as they are."""
    import torch

    from fortifai_core.drift import UnigramCounts
    from fortifai_core.regeneration import TokenisedDocument, regenerate
    from storage.models import load_model, load_tokenizer

    content = context.stage.content
    config = Regeneration.model_validate(content["regeneration"])
    split, version = content["text"]
    artifact = context.parent("model")
    tokenizer = load_tokenizer(artifact.path / "tokenizer")
    model = load_model(artifact.path, base=base_folder(context)).to(context.device)
    if "text" in context.stage.parents:
        paths = context.parent("text").files("part-*.parquet")
    else:
        paths = [context.parent("corpus").file(split_file(split))]
    # never generated: special tokens, and the entries by which some models' vocabularies are padded
    entries = range(len(tokenizer), model.config.get_text_config().vocab_size)
    unwanted = sorted({*tokenizer.all_special_ids, *entries})
    # part-files are cut by a fixed number of tokens, never by what a machine can hold: they are the resumable
    # unit, and with contexts that run across documents everything is one part
    limit = context.runtime.shard_blocks * config.block_tokens
    groups = _groups(_rows(paths), tokens=limit if not config.across_documents else 2**62)
    total = sum(len(row["tokens"]) for row in _rows(paths, columns=["tokens"]))
    parts = context.workspace / "parts"
    parts.mkdir(parents=True, exist_ok=True)
    finished = shards.finished_parts(parts, layout={"tokens": limit})
    seen = changed = 0
    synthetic, real = UnigramCounts(len(tokenizer)), UnigramCounts(len(tokenizer))
    for number, group in enumerate(groups):
        path = parts / shards.part_name(number)
        offset = seen
        if number not in finished:
            rewritten = regenerate(
                model,
                [TokenisedDocument(row["document"], row["position"], row["tokens"]) for row in group],
                config,
                seed_parts=("regenerate", content["seed"], content["generation"], split, version),
                batch_blocks=context.runtime.inference_batch,
                suppress=unwanted,
                pad_id=tokenizer.pad_token_id,
                on_progress=partial(_report, context, offset, sum(len(r["tokens"]) for r in group), total),
            )
            texts = tokenizer.batch_decode([d.tokens for d in rewritten], clean_up_tokenization_spaces=False)
            rows = [
                {"document": d.id, "position": d.position, "text": text, "tokens": d.tokens, "kept": d.kept}
                for d, text in zip(rewritten, texts, strict=True)
            ]
            shards.write_table(path, rows, schema="split-text")
        seen += sum(len(row["tokens"]) for row in group)
        for row in _rows([path], columns=["tokens", "kept"]):
            synthetic.add(row["tokens"])
            changed += len(row["tokens"]) - row["kept"]
    for path in sorted(parts.glob("part-*.parquet")):
        shutil.copyfile(path, context.directory / path.name)
    for row in _rows([context.parent("corpus").file(split_file(split))], columns=["tokens"]):
        real.add(row["tokens"])
    del model
    if torch.cuda.is_available():
        torch.cuda.empty_cache()
    divergence = synthetic.kl_from(real)
    row = {"metric": "unigram-kl", "split": split, "value": divergence, "count": synthetic.total}
    shards.write_table(context.directory / "metrics.parquet", [row], schema="metrics")
    return {"tokens-synthetic": synthetic.total, "tokens-changed": changed, "unigram-kl": divergence}
