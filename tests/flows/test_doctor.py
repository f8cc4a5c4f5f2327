"""The doctor: it sees what is broken, says what to do, and calls nothing broken that works."""

from __future__ import annotations

import importlib.metadata
import io
import sys
import tempfile
import urllib.error
from pathlib import Path

import pytest
from rich.console import Console

from flows.load import preset_text
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
        ours = importlib.metadata.version("prefect")
        good = doctor.check_server(lambda url: f'"{ours}"'.encode())
        assert good == Check("server", "fine", f"Prefect {ours} at http://prefect.test/api, client {ours}")
        newer = doctor.check_server(lambda url: b'"99.0.0"')
        assert newer.state == "fine" and "99.0.0" in newer.found and ours in newer.found
        older = doctor.check_server(lambda url: b'"2.20.0"')
        assert older.state == "note" and "older" in older.found and "update the server" in older.remedy
        assert doctor.check_server(lambda url: b'"no version"').state == "broken"
        for bad in (refuse, lambda url: b"<html>another service</html>"):
            check = doctor.check_server(bad)
            assert check.state == "broken" and "PREFECT_API_URL" in check.remedy
    with temporary_settings(restore_defaults={PREFECT_API_URL}):
        assert doctor.check_server(refuse).state == "fine"  # none is configured: none has to answer


def test_little_memory_is_worth_a_note(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(doctor, "_memory", lambda: 10**9)
    check = doctor.check_machine()
    assert check.state == "note" and "runtime.workers=1" in check.remedy


def server(**answers: object) -> doctor.Ask:
    """Answers as a Prefect server's."""
    empty: dict[str, object] = {"work_pools": [], "deployments": [], "concurrency_limits": []}
    return lambda path, body: {**empty, **answers}[path.strip("/").removesuffix("/filter")]


def found(**answers: object) -> dict[str, Check]:
    return {check.name: check for check in doctor.check_deployments(server(**answers))}


def test_a_server_without_deployments_is_no_fault() -> None:
    checks = found()
    assert checks["deployments"].state == "note" and "fortifai serve" in checks["deployments"].remedy
    assert checks["limits"] == Check("limits", "fine", "none") and "work pool" not in checks


@pytest.mark.parametrize(
    ("pool", "state", "remedy"),
    [
        ({"name": "fortifai", "type": "process", "status": "READY", "is_paused": False}, "fine", ""),
        ({"name": "fortifai", "type": "process", "status": "NOT_READY"}, "note", "prefect worker start"),
        ({"name": "fortifai", "type": "process", "status": "PAUSED", "is_paused": True}, "note", "work-pool resume"),
        ({"name": "another", "type": "process", "status": "READY"}, "broken", "work-pool create"),
    ],
)
def test_a_work_pool_that_starts_nothing_is_named(pool: dict[str, object], state: str, remedy: str) -> None:
    deployed = {"name": "tiny", "work_pool_name": "fortifai", "status": "READY"}
    checks = list(doctor.check_deployments(server(work_pools=[pool], deployments=[deployed])))
    check = next(c for c in checks if c.name == "work pool" and "fortifai" in c.found)
    assert check.state == state and remedy in check.remedy and bool(check.remedy) == (state != "fine")


def test_deployments_that_nothing_serves_are_named() -> None:
    served = {"name": "tiny", "work_pool_name": None, "status": "READY"}
    assert found(deployments=[served])["deployments"] == Check("deployments", "fine", "tiny")
    check = found(deployments=[served, {**served, "name": "gmm", "status": "NOT_READY"}])["deployments"]
    assert check.state == "note" and "gmm" in check.found and "tiny" not in check.found


def test_a_limit_that_is_all_taken_is_named() -> None:
    free = {"tag": "training", "concurrency_limit": 2, "active_slots": ["a"]}
    assert found(concurrency_limits=[free])["limits"] == Check("limits", "fine", "training: 2")
    check = found(concurrency_limits=[free, {"tag": "gpu", "concurrency_limit": 1, "active_slots": ["a"]}])["limits"]
    assert check.state == "note" and "gpu (1 of 1 taken)" in check.found and "reset" in check.remedy


def test_another_service_under_the_servers_address_is_told() -> None:
    (check,) = doctor.check_deployments(lambda path, body: {"detail": "not found"})
    assert check.state == "broken" and check.remedy


def test_a_store_on_two_filesystems_is_refused(tmp_path: Path) -> None:
    elsewhere = Path("/dev/shm")
    if not elsewhere.is_dir() or elsewhere.stat().st_dev == tmp_path.stat().st_dev:
        pytest.skip("needs a second filesystem")
    with tempfile.TemporaryDirectory(dir=elsewhere) as folder:
        (tmp_path / "artifacts").symlink_to(folder)
        check = doctor.check_store(str(tmp_path))
    assert check.state == "broken" and "different filesystems" in check.found and check.remedy


def test_an_experiment_is_weighed_against_this_machine(store_url: str, tmp_path: Path) -> None:
    check = doctor.check_experiment("smoke", store_url)
    assert check.state == "fine" and "it fits" in check.found and "GB of memory" in check.found, check
    large = tmp_path / "large.yaml"
    large.write_text(
        preset_text("smoke").replace("hidden_size: 32", "hidden_size: 65536").replace("layers: 2", "layers: 99")
    )
    check = doctor.check_experiment(str(large), store_url)
    assert check.state == "broken" and check.remedy
    assert doctor.check_experiment("no-such-preset", store_url).state == "broken"
    assert doctor.check_experiment("gaussian", store_url).state == "fine"
