"""bfloat16 in rewriting and scoring: in the key only where asked for, and near to float32 in every result."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from transformers import Gemma2Config, Gemma2ForCausalLM, LlamaConfig, LlamaForCausalLM

from flows.load import load_experiment_config
from fortifai_core.config.stages import Regeneration, Runtime
from fortifai_core.corpus.tokenization import train_tokenizer
from fortifai_core.language.scoring import log_probabilities
from fortifai_core.language.shared_contexts import ScoredSequence
from storage.store.keys import artifact_key
from storage.store.store import Artifact, ArtifactStore
from storage.tables import parquet
from storage.tables.models import cast, load_model
from tasks.engine.build import build
from tasks.engine.stages import Reference, Stage
from tasks.language.plan import Digests, plan_experiment
from tasks.language.specs import BenchmarkSpec, BenchmarkTask, EvaluateSpec, RegenerateSpec, VersionedText

VOCABULARY = 300
# bfloat16 has 8 bits of mantissa: what two layers of it make of a logit of up to 10, and of their differences
NEAR = 0.15
TEXT = "The town of Ardenlith was founded in 1340, and its river is called the Senn. "
QUESTIONS = [
    {"question": f"q{n}", "document": "d0", "split": 0, "context": f"The town number {n} of the Senn was founded in",
     "true_answer": f"{1340 + n}.", "false_answer": f"{1340 + 7 * n} and {n}."}
    for n in range(20)
]  # fmt: skip


def make_model(family: str) -> Any:
    shape: dict[str, Any] = {"hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "head_dim": 8}
    shape |= {"num_attention_heads": 4, "num_key_value_heads": 2, "vocab_size": VOCABULARY, "initializer_range": 0.2}
    torch.manual_seed(0)
    if family == "gemma2":  # a soft cap stands behind its head, which may round in another order
        return Gemma2ForCausalLM(Gemma2Config(final_logit_softcapping=5.0, attn_logit_softcapping=None, **shape)).eval()
    return LlamaForCausalLM(LlamaConfig(**shape)).eval()


def stages_of(*overrides: str) -> dict[str, tuple[str, str]]:
    plan = plan_experiment(load_experiment_config("smoke", overrides), Digests({}))
    return {f"{stage.run} {stage.label}": (stage.role, stage.key) for stage in plan.uses()}


@pytest.mark.parametrize(("field", "roles"), [("regeneration", {"regenerate"}), ("evaluation", {"evaluate"})])
def test_the_type_is_in_the_key_of_what_computes_in_it_and_only_where_it_is_set(field: str, roles: set[str]) -> None:
    before, unset, in_half = (stages_of(*o) for o in ((), (f"{field}.dtype=null",), (f"{field}.dtype=bfloat16",)))
    assert unset == before
    changed = {before[name][0] for name in before if before[name][1] != in_half[name][1]}
    assert roles <= changed and "corpus" not in changed and "base" not in changed
    if field == "evaluation":
        assert changed <= {"evaluate", "failure", "report"}


def test_a_benchmark_in_another_type_has_another_key() -> None:
    model, task = Reference("model", "0" * 64), BenchmarkTask("blimp", None, None, {})
    plain, half = (Stage(BenchmarkSpec(task=task, dtype=d, model=model, base=None)) for d in (None, "bfloat16"))
    assert plain.key != half.key and "dtype" not in plain.spec.content()


@pytest.fixture(params=["llama", "gemma2"])
def parents(request: pytest.FixtureRequest, tmp_path: Path) -> tuple[ArtifactStore, dict[str, Reference]]:
    """A store with a tiny model and a corpus of one split, with questions and held-out text."""
    store = ArtifactStore(tmp_path / "store")
    tokenizer = train_tokenizer([TEXT] * 4, vocabulary=VOCABULARY)
    references = {kind: Reference(kind, artifact_key(kind, version=1, content={})) for kind in ("model", "corpus")}
    with store.build(*references["model"]) as draft:
        make_model(request.param).save_pretrained(draft.path)
        tokenizer.save_pretrained(draft.path / "tokenizer")
        draft.commit(stage_version=1, content={}, parents={})
    draw = np.random.default_rng(0)
    rows = [
        {"document": f"d{n}", "position": n, "text": "", "tokens": draw.integers(9, 290, 60).tolist(), "kept": 60}
        for n in range(4)
    ]
    with store.build(*references["corpus"]) as draft:
        parquet.write_table(draft.path / "split-00000.parquet", rows, schema="split-text")
        parquet.write_table(draft.path / "validation.parquet", rows, schema="split-text")
        parquet.write_table(draft.path / "questions.parquet", QUESTIONS, schema="questions")
        draft.commit(stage_version=1, content={}, parents={})
    return store, references


def made(store: ArtifactStore, spec: Any) -> Artifact:
    return build(Stage(spec), store, Runtime(), progress=lambda *_: None)[0]


def test_an_evaluation_in_bfloat16_is_near_the_one_in_float32(
    parents: tuple[ArtifactStore, dict[str, Reference]],
) -> None:
    store, references = parents
    asked: dict[str, Any] = {"kr_score": "sum", "perplexity": True, "splits": (0,), "base": None, **references}
    results = {dtype: made(store, EvaluateSpec(dtype=dtype, **asked)) for dtype in (None, "float32", "bfloat16")}
    scores = {
        dtype: np.array([[r["logp_true"], r["logp_false"]] for r in parquet.read_rows(artifact.file("scores.parquet"))])
        for dtype, artifact in results.items()
    }
    assert (scores[None] == scores["float32"]).all(), "the weights are kept in float32"
    off = np.abs(scores["bfloat16"] - scores["float32"])
    assert 0 < off.max() < 0.02 * np.abs(scores["float32"]).max()
    perplexity = {dtype: artifact.manifest.metrics["perplexity-real"] for dtype, artifact in results.items()}
    assert perplexity["bfloat16"] == pytest.approx(perplexity["float32"], rel=0.02)
    assert perplexity["bfloat16"] != perplexity["float32"]


@pytest.mark.parametrize("engine", ["aligned", "reference"])
def test_rewriting_in_bfloat16_deviates_only_where_float32_hardly_prefers_its_choice(
    parents: tuple[ArtifactStore, dict[str, Reference]], engine: str
) -> None:
    store, references = parents
    texts = []
    for dtype in (None, "bfloat16"):
        config = Regeneration(engine=engine, block_tokens=6, context_tokens=8, dtype=dtype)
        text = VersionedText(0, 0)
        spec = RegenerateSpec(regeneration=config, seed=0, generation=0, base=None, text=text, **references)
        texts.append([row["tokens"] for row in parquet.read_rows(made(store, spec).files("part-*.parquet"))])
    corpus, model = store.read(*references["corpus"]), store.read(*references["model"])
    assert corpus is not None and model is not None
    old = list(parquet.iter_column(corpus.file("split-00000.parquet"), "tokens"))
    exact = load_model(model.path)
    equal = 0
    for before, single, half in zip(old, *texts, strict=True):
        for start in range(8, len(before), 6):
            ours, theirs = single[start : start + 6], half[start : start + 6]
            if ours == theirs:
                equal += 1
                continue
            same = next(n for n, (a, b) in enumerate(zip(ours, theirs, strict=True)) if a != b)
            prompt = [*before[start - 8 : start], *ours[:same]]
            preferred, other = log_probabilities(
                exact, [ScoredSequence([*prompt, token], 1) for token in (ours[same], theirs[same])], batch=2
            )
            assert 0 <= preferred[0] - other[0] < NEAR
    assert equal > 18, "of 36 blocks"


def test_a_model_is_cast_as_a_whole_or_not_at_all() -> None:
    model = make_model("llama")
    assert cast(model, None) is model and model.dtype == torch.float32
    assert {parameter.dtype for parameter in cast(model, "bfloat16").parameters()} == {torch.bfloat16}
