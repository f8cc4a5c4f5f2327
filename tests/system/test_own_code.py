"""Code that lies about is not run: not what a configuration names, and not what the current folder holds."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
from rich.console import Console

from flows.access import check_folder
from flows.embedded import check_api
from flows.load import load_any_config
from flows.prepare import prepare_experiment
from flows.server.serving import serve_all
from flows.tools.doctor import check_server
from fortifai_core.config.custom_code import ALLOWED
from fortifai_core.errors import ConfigError, InputError
from helpers import COMMAND, environment, install_losses
from storage.store.experiments import record_experiment
from storage.store.store import ArtifactStore
from tasks.engine.children import ROOT, child_environment

TELLTALE = "from pathlib import Path\nPath(__file__).with_name('ran-' + __name__).touch()\n"
LOSS = "losses=[{type: cross-entropy}, {type: custom, name: own, function: 'losses_here:own'}]"


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A folder of a person who has a loss in it, and modules that are named as others are."""
    folder = tmp_path / "work"
    folder.mkdir()
    (folder / "losses_here.py").write_text(
        TELLTALE + "def own(nll):\n    return nll * 2\ndef bad(nll):\n    return nll.log()\n"
    )
    for name in ("random", "storage", "tasks", "sitecustomize", "torch", "uvicorn"):
        (folder / f"{name}.py").write_text(TELLTALE)
    return folder


def ran(folder: Path) -> set[str]:
    return {path.name.removeprefix("ran-") for path in folder.glob("ran-*")}


def fortifai(folder: Path, *arguments: str, **variables: str) -> subprocess.CompletedProcess[str]:
    """The command in this folder, from where the tests' own copy is found on PYTHONPATH."""
    told = {**environment(folder.parent, "store"), "PYTHONPATH": ROOT, **variables}
    return subprocess.run([*COMMAND, *arguments], env=told, cwd=folder, capture_output=True, text=True, timeout=240)


def refused(done: subprocess.CompletedProcess[str], *words: str) -> None:
    """Exit code 2 and one line with these words."""
    assert done.returncode == 2 and len(done.stderr.splitlines()) == 1, done.stderr
    for word in ("error:", *words):
        assert word in done.stderr


def test_a_configuration_cannot_have_code_run(folder: Path) -> None:
    here = os.pathsep.join((ROOT, str(folder / "modules")))
    (folder / "modules").mkdir()
    (folder / "losses_here.py").rename(folder / "modules" / "losses_here.py")
    done = fortifai(folder, "run", "smoke", "--set", LOSS, PYTHONPATH=here)
    refused(done, "losses.1.function = 'losses_here:own'", "--allow-code losses_here")
    assert not ran(folder / "modules") and not (folder.parent / "store" / "artifacts").exists()
    # nor can somebody else's store
    config = load_any_config("smoke", [LOSS]).model_dump(mode="json")
    record_experiment(ArtifactStore(str(folder.parent / "store")), config=config, status="failed", stages=[])
    refused(fortifai(folder, "resume", PYTHONPATH=here), "losses.1.function", "--allow-code losses_here")
    assert not ran(folder / "modules")
    # the person can
    done = fortifai(folder, "plan", "smoke", "--set", LOSS, "--allow-code", "losses_here", PYTHONPATH=here)
    assert done.returncode == 0 and "own" in done.stdout, done.stderr
    assert ran(folder / "modules") == {"losses_here"} and not ran(folder)


def test_an_installed_loss_needs_no_permission_and_gets_no_other(folder: Path) -> None:
    packages = folder.parent / "packages"
    packages.mkdir()
    install_losses(packages, "lab_losses", TELLTALE + "def double(nll):\n    return nll * 2\n", {"double": "double"})
    here = os.pathsep.join((ROOT, str(packages)))
    named = LOSS.replace("losses_here:own", "double")
    done = fortifai(folder, "plan", "smoke", "--set", named, PYTHONPATH=here)
    assert done.returncode == 0 and "own" in done.stdout, done.stderr
    assert ran(packages) == {"lab_losses"} and not ran(folder)
    refused(fortifai(folder, "plan", "smoke", "--set", named), "losses.1.function = 'double'", "no installed package")


def test_a_loss_that_is_none_is_refused_before_anything_is_computed(
    folder: Path, monkeypatch: pytest.MonkeyPatch, store_url: str
) -> None:
    for other in folder.glob("*.py"):
        if other.name != "losses_here.py":
            other.unlink()
    monkeypatch.syspath_prepend(str(folder))
    monkeypatch.setenv(ALLOWED, "losses_here")
    config = load_any_config("smoke", [LOSS.replace(":own", ":bad")])
    with pytest.raises(ConfigError, match=r"losses\.1\.function = 'losses_here:bad': is not finite"):
        prepare_experiment(config)
    assert not list(Path(store_url).rglob("*.json"))


