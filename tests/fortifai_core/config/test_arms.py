"""Arms by name: what they override, how they are told, what is refused before anything is computed."""

from __future__ import annotations

from typing import Any

import pytest

from flows.load import load_experiment_config, validate
from fortifai_core.config.experiment import ExperimentConfig
from fortifai_core.config.loss import CrossEntropyLoss, TruncatedCrossEntropyLoss
from fortifai_core.config.stages import Mixture, Regime, Training
from fortifai_core.errors import ConfigError

ARMS: list[dict[str, Any]] = [
    {"name": "first"},
    {"name": "tce", "loss": {"type": "tce", "gamma": 0.8}},
    {"name": "short", "training": {"epochs": 3}, "regeneration": {"decoding": "greedy"}},
    {"name": "half", "mixture": {"synthetic": 0.5, "real": "original"}},
    {"name": "old", "regime": "accumulate"},
    {"name": "narrow", "model": {"hidden_size": 64}},
]


def experiment(*arms: dict[str, Any], **fields: Any) -> ExperimentConfig:
    config = validate({"arms": list(arms), **fields})
    assert isinstance(config, ExperimentConfig)
    return config


def test_an_arm_is_the_experiment_with_its_own_settings_over_it() -> None:
    config = experiment(*ARMS, training={"epochs": 12, "learning_rate": 0.01})
    first, tce, short, half, old, narrow = (arm.experiment for arm in config.resolved_arms())
    assert config.arm_labels == ["first", "tce", "short", "half", "old", "narrow"]
    assert first.losses == [CrossEntropyLoss()]
    assert tce.losses == [TruncatedCrossEntropyLoss(gamma=0.8)] and tce.training == first.training
    assert (short.training.epochs, short.training.learning_rate) == (3, 0.01)
    assert (short.regeneration.decoding, short.regeneration.block_tokens) == ("greedy", 32)
    assert half.reading == Mixture(synthetic=0.5, real="original")
    assert old.reading is Regime.ACCUMULATE
    assert narrow.model.model_dump() == {**first.model.model_dump(), "hidden_size": 64}


def test_each_arm_says_in_a_line_how_it_differs_from_the_first() -> None:
    config = experiment(*ARMS, training={"epochs": 12})
    assert [arm.difference for arm in config.resolved_arms()] == [
        "",
        "loss tce-0.8 (first: ce)",
        "training.epochs 3 (first: 12)",
        "text 50% synthetic, the rest the original text (first: paper)",
        "text accumulate (first: paper)",
        "model.hidden_size 64 (first: 128)",
    ]


def test_arms_whose_treatments_have_one_name_are_told_apart_by_their_options() -> None:
    detectors = [{"type": "detector"}, {"type": "detector", "upsample": 3}, {"type": "detector", "max_repeats": 1}]
    config = experiment(*({"name": f"arm-{n}", "treatments": [one]} for n, one in enumerate(detectors)))
    assert [arm.difference.split(" (")[0] for arm in config.resolved_arms()] == [
        "",
        "treatments.0.upsample 3",
        "treatments.0.max_repeats 1",
    ]


def test_the_short_form_has_an_arm_for_each_loss() -> None:
    arms = load_experiment_config("tiny").resolved_arms()
    assert [(arm.label, arm.difference) for arm in arms] == [("ce", ""), ("tce-0.9", "loss tce-0.9 (first: ce)")]


def test_a_configuration_without_new_fields_is_written_as_it_was() -> None:
    written = load_experiment_config("tiny").model_dump(mode="json")
    assert {"arms", "mixture", "treatments"}.isdisjoint(written)
    assert Training.later.isdisjoint(written["training"])
    assert "lora" not in written["model"]
    assert validate(written) == load_experiment_config("tiny")


def test_what_is_set_is_written() -> None:
    config = experiment(*ARMS, training={"dropout": 0.1}, mixture={"synthetic": 1})
    written = config.model_dump(mode="json")
    assert written["training"]["dropout"] == 0.1 and written["mixture"]["synthetic"] == 1
    assert written["arms"][1] == {"name": "tce", "loss": {"type": "tce", "gamma": 0.8, "denominator": "all"}}
    assert validate(written) == config


def test_an_arms_mixture_changes_fields_of_the_experiments() -> None:
    arms = ({"name": "a"}, {"name": "b", "mixture": {"synthetic": 0.25}}, {"name": "c", "regime": "paper"})
    config = experiment(*arms, mixture={"synthetic": 0, "real": "original"})
    assert [arm.experiment.reading for arm in config.resolved_arms()] == [
        Mixture(synthetic=0, real="original"),
        Mixture(synthetic=0.25, real="original"),
        Regime.PAPER,
    ]


