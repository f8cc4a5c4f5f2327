"""What several test files do with experiments: remember what was built, run the command line, compare digests."""

from __future__ import annotations

import asyncio
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

from flows.prepare import Prepared
from storage.store.manifest import Manifest
from storage.store.store import ArtifactStore
from tasks.engine.session import Reporter
from tasks.engine.stages import Stage

# What every deployment names as its flow.
ENTRYPOINT = "flows.recursive.recursive_training"
FAMILY_ENTRYPOINT = "flows.family.recursive_family"
COMMAND = [sys.executable, "-m", "flows.cli"]
# two best logits (greedy), or a draw and an edge of its token's interval (sampling), that are closer than this in
# float32 may change places with another shape of batch
ROUNDING = {"greedy": 1e-4, "sample": 1e-5}


class Recorder:
    """A reporter that remembers."""

    def __init__(self) -> None:
        self.built: list[Stage] = []
        self.found: list[Stage] = []
        self.notes: list[str] = []

    def started(self, stage: Stage) -> None:
        """Only what was finished counts."""

    def progressed(self, stage: Stage, done: int, total: int, unit: str) -> None:
        assert 0 <= done <= total, stage

    def finished(self, stage: Stage, *, found: bool, seconds: float) -> None:
        (self.found if found else self.built).append(stage)

    def noted(self, message: str) -> None:
        self.notes.append(message)


def run_flow(prepared: Prepared, reporter: Reporter) -> dict[str, Any]:
    """The flow of an experiment to its end, with workers of its own; what it says of itself."""
    from flows.experiment import run_here
    from flows.workers import workers

    async def run() -> dict[str, Any]:
        async with workers(prepared) as pool:
            return await run_here(prepared, reporter, pool)

    return asyncio.run(run())


def shown_artifacts(experiment: str) -> dict[str, Any]:
    """What the server shows of an experiment: the newest artifact of each key, however many others it holds."""
    from prefect.client.orchestration import get_client
    from prefect.client.schemas.filters import ArtifactCollectionFilter, ArtifactCollectionFilterKey

    async def read() -> dict[str, Any]:
        of_experiment = ArtifactCollectionFilter(key=ArtifactCollectionFilterKey(like_=f"{experiment}-%"))
        async with get_client() as client:
            made = await client.read_latest_artifacts(artifact_filter=of_experiment, limit=200)
        assert len(made) < 200
        return {artifact.key: artifact.data for artifact in made}

    return asyncio.run(read())


def digests(store: ArtifactStore) -> dict[str, dict[str, str]]:
    """sha256 of every file of every artifact but those that say how long things took."""

    def files(manifest: Manifest) -> dict[str, str]:
        names = {entry["name"]: entry["sha256"] for entry in manifest.files}
        times = [name for name in names if manifest.kind == "report" and Path(name).stem == "times"]
        return {name: digest for name, digest in names.items() if name not in times}

    return {f"{m.kind}/{m.key}": files(m) for m in store.ls()}


def environment(tmp_path: Path, store: str) -> dict[str, str]:
    """For a command of its own: a store (unless it is a URL), its cache and a Prefect home below `tmp_path`."""
    inherited = {name: value for name, value in os.environ.items() if "DATABASE_CONNECTION_URL" not in name}
    return {
        **inherited,
        "FORTIFAI_STORE": store if "://" in store else str(tmp_path / store),
        "FORTIFAI_CACHE": str(tmp_path / "cache"),
        "PREFECT_HOME": str(tmp_path / "prefect"),
        "PREFECT_API_URL": "",
        "COLUMNS": "200",
    }


def cli(tmp_path: Path, store: str, *arguments: str) -> str:
    """`fortifai ARGUMENTS` to its end; what it printed."""
    done = subprocess.run(
        [*COMMAND, *arguments], env=environment(tmp_path, store), capture_output=True, text=True, timeout=240
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def start_cli(tmp_path: Path, store: str, *arguments: str) -> subprocess.Popen[str]:
    """The same, not waited for; what it prints to either stream is in its `stdout`."""
    return subprocess.Popen(
        [*COMMAND, *arguments],
        env=environment(tmp_path, store),
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )


def install_losses(
    folder: Path, package: str, source: str, offered: dict[str, str], *, group: str = "fortifai.losses"
) -> None:
    """What pip would leave in `folder` of a package whose entry points offer losses, or other code: name → function."""
    (folder / f"{package}.py").write_text(source)
    about = folder / f"{package}-1.0.dist-info"
    about.mkdir()
    (about / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {package}\nVersion: 1.0\n")
    lines = "".join(f"{name} = {package}:{function}\n" for name, function in offered.items())
    (about / "entry_points.txt").write_text(f"[{group}]\n{lines}")
