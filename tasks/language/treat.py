"""Builder of a generation's treated text: the documents that M_i is trained on, and what became of each."""

from __future__ import annotations

from collections.abc import Iterator
from functools import cached_property
from typing import Any

from fortifai_core.config.treatment import Detector, Treatment, Verifier
from fortifai_core.seeds import derive_seed
from fortifai_core.treatments.detection import Judge
from fortifai_core.treatments.documents import Document, Documents, Lineage, apply
from fortifai_core.treatments.registry import Material, treatment_of
from storage.store.digests import is_sealed, seal
from storage.tables import parquet
from tasks.engine.context import Context
from tasks.language.files import base_folder, metric_row, never_drawn, text_files, treated_file, treated_files
from tasks.language.specs import TreatSpec, VersionedText


def build_treatment(context: Context[TreatSpec]) -> dict[str, Any]:
    """text-*.parquet: what there is of each text now; treatments.parquet: what became of every document.

    Metrics: documents and tokens before and after; shares of documents kept and of tokens changed; what the treatment
    has to say of itself.
    """
    whole = context.workspace / "treating.parquet"
    told_by = context.workspace / "told.parquet"
    if not (is_sealed(whole) and is_sealed(told_by)):  # one that was stopped after it goes on from there
        context.workspace.mkdir(parents=True, exist_ok=True)
        told: dict[str, float] = {}
        parquet.write_table(whole, _rows(context, told), schema="treating")
        seal(whole)
        rows = [metric_row(name, None, value, 1) for name, value in {"treated": 1.0, **told}.items()]
        parquet.write_table(told_by, rows, schema="metrics")
        seal(told_by)
    for place, text in enumerate(context.spec.text):
        rows_of_text = _made(whole, text)
        first = next(rows_of_text, None)
        if first is not None:
            file = context.directory / treated_file(place)
            parquet.write_table(file, _after(first, rows_of_text), schema="treated-text")
    parquet.write_table(context.directory / "treatments.parquet", _fates(whole), schema="treatments")
    measured = _measures(whole)
    own = {row["metric"]: row["value"] for row in parquet.read_rows(told_by) if row["metric"] != "treated"}
    documents = int(measured["documents"])
    rows = [metric_row(name, None, value, documents) for name, value in {**measured, **own}.items()]
    parquet.write_table(context.directory / "metrics.parquet", rows, schema="metrics")
    counts = ("documents", "documents-left", "tokens", "tokens-left")
    return {**{n: int(v) if n in counts else v for n, v in measured.items()}, **own}


class _Tokens:
    """A tokenizer as treatments know it."""

    def __init__(self, tokenizer: Any) -> None:
        self.tokenizer = tokenizer

    def encode(self, text: str) -> list[int]:
        from fortifai_core.corpus.tokenization import encode_documents

        return encode_documents(self.tokenizer, [text])[0]

    def decode(self, tokens: list[int]) -> str:
        return str(self.tokenizer.decode(tokens, clean_up_tokenization_spaces=False))


