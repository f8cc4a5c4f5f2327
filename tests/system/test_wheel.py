"""What is installed from a wheel, far from the sources, has everything that it needs: presets, tables, templates."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
ROOMS = ("flows", "tasks", "fortifai_core", "kernels", "storage", "deployments")


@pytest.fixture(scope="module")
def installed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder that the wheel was installed into; it is built from a copy, which leaves the sources clean."""
    folder = tmp_path_factory.mktemp("wheel")
    source = folder / "source"
    for room in ROOMS:
        shutil.copytree(ROOT / room, source / room, ignore=shutil.ignore_patterns("__pycache__"))
    for name in ("pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, source / name)
    pip = [sys.executable, "-m", "pip", "--disable-pip-version-check", "--quiet"]
    subprocess.run([*pip, "wheel", "--no-deps", "--no-build-isolation", "--wheel-dir", folder, source], check=True)
    (wheel,) = folder.glob("*.whl")
    subprocess.run([*pip, "install", "--no-deps", "--target", folder / "site", wheel], check=True)
    shutil.rmtree(source)
    return folder / "site"


def fortifai(site: Path, elsewhere: Path, *arguments: str) -> str:
    environment = {
        **os.environ,
        "PYTHONPATH": str(site),
        "FORTIFAI_STORE": str(elsewhere / "store"),
        "PREFECT_HOME": str(elsewhere / "prefect"),
    }
    command = [sys.executable, site / "bin" / "fortifai", *arguments]
    done = subprocess.run(command, cwd=elsewhere, env=environment, capture_output=True, text=True, timeout=240)
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_a_wheel_plans_an_experiment_in_another_folder(installed: Path, tmp_path: Path) -> None:
    said = fortifai(installed, tmp_path, "plan", "tiny")
    assert "0 of " in said and f"Store: {tmp_path}" in " ".join(said.split())
    code = "import flows, storage; print(flows.__file__, storage.__file__)"
    where = subprocess.run(
        [sys.executable, "-c", code],
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": str(installed)},
        capture_output=True,
        text=True,
        check=True,
    ).stdout.split()
    assert [Path(path).parent.parent for path in where] == [installed, installed], "the sources were taken instead"


def test_a_wheel_has_the_files_that_are_no_code(installed: Path) -> None:
    for name in ("flows/presets", "storage/paper", "fortifai_core/report/templates", "deployments"):
        sources = {path.name for path in (ROOT / name).iterdir() if path.suffix in (".yaml", ".csv", ".html", ".css")}
        assert sources and sources <= {path.name for path in (installed / name).iterdir()}, name
