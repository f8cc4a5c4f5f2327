"""The README's Python is run, and what it says about presets and commands is true."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from flows.load import load_experiment_config, presets

README = (Path(__file__).parents[2] / "README.md").read_text(encoding="utf-8")


def test_the_python_quickstart_runs(capsys: pytest.CaptureFixture[str]) -> None:
    block, *examples = re.findall(r"```python\n(.*?)```", README, flags=re.DOTALL)
    exec(compile(block, "README.md", "exec"), {})
    assert re.search(r"loss \d+\.\d\d, \d+% of the tokens are live", capsys.readouterr().out)
    source = (Path(__file__).parent / "test_examples.py").read_text(encoding="utf-8")
    assert len(examples) == 3
    assert all(f'"""\n{example}"""' in source for example in examples)  # which runs them


def test_every_command_in_the_readme_exists() -> None:
    import typer.main

    from flows.cli.app import app

    commands = typer.main.get_command(app).commands  # type: ignore[attr-defined]
    named = set(re.findall(r"`?fortifai ([a-z]+)", README))
    assert named <= set(commands) | {"core"}, named - set(commands)
    assert {"run", "plan", "resume", "report", "sql", "serve", "export", "paper", "doctor"} <= named


def test_every_preset_in_the_readme_exists() -> None:
    assert set(re.findall(r"fortifai (?:run|plan) ([a-z][a-z0-9-]*)", README)) <= set(presets())


def test_tiny_5seeds_is_tiny_with_more_seeds() -> None:
    tiny, more = load_experiment_config("tiny"), load_experiment_config("tiny-5seeds")
    assert more.model_copy(update={"name": "tiny", "seeds": tiny.seeds}) == tiny
    assert len(more.seeds) == 5