def test_the_current_folder_holds_no_modules(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The command, and a worker that it would start there, which reads a request that it cannot build."""
    done = fortifai(folder, "plan", "gaussian-demo")
    assert done.returncode == 0, done.stderr
    monkeypatch.chdir(folder)
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join((ROOT, "")))  # an empty part would be the current folder
    for variables in (child_environment(), {**child_environment(), "FORTIFAI_WORKER_WARM": "1"}):
        worker = [sys.executable, "-m", "tasks.engine.worker"]
        subprocess.run(worker, env=variables, stdin=subprocess.DEVNULL, check=True, timeout=60)
        child = [sys.executable, "-c", "import random, storage"]
        through = f"import subprocess; subprocess.run({child}, check=True)"
        subprocess.run([sys.executable, "-c", through], env=variables, check=True)
    assert not ran(folder)


def test_the_installed_command_is_safe_beside_packages_of_its_own_names(folder: Path) -> None:
    script = folder.parent / "bin" / "fortifai"  # as pip writes it
    script.parent.mkdir()
    script.write_text("import sys\nfrom flows.cli.app import main\nsys.exit(main())\n")
    for name in ("flows", "fortifai_core", "kernels", "prefect"):
        (folder / name).mkdir()
        (folder / name / "__init__.py").write_text("from pathlib import Path\nPath('ran-package').touch()\n")
    told = {**environment(folder.parent, "store"), "PYTHONPATH": ROOT}
    command = [sys.executable, str(script), "run", "gaussian-demo", "--set", "family.samples=-1"]
    plan = [sys.executable, str(script), "plan", "gaussian-demo"]
    done = subprocess.run(plan, env=told, cwd=folder, capture_output=True, text=True, timeout=100)
    assert done.returncode == 0, done.stderr
    refused(subprocess.run(command, env=told, cwd=folder, capture_output=True, text=True, timeout=100), "samples")
    assert not ran(folder)
    # nor with `python -m`, where the person says so
    safe = [sys.executable, "-P", "-m", "flows.cli", "plan", "gaussian-demo"]
    assert subprocess.run(safe, env=told, cwd=folder, capture_output=True, timeout=100).returncode == 0
    assert not ran(folder)


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("prefect.toml", "[logging]\nconfig_path = 'log.yml'\n"),
        ("pyproject.toml", "[tool.prefect.logging]\nconfig_path = 'log.yml'\n"),
        ("pyproject.toml", "[tool.\"pre\\u0066ect\".logging]\nconfig_path = 'log.yml'\n"),
        (".env", "export Prefect_Logging_Settings_Path=log.yml\n"),
    ],
)
def test_a_file_of_the_current_folder_does_not_set_prefect(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str, text: str
) -> None:
    """Its logging configuration calls whatever function it names."""
    (tmp_path / "log.yml").write_text(
        "version: 1\nformatters: {x: {(): subprocess.check_output, args: [touch, was-run]}}\n"
    )
    (tmp_path / name).write_text(text)
    if name == ".env":  # the whole command once, for it takes seconds
        refused(fortifai(tmp_path, "run", "gaussian-demo"), "the current folder = ", name, "start from another folder")
    monkeypatch.chdir(tmp_path)
    for command in (check_api, lambda: serve_all(host="127.0.0.1", port=4200, store=None, console=Console())):
        with pytest.raises(InputError, match=f"the current folder = .*{name}.*would set Prefect"):
            command()
    assert check_server().state == "broken" and not (tmp_path / "was-run").exists()
    (tmp_path / name).write_text("")
    if name != "prefect.toml":
        check_folder()


def test_what_pythonpath_names_is_found_wherever_the_child_goes(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (folder / "mine").mkdir()
    (folder / "mine" / "losses_there.py").write_text(TELLTALE)
    monkeypatch.chdir(folder)
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join((ROOT, "mine")))
    code = "import losses_there"
    subprocess.run([sys.executable, "-c", code], env=child_environment(), cwd=tmp_path, check=True)
    assert ran(folder / "mine") == {"losses_there"}


@pytest.mark.long
def test_an_experiment_runs_beside_modules_of_any_name(folder: Path) -> None:
    small = ["--set", "generations=2", "--set", "family.samples=100", "--set", "family.replicates=20"]
    done = fortifai(folder, "run", "gaussian-demo", *small, PREFECT_SERVER_ANALYTICS_ENABLED="false")
    assert done.returncode == 0, done.stdout + done.stderr
    assert not ran(folder)
