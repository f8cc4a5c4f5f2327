"""Less than one batch of text: what mixtures and treatments leave at most, by hand, and refused by the plan."""

from __future__ import annotations

from pathlib import Path

import pytest

from flows.load import load_experiment_config
from flows.prepare import plan_for
from fortifai_core.config.treatment import CustomTreatment, Deduplicate, Detector, SurpriseFilter, TokenEdit, Treatment
from fortifai_core.errors import ConfigError
from tasks.language.amounts import Held, most_rows

SYNTHETIC = [Held(size, real=False) for size in (9, 19, 29)]
REAL = [Held(19, real=True), Held(39, real=True)]


def rows(*treatments: Treatment, shares: tuple[float, ...] | None = None, batch: int = 4) -> int | None:
    """Sequences of 20 tokens of 60 synthetic ones (with the ends of documents) and 60 real ones."""
    return most_rows([SYNTHETIC, REAL], shares=shares, treatments=treatments, length=20, batch=batch)


def test_a_mixture_is_what_training_draws() -> None:
    assert rows(shares=(0.5, 0.5)) == 4  # 1.5 of 3, rounded to the even number, of each
    assert rows(shares=(0.05, 1.0)) == 4  # one at least
    assert rows(shares=(0.1, 0.2)) == 2
    assert rows(shares=(0.1, 0.2), batch=7) is None  # all of it is less than a batch
    assert rows() is None


@pytest.mark.parametrize(
    ("treatments", "most"),
    [
        # half of five is three: 40, 30 and 20 tokens at most, so 90; and a rest in either text
        ([SurpriseFilter(keep=0.5)], 5 + 1),
        ([SurpriseFilter(keep=0.2)], 2 + 1),
        ([SurpriseFilter(keep=0.3, of="synthetic")], (30 + 60) // 20 + 1 + 1),
        # one after the other: of three documents of 90 tokens one, the longest
        ([SurpriseFilter(keep=0.5), SurpriseFilter(keep=0.3)], 2 + 1),
        # two draws of 40 tokens
        ([Detector(upsample=0.4, max_repeats=2)], 4 + 1),
        ([Detector(upsample=0.4, max_repeats=1)], (40 + 30) // 20 + 1 + 1),
        # what need not drop anything
        ([Deduplicate()], 6 + 1),
        ([TokenEdit()], 6 + 1),
        ([SurpriseFilter(keep=0.2), CustomTreatment(function="mine", name="mine")], None),
    ],
    ids=lambda value: ", ".join(one.label for one in value) if isinstance(value, list) else str(value),
)
def test_a_treatment_leaves_the_longest_documents_at_most(treatments: list[Treatment], most: int | None) -> None:
    assert rows(*treatments) == most


def test_the_plan_refuses_what_leaves_less_than_a_batch(tmp_path: Path) -> None:
    one = ["losses=[{type: cross-entropy}]", "training.batch_size=8", "corpus.entities=12"]
    plan_for(load_experiment_config("smoke", [*one, "treatments=[{type: surprise-filter, keep: 0.6}]"]))
    with pytest.raises(ConfigError, match=r"^treatments = 'surprise-0.05': leaves at most \d sequences of M_1"):
        plan_for(load_experiment_config("smoke", [*one, "treatments=[{type: surprise-filter, keep: 0.05}]"]))
    arm = "arms=[{name: a}, {name: b, mixture: {synthetic: 0.5, real: original, splits: SPLITS}}]"
    plan_for(load_experiment_config("smoke", [*one, arm.replace("SPLITS", "1")]))
    with pytest.raises(ConfigError, match=r"^arms.1.mixture = '50% synthetic.*batch_size is 8: keep more text"):
        plan_for(load_experiment_config("smoke", [*one, arm.replace("SPLITS", "0.1")]))
    # a text that is small by itself is no mixture's fault
    plan_for(load_experiment_config("smoke", [*one, "training.batch_size=64", arm.replace("SPLITS", "0.1")]))
