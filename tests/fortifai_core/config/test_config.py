"""Configuration: presets load, bad input is refused in one line that names field, value and remedy."""

from __future__ import annotations

from pathlib import Path

import pytest
import yaml

from flows.load import load_any_config, load_experiment_config, preset_text, presets, validate
from fortifai_core.errors import ConfigError


@pytest.mark.parametrize("name", sorted(presets()))
def test_every_preset_is_a_valid_experiment_of_its_own_name(name: str) -> None:
    config = load_any_config(name)
    assert config.name == name
    assert validate(yaml.safe_load(yaml.safe_dump(config.model_dump(mode="json")))) == config
    assert preset_text(name).startswith("# ")


def test_set_changes_one_field() -> None:
    before, after = load_experiment_config("tiny"), load_experiment_config("tiny", ["losses.1.gamma=0.8"])
    assert after.losses[1].label == "tce-0.8"
    assert before.model_copy(update={"losses": after.losses}) == after


@pytest.mark.parametrize(
    ("override", "field", "said"),
    [
        ("losses.1.gamma=0", "losses.1.gamma", "greater than 0"),
        ("losses.1.gamma=1.01", "losses.1.gamma", "less than or equal to 1"),
        ("losses.1.gama=0.9", "losses.1.gama", "did you mean `gamma`"),
        ("splits=1", "splits", "greater than or equal to 2"),
        ("generations=99", "generations", "above splits"),
        ("generation=3", "generation", "did you mean `generations`"),
        ("seeds=[1, 1]", "seeds", "different"),
        ("model.heads=3", "model.heads", "divide hidden_size"),
        ("model.max_positions=40", "model.max_positions", "raise it"),
        ("training.learning_rate=.nan", "training.learning_rate", "finite"),
        ("regime=papier", "regime", "'paper'"),
        ("losses.7.gamma=1", "--set", "entries 0 to"),
        ("name=Ä B", "name", "pattern"),
        ("nonsense", "--set", "path=value"),
    ],
)
def test_bad_fields_are_named(override: str, field: str, said: str) -> None:
    with pytest.raises(ConfigError) as caught:
        load_experiment_config("tiny", [override])
    assert caught.value.field == field
    assert said in str(caught.value)
    assert "\n" not in str(caught.value)
    assert caught.value.exit_code == 2


def test_two_arms_of_the_same_loss_are_refused() -> None:
    same = "losses=[{type: tce, gamma: 0.9}, {type: tce, gamma: 0.9}]"
    with pytest.raises(ConfigError, match="two arms are the same"):
        load_experiment_config("tiny", [same])


@pytest.mark.parametrize("text", ["losses: [", "- just\n- a list\n", ""])
def test_corrupt_files_are_refused(tmp_path: Path, text: str) -> None:
    path = tmp_path / "mine.yaml"
    path.write_text(text)
    with pytest.raises(ConfigError) as caught:
        load_experiment_config(str(path))
    assert "mine.yaml" in str(caught.value)


def test_a_file_that_is_not_text_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "mine.yaml"
    path.write_bytes(b"\xff\xfe\x00name")
    with pytest.raises(ConfigError, match="cannot be read"):
        load_experiment_config(str(path))


def test_missing_file_and_unknown_preset() -> None:
    with pytest.raises(ConfigError, match="no such file"):
        load_experiment_config("nowhere/mine.yaml")
    with pytest.raises(ConfigError, match="did you mean `tiny`"):
        load_experiment_config("tinny")
