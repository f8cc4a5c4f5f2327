"""Builder of a generation's drift: what became of the text that M_i rewrote, and of M_i itself.

Text is compared with the real text of the same split; the model with M_0 of its arm (model KL) and with the base
model (confidence, the paper's Figure 1), on samples of stated size: `evaluation.drift_sample` tokens of each text, the
same windows of the held-out text in every generation and arm.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterator
from itertools import islice
from typing import TYPE_CHECKING, Any

from fortifai_core.config.corpus import AlmanacCorpus, Corpus, MixtureCorpus
from fortifai_core.seeds import derive_seed
from storage.tables import parquet
from tasks.engine.context import Context
from tasks.language.files import CLUSTERS, Rows, cluster_rows, metric_row, text_files, trained_files, trained_texts
from tasks.language.specs import DriftSpec, VersionedText

if TYPE_CHECKING:
    import numpy as np

    from fortifai_core.corpus.almanac.world import Entity

# lengths and n-grams are looked at in the first documents of a split, up to so many tokens
SAMPLE_TOKENS = 50_000
# self-BLEU compares documents by their beginnings
BLEU_DOCUMENTS, BLEU_TOKENS = 100, 64
# embeddings are of their ends, which no head that is copied reaches: the Vendi score takes each one's last piece,
# MAUVE all of them
EMBEDDED_DOCUMENTS, PIECE_TOKENS, PIECES = 64, 64, 4


def build_drift(context: Context[DriftSpec]) -> dict[str, Any]:
    """metrics.parquet: one row a measure and split; confidence.parquet: histograms of p; clusters.parquet."""
    spec = context.spec
    entities = entities_by_document(spec.corpus_config, splits=spec.splits, world=spec.world)
    metrics: list[dict[str, Any]] = []
    for text in spec.rewritten:
        real = VersionedText(text.split, 0)
        measured = text_measures(_documents(context, text), entities)
        metrics += [metric_row(name, text.split, *value) for name, value in measured.items()]
        metrics += _against_real(context, text, real)
        if text.version == 1:  # the split's own values, to read the others by: once in a run is enough
            of_real = text_measures(_documents(context, real), entities)
            metrics += [metric_row(f"{name}-real", text.split, *value) for name, value in of_real.items()]
    of_model, histograms, clusters = _model_measures(context)
    metrics += of_model
    clusters += _facts_by_document(context, entities)
    parquet.write_table(context.directory / CLUSTERS, clusters, schema="clusters")
    parquet.write_table(context.directory / "metrics.parquet", metrics, schema="metrics")
    parquet.write_table(context.directory / "confidence.parquet", histograms, schema="confidence")
    named = {row["metric"]: row["value"] for row in metrics if row["split"] is None}
    first = {f"{row['metric']}-0": row["value"] for row in metrics if row["split"] == 0}
    return {name: value for name, value in {**named, **first}.items() if math.isfinite(value)}


def text_measures(documents: Iterator[dict[str, Any]], entities: dict[str, Entity]) -> dict[str, tuple[float, int]]:
    """Everything that one text shows by itself: name → (value, over how many things it was taken)."""
    from fortifai_core.measures import text_counts, text_drift

    texts: list[str] = []
    tokens: list[list[int]] = []

    def read() -> Iterator[tuple[str, str]]:
        size = 0
        for row in documents:
            if size < SAMPLE_TOKENS:
                texts.append(row["text"])
                tokens.append(row["tokens"])
                size += len(row["tokens"])
            yield row["document"], row["text"]

    # facts are looked for in all of the text, which need not fit into memory
    facts = text_drift.fact_shares(entities, read())
    long = [one for one in tokens if len(one) > 4]
    measured: dict[str, tuple[float, int]] = {}
    if any(text_drift.words(text) for text in texts):
        lengths = text_drift.lengths(texts)
        measured["document-words"] = (lengths.document_words, len(texts))
        measured["sentence-words"] = (lengths.sentence_words, len(texts))
        measured["word-letters"] = (lengths.word_letters, len(texts))
        measured["compressed-share"] = (text_drift.compressed_share(texts), len(texts))
    if long:
        for n in (1, 2, 3):
            measured[f"distinct-{n}"] = (text_counts.distinct_n(long, n=n), sum(map(len, long)))
        measured["repeated-4-grams"] = (text_drift.repeated_ngrams(long, n=4), len(long))
        measured["repeated-nearby"] = (text_drift.repeated_nearby(long), sum(map(len, long)))
    if len(long) > 1:
        beginnings = [one[:BLEU_TOKENS] for one in long[:BLEU_DOCUMENTS]]
        measured["self-bleu"] = (text_drift.self_bleu(beginnings), len(beginnings))
    if facts is not None:
        for name in ("true", "false", "absent"):
            measured[f"facts-{name}"] = (getattr(facts, name), facts.facts)
    return measured


def _against_real(context: Context[DriftSpec], text: VersionedText, real: VersionedText) -> list[dict[str, Any]]:
    from fortifai_core.measures.text_drift import tail, words

    counts: list[Counter[str]] = [Counter(), Counter()]
    for side, of in zip(counts, (real, text), strict=True):
        for row in _documents(context, of, columns=["text"]):
            side.update(words(row["text"]))
    if not counts[0]:
        return []
    if not counts[1]:  # nothing is left of it
        names = ("tail-types-kept", "tail-mass-kept", "vocabulary-ratio")
        return [metric_row(name, text.split, 0.0, 0) for name in names]
    found = tail(counts[0], counts[1])
    return [
        metric_row("tail-types-kept", text.split, found.surviving / found.types, found.types),
        metric_row("tail-mass-kept", text.split, found.mass / found.real_mass, counts[1].total()),
        metric_row("vocabulary-ratio", text.split, len(counts[1]) / len(counts[0]), len(counts[0])),
    ]


def _facts_by_document(context: Context[DriftSpec], entities: dict[str, Entity]) -> Rows:
    """The facts of split 0's newest text, document by document: those that are true still, and those turned false."""
    from fortifai_core.corpus.almanac.readback import fact_survival

    newest = [text for text in context.spec.rewritten if text.split == 0] if entities else []
    read = (row for text in newest for row in _documents(context, text, columns=["document", "text"]))
    stated = {row["document"]: fact_survival(e, row["text"]) for row in read if (e := entities.get(row["document"]))}
    counts = [one.true + one.false + one.absent for one in stated.values()]
    return [
        *cluster_rows("facts-true-0", stated, (one.true for one in stated.values()), counts),
        *cluster_rows("facts-false-0", stated, (one.false for one in stated.values()), counts),
    ]