def test_set_reaches_into_an_arm() -> None:
    config = load_experiment_config("share", ["arms.1.mixture.synthetic=0.2", "arms.2.training={epochs: 3}"])
    arms = [arm.experiment for arm in config.resolved_arms()]
    assert arms[1].mixture == Mixture(synthetic=0.2, real="original")
    assert arms[2].training.epochs == 3 and arms[3].training.epochs == 12


REFUSED: list[tuple[list[dict[str, Any]], dict[str, Any], str, str]] = [
    ([{"name": "a"}, {"name": "b", "training": {"epochz": 2}}], {}, "arms.1.training.epochz", "did you mean `epochs`"),
    ([{"name": "a"}, {"name": "b", "seeds": [1]}], {}, "arms.1.seeds", "the same in all arms"),
    ([{"name": "a"}, {"name": "b", "regimen": 1}], {}, "arms.1.regimen", "did you mean `regime`"),
    ([{"name": "a"}, {"name": "a", "regime": "replace"}], {}, "arms.1.name", "that of arms.0 too"),
    ([{"name": "A b"}], {}, "arms.0.name", "pattern"),
    ([{"training": {"epochs": 2}}], {}, "arms.0.name", "required"),
    ([{"name": "a", "training": {"epochs": 0}}], {}, "arms.0.training.epochs", "greater than 0"),
    ([{"name": "a", "training": {"epochs": "3"}}], {}, "arms.0.training.epochs", "give a number"),
    ([{"name": "a", "training": 3}], {}, "arms.0.training", "dictionary"),
    ([{"name": "a", "model": {"heads": 3}}], {}, "arms.0.model.heads", "divide hidden_size"),
    ([{"name": "a", "loss": {"type": "tce", "gamma": 2}}], {}, "arms.0.loss.gamma", "less than or equal to 1"),
    ([{"name": "a", "regime": "fresh"}], {}, "arms.0.regime", "fresh-mix"),
    ([{"name": "a"}], {"losses": [{"type": "cross-entropy"}, {"type": "tce"}]}, "losses", "leave one loss"),
    ([{"name": "a", "mixture": {"synthetic": 0.5}}], {}, "arms.0.mixture.synthetic", "set it to 1"),
    ([{"name": "a", "mixture": {"synthetic": 1.5}}], {}, "arms.0.mixture.synthetic", "less than or equal to 1"),
    (
        [{"name": "a", "mixture": {"synthetic": 0.9, "real": "fresh", "splits": 2}}],
        {},
        "arms.0.mixture.splits",
        "lower it",
    ),
    ([], {"regime": "accumulate", "mixture": {"synthetic": 1}}, "mixture.synthetic", "share of its own"),
    ([{"name": "a", "loss": {"type": "tce"}, "training": {"label_smoothing": 0.1}}], {}, "arms.0.training", "ross ent"),
    ([{"name": "a", "model": {"lora": {}}, "training": {"anchor": 0.1}}], {}, "arms.0.training.anchor", "whole models"),
    (
        [{"name": "a", "loss": {"type": "tail"}, "training": {"loss_on": "real"}}],
        {},
        "arms.0.training.loss_on",
        "share of",
    ),
    ([{"name": "a", "training": {"distillation": 2}}], {}, "arms.0.training.distillation", "less than or equal to 1"),
]


@pytest.mark.parametrize(("arms", "fields", "field", "said"), REFUSED, ids=lambda value: str(value)[:50])
def test_what_no_arm_can_do_is_refused_by_its_place(
    arms: list[dict[str, Any]], fields: dict[str, Any], field: str, said: str
) -> None:
    with pytest.raises(ConfigError) as caught:
        validate({"arms": arms, **fields})
    message = str(caught.value)
    assert message.startswith(field) and said in message and "\n" not in message


def test_a_mixture_that_is_a_regime_goes_by_its_name() -> None:
    config = experiment(
        {"name": "replace", "mixture": {"synthetic": 1, "real": "fresh"}},
        {"name": "mix", "mixture": {"synthetic": 0.5, "real": "fresh", "splits": 2}},
    )
    assert [arm.experiment.reading for arm in config.resolved_arms()] == [Regime.REPLACE, Regime.FRESH_MIX]