class _Work:
    """What one treatment works on, and with."""

    def __init__(self, context: Context[TreatSpec]) -> None:
        from storage.tables.models import load_tokenizer

        self.context, self.spec = context, context.spec
        self.tokenizer = load_tokenizer(context.artifact(self.spec.tokenizer).path)

    @cached_property
    def documents(self) -> Documents:
        """The text as it came, or as the treatment before left it."""
        if self.spec.treated is None:
            return Documents(lambda: self._read(self.spec.text))
        return Documents(self._treated)

    def _read(self, texts: tuple[VersionedText, ...]) -> Iterator[Document]:
        for text in texts:
            files = text_files(self.context, self.spec.corpus, text)
            for row in parquet.iter_rows(files, columns=["document", "text", "tokens"]):
                yield Document(row["document"], text.split, text.version, row["text"], row["tokens"])

    def _treated(self) -> Iterator[Document]:
        assert self.spec.treated is not None
        columns = ["document", "copy", "text", "tokens", "weight"]
        for place, text in enumerate(self.spec.text):
            for row in parquet.iter_rows(treated_files(self.context, self.spec.treated, place), columns=columns):
                rest = {"copy": row["copy"], "weight": row["weight"]}
                yield Document(row["document"], text.split, text.version, row["text"], row["tokens"], **rest)

    @property
    def labelled(self) -> Documents:
        """The generation's text, and the real text of every split that it has a rewritten version of."""
        texts = {(text.split, text.version): text for text in self.spec.text}
        texts |= {(text.split, 0): VersionedText(text.split, 0) for text in self.spec.text}
        return Documents(lambda: self._read(tuple(texts[place] for place in sorted(texts))))

    def material(self, treatment: Treatment, told: dict[str, float]) -> Material:
        """What the treatment needs."""
        from tasks.language.drift import entities_by_document

        spec, rest = self.spec, dict[str, Any]()
        if treatment.reads is not None:
            rest |= self._reading()
        if isinstance(treatment, Detector):
            rest |= {"labelled": self.labelled, "judge": self._judge(treatment)}
        if isinstance(treatment, Verifier):
            rest["entities"] = entities_by_document(spec.corpus_config, splits=spec.splits, world=spec.world)
        shares = zip(spec.text, spec.shares or (), strict=False)
        return Material(
            seed=derive_seed("treat", spec.seed, spec.generation, *([spec.earlier] if spec.earlier else [])),
            called=spec.called,
            shares={(text.split, text.version): share for text, share in shares},
            told=told,
            **rest,
        )

    def _reading(self) -> dict[str, Any]:
        from fortifai_core.treatments.reading import Reader
        from storage.tables.models import load_model

        context, spec = self.context, self.spec
        assert spec.model is not None
        model = load_model(context.artifact(spec.model).path, base=base_folder(context, spec.base)).to(context.device)
        batch = max(1, context.runtime.inference_batch // 8)
        reader = Reader(model, first=self.tokenizer.eos_token_id, window=spec.window, batch=batch)
        return {"reader": reader, "suppress": never_drawn(self.tokenizer, model)}

    def _judge(self, detector: Detector) -> Judge | None:
        from fortifai_core.treatments.detection import classifier_judge
        from storage.sources.classifiers import load_classifier

        if detector.classifier is None:
            return None
        model, tokenizer = load_classifier(detector.classifier)
        longest = min(tokenizer.model_max_length, 512)
        batch = max(1, self.context.runtime.inference_batch // 8)
        model = model.to(self.context.device)
        return classifier_judge(
            model, tokenizer, synthetic_label=detector.synthetic_label, longest=longest, batch=batch
        )


def _rows(context: Context[TreatSpec], told: dict[str, float]) -> Iterator[dict[str, Any]]:
    """One row a copy of every document, or for a document that was dropped."""
    work, treatment = _Work(context), context.spec.treatment
    total = sum(1 for _ in work.documents)
    treat = treatment_of(treatment, work.material(treatment, told))
    tokenizer = _Tokens(work.tokenizer)
    lineages = apply(treat, work.documents, tokenizer, of=treatment.of, called=context.spec.called)
    for done, lineage in enumerate(lineages, start=1):
        yield from _row(lineage)
        context.progress(done, total, "documents")


def _row(lineage: Lineage) -> Iterator[dict[str, Any]]:
    given = lineage.given
    for made, copy in enumerate(lineage.made or (None,)):
        yield {
            "document": given.id,
            "split": given.split,
            "version": given.version,
            "copy": given.copy,
            "fate": lineage.fate,
            "copies": len(lineage.made),
            "size": len(given.tokens),
            "changed": lineage.changed,
            "weight": None if copy is None else copy.weight,
            "score": lineage.score,
            "why": lineage.why,
            "made": made,
            "text": "" if copy is None else copy.text,
            "tokens": [] if copy is None else copy.tokens,
        }


def _made(whole: Any, text: VersionedText) -> Iterator[dict[str, Any]]:
    """What is left of one text, as rows of treated text."""
    copies: dict[str, int] = {}
    position = 0
    for row in parquet.iter_rows(whole):
        if (row["split"], row["version"]) == (text.split, text.version) and row["copies"]:
            copy = copies[row["document"]] = copies.get(row["document"], -1) + 1
            kept = {name: row[name] for name in ("document", "text", "tokens", "weight")}
            yield {**kept, "copy": copy, "position": position}
            position += 1


def _after(first: dict[str, Any], rest: Iterator[dict[str, Any]]) -> Iterator[dict[str, Any]]:
    yield first
    yield from rest


def _fates(whole: Any) -> Iterator[dict[str, Any]]:
    """What became of every document, once."""
    for row in parquet.iter_rows(whole):
        if row["made"] == 0:
            told = {name: row[name] for name in parquet.TREATMENTS if name != "tokens"}
            yield {**told, "tokens": row["size"]}


def _measures(whole: Any) -> dict[str, float]:
    documents = kept = left = tokens = tokens_left = changed = 0
    weights = set[float]()
    for row in parquet.iter_rows(whole):
        if row["made"] == 0:
            documents += 1
            kept += row["copies"] > 0
            tokens += row["size"]
            changed += row["changed"]
        if row["copies"]:
            left += 1
            tokens_left += len(row["tokens"])
            weights.add(row["weight"])
    return {
        "documents": documents,
        "documents-left": left,
        "tokens": tokens,
        "tokens-left": tokens_left,
        "documents-kept": kept / documents,
        "tokens-changed": changed / max(1, tokens_left),
        "heaviest-weight": max(weights),
        "lightest-weight": min(weights),
    }
