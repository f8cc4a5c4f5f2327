"""The doctor: it sees what is broken, says what to do, and calls nothing broken that works."""

from __future__ import annotations

import importlib.metadata
import io
import sys
import urllib.error
from pathlib import Path

import pytest
from rich.console import Console

from flows.tools import doctor
from flows.tools.doctor import Check


@pytest.fixture(autouse=True)
def plain_machine(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("FORTIFAI_DATA", raising=False)


def examined(store: str | None) -> tuple[int, str]:
    console = Console(file=io.StringIO(), width=300)
    code = doctor.examine(store, console)
    assert isinstance(console.file, io.StringIO)
    return code, console.file.getvalue()


def test_a_sound_machine_is_fine(store_url: str) -> None:
    code, text = examined(store_url)
    assert code == 0, text
    assert "nothing is broken" in text
    for word in ("python", "torch", "prefect", "duckdb", "kernels", store_url, "mirror", "cores"):
        assert word in text


def test_one_broken_check_is_enough_to_fail(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    code, text = examined(str(tmp_path / "file" / "store"))
    assert code == 1
    assert "1 broken" in text and "--store" in text


def test_the_store_is_checked_for_space(store_url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    assert doctor.check_store(store_url).state == "fine"
    monkeypatch.setattr("storage.store.store.ArtifactStore.free_bytes", lambda self: 10**6)
    check = doctor.check_store(store_url)
    assert check.state == "note" and "0 GB free" in check.found and check.remedy


def without(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Forget an import, so that the package is looked for anew."""
    monkeypatch.delitem(sys.modules, name, raising=False)
    importlib.invalidate_caches()


def test_another_package_that_owns_the_name_kernels_is_reported(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert doctor.check_kernels().state == "fine"
    (tmp_path / "kernels-0.16.1.dist-info").mkdir()
    (tmp_path / "kernels-0.16.1.dist-info" / "METADATA").write_text("Name: kernels\nVersion: 0.16.1\n")
    monkeypatch.syspath_prepend(tmp_path)
    check = doctor.check_kernels()
    assert check.state == "broken"
    assert "0.16.1" in check.found and "pip uninstall kernels" in check.remedy


def test_a_folder_that_hides_our_kernels_is_reported(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "kernels").mkdir()
    (tmp_path / "kernels" / "__init__.py").write_text("")
    monkeypatch.syspath_prepend(tmp_path)
    without("kernels", monkeypatch)
    check = doctor.check_kernels()
    assert check.state == "broken"
    assert str(tmp_path / "kernels") in check.found and "PYTHONPATH" in check.remedy


def test_a_package_in_a_wrong_version_is_named_with_the_right_one(monkeypatch: pytest.MonkeyPatch) -> None:
    requires = ["fastapi<0.151", "prefect>=3.8.8,<3.9", "no-such-package>=2", "s3fs>=2024; extra == 's3'"]
    monkeypatch.setattr(importlib.metadata, "requires", lambda _: requires)
    versions = {"fastapi": "0.151.0", "prefect": "3.8.8", "torch": "2.13.0+cpu"}

    def version(name: str) -> str:
        if name not in versions:
            raise importlib.metadata.PackageNotFoundError(name)
        return versions[name]

    monkeypatch.setattr(importlib.metadata, "version", version)
    broken = {c.name: c for c in doctor.check_packages() if c.state == "broken"}
    assert set(broken) == {"fastapi", "no-such-package"}  # an extra that was not asked for is no lack
    assert broken["fastapi"].found == "0.151.0" and "fastapi<0.151" in broken["fastapi"].remedy
    assert broken["no-such-package"].found == "not installed"


def test_a_local_build_of_a_required_version_is_right(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(importlib.metadata, "requires", lambda _: ["torch>=2.11"])
    monkeypatch.setattr(importlib.metadata, "version", lambda _: "2.13.0+cpu")
    assert [c.state for c in doctor.check_packages()] == ["fine"]


def test_the_mirror_is_listed_or_its_fault_said(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert doctor.check_mirror().state == "fine"
    monkeypatch.setenv("FORTIFAI_DATA", str(tmp_path / "nowhere"))
    assert doctor.check_mirror().state == "broken"
    monkeypatch.setenv("FORTIFAI_DATA", str(tmp_path))
    assert doctor.check_mirror().state == "broken"  # with a mirror the hub is not asked, and this one is empty
    (tmp_path / "gsm8k").mkdir()
    assert doctor.check_mirror() == Check("mirror", "fine", f"{tmp_path}: gsm8k")


def test_the_models_that_are_here_are_listed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FORTIFAI_MODELS", str(tmp_path / "nowhere"))
    assert doctor.check_models().state == "broken"
    monkeypatch.setenv("FORTIFAI_MODELS", str(tmp_path))
    assert "make models" in doctor.check_models().found
    (tmp_path / "owner" / "name").mkdir(parents=True)
    assert doctor.check_models() == Check("models", "fine", f"{tmp_path}: owner/name")


def test_a_configured_server_has_to_answer() -> None:
    from prefect.settings import PREFECT_API_URL, temporary_settings

    def refuse(url: str) -> bytes:
        raise urllib.error.URLError("refused")

    with temporary_settings({PREFECT_API_URL: "http://prefect.test/api"}):
        good = doctor.check_server(lambda url: b'"3.8.8"')
        assert good == Check("server", "fine", "Prefect 3.8.8 at http://prefect.test/api")
        for bad in (refuse, lambda url: b"<html>another service</html>"):
            check = doctor.check_server(bad)
            assert check.state == "broken" and "PREFECT_API_URL" in check.remedy
    with temporary_settings(restore_defaults={PREFECT_API_URL}):
        assert doctor.check_server(refuse).state == "fine"  # none is configured: none has to answer


def test_little_memory_is_worth_a_note(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(doctor, "_memory", lambda: 10**9)
    check = doctor.check_machine()
    assert check.state == "note" and "runtime.workers=1" in check.remedy
