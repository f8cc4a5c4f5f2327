"""A user's own loss: what is wrong with it is said before any training."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
import torch

from fortifai_core.config.custom_loss import check_elementwise, load_custom
from fortifai_core.errors import ConfigError


@pytest.fixture
def user_module(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    (tmp_path / "my_losses.py").write_text(
        "import torch\n"
        "def power(nll, exponent=1.0):\n    return nll ** exponent\n"
        "def average(nll):\n    return nll.mean()\n"
        "def centred(nll):\n    return nll - nll.mean()\n"
        "def logarithm(nll):\n    return nll.log()\n"
        "number = 3\n"
    )
    (tmp_path / "broken_losses.py").write_text("import a_module_that_is_not_there\n")
    monkeypatch.syspath_prepend(str(tmp_path))
    return "my_losses"


def test_a_function_is_loaded_with_its_options(user_module: str) -> None:
    loss = load_custom(f"{user_module}:power", {"exponent": 2.0})
    check_elementwise("my_losses:power", loss)
    assert loss(torch.tensor([3.0])).item() == 9.0


@pytest.mark.parametrize(
    ("function", "options", "message"),
    [
        ("no_such_module_here:f", {}, "No module named 'no_such_module_here'"),
        ("broken_losses:f", {}, "a_module_that_is_not_there"),
        ("my_losses:missing", {}, "has no 'missing'"),
        ("my_losses:number", {}, "not a function"),
        ("my_losses:power", {"base": 2}, "losses.options.*unexpected keyword"),
        ("my_losses", {}, "module:function"),
    ],
)
def test_load_custom_says_what_is_wrong(
    user_module: str, function: str, options: dict[str, object], message: str
) -> None:
    with pytest.raises(ConfigError, match=message):
        load_custom(function, options)


@pytest.mark.parametrize(
    ("name", "message"),
    [("average", "one loss for each token"), ("centred", "not elementwise"), ("logarithm", "not finite")],
)
def test_a_function_that_is_no_loss_of_single_tokens_is_refused(user_module: str, name: str, message: str) -> None:
    function = f"{user_module}:{name}"
    with pytest.raises(ConfigError, match=f"losses.function = '{function}': .*{message}"):
        check_elementwise(function, load_custom(function, {}))


def test_checking_a_configuration_needs_no_torch() -> None:
    code = "import sys, fortifai_core.config.custom_loss, tasks.language.losses; assert 'torch' not in sys.modules"
    subprocess.run([sys.executable, "-c", code], check=True)