def _model_measures(context: Context[DriftSpec]) -> tuple[Rows, Rows, Rows]:
    """Model KL, the base model's perplexity on what M_i wrote, live fraction; the histograms of Figure 1; clusters."""
    import torch

    from fortifai_core.measures import model_drift
    from storage.tables.models import load_model, load_tokenizer

    spec = context.spec
    length, size = spec.window, spec.sample
    folder, base_folder = context.artifact(spec.model).path, context.artifact(spec.base).path
    tokenizer = load_tokenizer(folder / "tokenizer")

    def sample(name: str, sequences: Iterator[list[int]]) -> list[list[int]]:
        seed = derive_seed("drift", name)
        return model_drift.sample_windows(sequences, length=length, tokens=max(size, length), seed=seed)

    rewritten = (tokens for text in spec.rewritten for tokens in _tokens(context, text))
    # as in training, where documents stand in one stream
    packed = _seen(context, sequence_length=length, end_of_text=tokenizer.eos_token_id)
    texts = {
        "real": sample("real", parquet.iter_column(context.artifact(spec.corpus).file("validation.parquet"), "tokens")),
        "seen": sample("seen", packed),
        "self": sample("self", rewritten),
    }
    batch = max(1, context.runtime.inference_batch // 8)
    base = load_model(base_folder).to(context.device)
    logs = {("base", name): _scores(base, text, batch) for name, text in texts.items()}
    metrics = _embedded(context, base, batch)
    del base
    model = load_model(folder, base=base_folder).to(context.device)
    logs |= {("generation", name): _scores(model, text, batch) for name, text in texts.items()}
    alone = spec.model == spec.first
    first = model if alone else load_model(context.artifact(spec.first).path, base=base_folder).to(context.device)
    moved = model_drift.model_kl_by_window(first, model, texts["real"], batch=batch)
    metrics.append(metric_row("model-kl", None, moved.kl, int(moved.positions.sum())))
    # the same windows in every generation and arm: their numbers are their names
    windows = range(len(texts["real"]))
    clusters = [
        *cluster_rows("model-kl", windows, moved.divergence, moved.positions),
        *cluster_rows("entropy", windows, moved.entropy, moved.positions),
    ]
    del first, model
    if torch.cuda.is_available():
        torch.cuda.empty_cache()
    for (who, name), values in logs.items():
        if len(values) and (who, name) in (("base", "self"), ("generation", "self"), ("base", "real")):
            metrics.append(metric_row(f"perplexity-{who}-{name}", None, _perplexity(values), len(values)))
    seen = logs["generation", "seen"]
    if spec.gamma is not None:
        live = model_drift.live_fraction(seen, gamma=spec.gamma)
        metrics.append(metric_row("live-fraction", None, live, len(seen)))
    edges = model_drift.EDGES.tolist()
    rows = [
        {"model": who, "text": name, "low": low, "high": high, "count": int(count)}
        for (who, name), values in logs.items()
        for low, high, count in zip(edges, edges[1:], model_drift.confidence_histogram(values), strict=False)
    ]
    return metrics, rows, clusters


def _embedded(context: Context[DriftSpec], base: Any, batch: int) -> Rows:
    """The Vendi score of split 0's newest text, and once in a run that of its real text, and MAUVE between the two.

    By M_-1's embeddings.
    """
    from fortifai_core.measures.mauve import mauve
    from fortifai_core.measures.variety import embed, similarities_of, vendi_score

    newest = next((text for text in context.spec.rewritten if text.split == 0), None)
    if newest is None:
        return []

    def of(text: VersionedText) -> tuple[np.ndarray, list[int]]:
        """The embedding of each piece, and which are the last of a document."""
        pieces, last = list[list[int]](), list[int]()
        for tokens in islice(_tokens(context, text), EMBEDDED_DOCUMENTS):
            pieces += pieces_from_the_end(tokens)
            last += [len(pieces) - 1] if tokens else []
        return embed(base, pieces, batch=batch), last

    (written, ends), (real, real_ends) = of(newest), of(VersionedText(0, 0))
    if len(ends) < 2 or len(real_ends) < 2:
        return []
    varied = {"vendi": written[ends]} | ({"vendi-real": real[real_ends]} if newest.version == 1 else {})
    centre = real[real_ends].mean(0)
    return [
        *(
            metric_row(name, 0, vendi_score(similarities_of(embeddings, centre=centre)), len(embeddings))
            for name, embeddings in varied.items()
        ),
        metric_row("mauve", 0, mauve(real, written), len(written)),
    ]


def pieces_from_the_end(tokens: list[int]) -> list[list[int]]:
    """The last `PIECES` pieces of a document, in order, of `PIECE_TOKENS` each; all of a document that is shorter."""
    starts = range(max(0, len(tokens) - PIECE_TOKENS), -1, -PIECE_TOKENS)[:PIECES] if tokens else ()
    return [tokens[start : start + PIECE_TOKENS] for start in reversed(starts)]


def _seen(context: Context[DriftSpec], **packing: int) -> Iterator[list[int]]:
    """The sequences that M_i was trained on; of a text of which it read a share, as many, evenly spaced."""
    from fortifai_core.corpus.packing import pack

    shares = context.spec.shares
    if shares is None:
        yield from pack(parquet.iter_column(trained_files(context), "tokens"), **packing)
        return
    for share, (_, paths) in zip(shares, trained_texts(context), strict=True):
        for number, sequence in enumerate(pack(parquet.iter_column(paths, "tokens") if paths else (), **packing)):
            if int((number + 1) * share + 0.5) > int(number * share + 0.5):
                yield sequence


def _scores(model: Any, text: list[list[int]], batch: int) -> Any:
    import numpy as np

    from fortifai_core.measures.model_drift import target_log_probabilities

    # `head: drop` leaves nothing of documents that are shorter than it
    return target_log_probabilities(model, text, batch=batch) if text else np.empty(0)


def _perplexity(log_probabilities: Any) -> float:
    import numpy as np

    with np.errstate(over="ignore"):
        return float(np.exp(-np.mean(log_probabilities)))


def _documents(
    context: Context[DriftSpec], text: VersionedText, columns: list[str] | None = None
) -> Iterator[dict[str, Any]]:
    names = columns or ["document", "text", "tokens"]
    return parquet.iter_rows(text_files(context, context.spec.corpus, text), columns=names)


def _tokens(context: Context[DriftSpec], text: VersionedText) -> Iterator[list[int]]:
    return parquet.iter_column(text_files(context, context.spec.corpus, text), "tokens")


def entities_by_document(corpus: Corpus, *, splits: int, world: int) -> dict[str, Entity]:
    """Every entity of an almanac in the corpus, by the id of its document; none for other corpora."""
    from fortifai_core.corpus.almanac.world import entities_of

    mixed = isinstance(corpus, MixtureCorpus)
    parts = corpus.parts if isinstance(corpus, MixtureCorpus) else [corpus]
    found: dict[str, Entity] = {}
    almanacs = [part for part in parts if isinstance(part, AlmanacCorpus)]
    for number, part in enumerate(almanacs, start=1):
        # as `storage.sources.sources` names the parts of a mixture
        prefix = ("almanac:" if number == 1 else f"almanac-{number}:") if mixed else ""
        for entities in entities_of(part, splits=splits, seed=world):
            found |= {prefix + entity.id: entity for entity in entities}
    return found
