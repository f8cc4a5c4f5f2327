"""What several test files share: the environment, a store of their own, and a Prefect server."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from hypothesis import settings

if TYPE_CHECKING:
    from object_storage import ObjectStorage

# the same examples every time, and however busy the machine is
settings.register_profile("fortifai", derandomize=True, deadline=None)
settings.load_profile("fortifai")

os.environ.setdefault("PREFECT_SERVER_ANALYTICS_ENABLED", "false")
os.environ.setdefault("PREFECT_LOGGING_TO_API_ENABLED", "false")
os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.pop("COLUMNS", None)  # each test says how wide its terminal is; set at import, a console keeps it for ever
os.environ.setdefault("PREFECT_CLIENT_MAX_RETRIES", "600")  # as flows.embedded, before Prefect is imported
# Without a GPU the Triton kernels are tested in triton's interpreter, which has to be said before its first import.
if not Path("/dev/nvidiactl").exists():
    os.environ.setdefault("TRITON_INTERPRET", "1")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Files that are allowed to take longest begin first: no process waits for one that another began at the end."""
    allowed: dict[Path, float] = {}
    for item in items:
        mark = item.get_closest_marker("timeout")
        allowed[item.path] = max(allowed.get(item.path, 0.0), float(mark.args[0]) if mark else 0.0)
    items.sort(key=lambda item: -allowed[item.path])  # the order within a file stays


@pytest.fixture
def store_url(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """An empty store, which is also the default one for the length of the test."""
    url = str(tmp_path / "store")
    monkeypatch.setenv("FORTIFAI_STORE", url)
    return url


@pytest.fixture(scope="session")
def prefect_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """One Prefect server, as `fortifai run` starts it, with a database of its own, for all tests that run flows."""
    from flows.access import client_settings
    from flows.embedded import server_url

    home = tmp_path_factory.mktemp("prefect")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PREFECT_HOME", str(home))
        patch.setenv("PREFECT_API_DATABASE_CONNECTION_URL", f"sqlite+aiosqlite:///{home}/prefect.db")
        from prefect.settings import PREFECT_API_URL, temporary_settings

        with (
            temporary_settings(restore_defaults={PREFECT_API_URL}),
            server_url(home / "server.log") as url,
            temporary_settings(client_settings(url)),
        ):
            yield


@pytest.fixture(scope="session")
def s3_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ObjectStorage]:
    """One S3 server for all tests of object storage; what is in it belongs to whoever made a place for it."""
    pytest.importorskip("moto.server")
    from object_storage import object_storage

    with object_storage(tmp_path_factory.mktemp("s3") / "server.log") as server, pytest.MonkeyPatch.context() as patch:
        for name, value in server.environment.items():
            patch.setenv(name, value)
        yield server
