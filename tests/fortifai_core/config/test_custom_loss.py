"""A user's own loss: who may have it run, where it may come from, and what is wrong with it, before any compute."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
import torch

from fortifai_core.config.custom_code import ALLOWED, allow_code
from fortifai_core.config.custom_loss import check_elementwise, load_custom, source_of
from fortifai_core.errors import ConfigError
from helpers import install_losses

SOURCE = """
import functools, math, subprocess
from dataclasses import dataclass
from textwrap import dedent
from subprocess import Popen
from pathlib import Path

import torch

Path(__file__).with_name("was-imported").touch()

def power(nll, exponent=1.0):
    return nll ** exponent
def average(nll):
    return nll.mean()
def centred(nll):
    return nll - nll.mean()
def logarithm(nll):
    return nll.log()
def root(nll):
    return nll.sqrt()
def raises(nll):
    raise KeyError("gamma")
def constant(nll):
    return torch.ones_like(nll)
def doubtful(nll, entropy):
    return nll * entropy
def sharp(nll, entropy):
    return nll / entropy
def by_entropy_alone(nll, entropy):
    return entropy
def after_a_setting(nll, scale, entropy):
    return nll * scale * entropy
class Loss:
    def __call__(self, nll): return nll
    def method(self, nll): return nll

number, instance, partial, bound = 3, Loss(), functools.partial(power, exponent=2), Loss().method
"""


@pytest.fixture
def user_module(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    (tmp_path / "my_losses.py").write_text(SOURCE)
    (tmp_path / "broken_losses.py").write_text("import a_module_that_is_not_there\n")
    (tmp_path / "failing_losses.py").write_text("raise RuntimeError('no\\nluck')\n")
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.setenv(ALLOWED, "my_losses, broken_losses,failing_losses,no_such_module_here")
    sys.modules.pop("my_losses", None)
    return "my_losses"


def test_a_function_is_loaded_with_its_options(user_module: str) -> None:
    loss = load_custom(f"{user_module}:power", {"exponent": 2.0})
    check_elementwise("my_losses:power", loss)
    assert loss(torch.tensor([3.0])).item() == 9.0


def test_a_function_that_names_the_entropy_is_given_it(user_module: str) -> None:
    loss = load_custom(f"{user_module}:doubtful", {})
    check_elementwise("my_losses:doubtful", loss)
    assert loss(torch.tensor([3.0]), torch.tensor([2.0])).item() == 6.0


@pytest.mark.parametrize("allowed", ["", "other", "my_losses.sub", "my", "*"])
def test_nothing_of_a_module_is_run_before_it_is_allowed(
    user_module: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, allowed: str
) -> None:
    monkeypatch.setenv(ALLOWED, allowed)
    with pytest.raises(ConfigError) as refused:
        load_custom("my_losses:power", {}, "losses.1.function")
    told = str(refused.value)
    assert told.startswith("losses.1.function = 'my_losses:power': ") and "--allow-code my_losses" in told
    assert "\n" not in told and not (tmp_path / "was-imported").exists()
    allow_code(["my_losses"])
    load_custom("my_losses:power", {})
    assert (tmp_path / "was-imported").exists()


@pytest.mark.parametrize(
    "function",
    ["uvicorn:Config", "subprocess:run", "os:system", "builtins:eval", "flows.demo:run_demo", "kernels.losses:focal"],
)
def test_code_that_is_not_the_users_own_is_no_loss_even_if_allowed(
    function: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(ALLOWED, function.partition(":")[0])
    with pytest.raises(ConfigError, match="no file of your own"):
        load_custom(function, {})


@pytest.mark.parametrize(
    "name", ["subprocess", "Popen", "dedent", "dataclass", "Loss", "instance", "partial", "bound", "number", "torch"]
)
def test_only_a_plain_function_that_the_module_defines_is_a_loss(user_module: str, name: str) -> None:
    with pytest.raises(ConfigError, match="not a function of nll that is defined in my_losses"):
        load_custom(f"my_losses:{name}", {})


def test_a_module_in_a_package_needs_its_own_permission(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    package = tmp_path / "lab_of_mine"
    package.mkdir()
    (package / "__init__.py").write_text("from pathlib import Path\nPath(__file__).with_name('was-imported').touch()\n")
    (package / "losses.py").write_text("def same(nll):\n    return nll\n")
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.setenv(ALLOWED, "lab_of_mine")
    with pytest.raises(ConfigError, match=r"--allow-code lab_of_mine\.losses"):
        source_of("lab_of_mine.losses:same")
    assert not (package / "was-imported").exists()
    monkeypatch.setenv(ALLOWED, "lab_of_mine.losses")
    assert source_of("lab_of_mine.losses:same").file == package / "losses.py"
    monkeypatch.setenv(ALLOWED, "torch.nn.functional")
    with pytest.raises(ConfigError, match="no file of your own"):
        source_of("torch.nn.functional:relu")


@pytest.mark.parametrize(
    ("function", "options", "message"),
    [
        ("no_such_module_here:f", {}, "cannot be found: put its folder on PYTHONPATH"),
        ("broken_losses:f", {}, "a_module_that_is_not_there"),
        ("failing_losses:f", {}, "RuntimeError: no luck"),
        ("my_losses:missing", {}, "has no 'missing'"),
        ("my_losses:power", {"base": 2}, "losses.options.*unexpected keyword"),
        ("my_losses", {}, "module:function"),
        ("my_losses:after_a_setting", {"scale": 2.0}, "losses.options.*multiple values for argument 'scale'"),
    ],
)
def test_load_custom_says_what_is_wrong(
    user_module: str, function: str, options: dict[str, object], message: str
) -> None:
    with pytest.raises(ConfigError, match=message):
        load_custom(function, options)


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("average", "one loss for each token"),
        ("centred", "not elementwise"),
        ("logarithm", "not finite"),
        ("root", "derivative that is not finite"),
        ("raises", "KeyError: 'gamma'"),
        ("constant", "no derivative"),
        ("sharp", "not finite"),  # where the entropy is 0
        ("by_entropy_alone", "no derivative: torch must compute it from nll, entropy"),
    ],
)
def test_a_function_that_is_no_loss_of_single_tokens_is_refused(user_module: str, name: str, message: str) -> None:
    function = f"{user_module}:{name}"
    with pytest.raises(ConfigError, match=f"losses.function = '{function}': .*{message}"):
        check_elementwise(function, load_custom(function, {}))


def test_an_installed_package_offers_a_loss_by_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv(ALLOWED, raising=False)
    install_losses(tmp_path, "installed_losses", SOURCE, {"power": "power", "odd": "Popen", "none": "missing"})
    monkeypatch.syspath_prepend(str(tmp_path))
    source = source_of("power")
    assert (source.module, source.name, source.file) == ("installed_losses", "power", tmp_path / "installed_losses.py")
    assert not (tmp_path / "was-imported").exists()
    loss = load_custom("power", {"exponent": 2.0})
    check_elementwise("power", loss)
    assert loss(torch.tensor([3.0])).item() == 9.0
    for function, message in (
        ("odd", "not a function of nll that is defined in installed_losses"),
        ("none", "has no 'missing'"),
        ("other", "no installed package offers a loss of this name .there are: none, odd, power"),
        ("installed_losses:power", "--allow-code installed_losses"),  # the file itself is allowed by its name alone
    ):
        with pytest.raises(ConfigError, match=message):
            load_custom(function, {})


def test_a_name_that_two_packages_offer_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for package, function in (("one_losses", "power"), ("other_losses", "root")):
        install_losses(tmp_path, package, SOURCE, {"power": function})
    monkeypatch.syspath_prepend(str(tmp_path))
    with pytest.raises(ConfigError, match=r"several installed packages .*one_losses, other_losses"):
        source_of("power")


def test_the_digest_of_an_installed_loss_holds_what_its_name_stands_for(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    digests = set()
    for number, function in enumerate(("power", "root")):
        folder = tmp_path / str(number)
        folder.mkdir()
        install_losses(folder, "installed_losses", SOURCE, {"mine": function})
        with monkeypatch.context() as patched:
            patched.syspath_prepend(str(folder))
            digests.add(source_of("mine").digest)
    assert len(digests) == 2


def test_checking_a_configuration_needs_no_torch() -> None:
    code = "import sys, fortifai_core.config.custom_loss, tasks.language.losses; assert 'torch' not in sys.modules"
    subprocess.run([sys.executable, "-c", code], check=True)
