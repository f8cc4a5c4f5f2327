"""The task of a stage: what is looked up and not fetched, and a server that will not show how far it is."""

from __future__ import annotations

import asyncio
import threading
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest
from prefect.settings import PREFECT_API_URL, temporary_settings
from prefect.states import State

from artifacts import put, remote_store
from flows.load import load_experiment_config
from helpers import Recorder
from storage.store.store import ArtifactDamagedWarning, ArtifactStore
from tasks.engine.needs import manifest_of, missing_stages
from tasks.engine.pool import OnProgress, WorkerError, WorkerPool
from tasks.engine.prefect_tasks import look_up_or_build
from tasks.engine.session import Circumstances, Session, session
from tasks.engine.stages import Stage
from tasks.language.plan import Digests, plan_experiment

PLAN = plan_experiment(load_experiment_config("smoke"), Digests({}))
STAGE = next(stage for stage in PLAN.stages() if stage.role == "evaluate")


class Trainer:
    """A worker that says how far it is, and ends well or `fails`; where it `waits`, once nobody publishes that."""

    def __init__(self, *, waits: bool = False, fails: bool = False) -> None:
        self.waits, self.fails = waits, fails

    async def start(self) -> None:
        return

    async def build(self, stage: Stage, on_progress: OnProgress | None = None, **_: Any) -> dict[str, Any]:
        assert on_progress is not None
        on_progress(1, 2, "steps")
        async with asyncio.timeout(30):
            while self.waits and any("_publish_progress" in repr(task.get_coro()) for task in asyncio.all_tasks()):
                await asyncio.sleep(0.01)
        if self.fails:
            raise WorkerError("it failed", log=Path("log"), cause="ValueError")
        return {"found": False, "metrics": {"loss": 0.5}, "seconds": 1.0}

    async def stop(self) -> None:
        return


@contextmanager
def refusing_server() -> Iterator[str]:
    """The address of a server that answers every request with 422."""

    class Refuses(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.rfile.read(int(self.headers.get("content-length") or 0))
            self.send_response(422)
            self.send_header("content-length", "0")
            self.end_headers()

        do_POST = do_PATCH = do_GET

        def log_message(self, *_: Any) -> None:
            return

    with ThreadingHTTPServer(("127.0.0.1", 0), Refuses) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        try:
            yield f"http://127.0.0.1:{server.server_port}/api"
        finally:
            server.shutdown()
            thread.join()


def run(store: ArtifactStore, worker: Trainer, stage: Stage = STAGE) -> tuple[Any, Recorder]:
    """What the stage's task returns, or raises, and what the reporter was told."""
    recorder = Recorder()

    async def main() -> Any:
        with session(Session(PLAN, store, WorkerPool([worker]), recorder, Circumstances(1))):
            return await look_up_or_build(stage)

    try:
        return asyncio.run(main()), recorder
    except WorkerError as error:
        return error, recorder


@pytest.mark.filterwarnings("ignore:Artifact creation outside of a flow")
@pytest.mark.parametrize("fails", [False, True])
def test_progress_that_the_server_will_not_show_is_said_and_changes_nothing(tmp_path: Path, fails: bool) -> None:
    with refusing_server() as url, temporary_settings({PREFECT_API_URL: url}):
        outcome, recorder = run(ArtifactStore(tmp_path), Trainer(waits=True, fails=fails))
    if fails:
        assert isinstance(outcome, WorkerError) and str(outcome) == "it failed" and not recorder.built
    else:
        assert outcome == {"kind": STAGE.kind, "key": STAGE.key, "metrics": {"loss": 0.5}}
        assert recorder.built == [STAGE]
    (note,) = recorder.notes
    assert note.startswith(f"warning: the progress of {STAGE.label} could not be published: ") and "422" in note


def test_a_stage_that_a_remote_store_holds_is_found_without_its_files(tmp_path: Path) -> None:
    name = uuid.uuid4().hex
    one, two = (remote_store(tmp_path, name, machine) for machine in ("one", "two"))
    put(one, STAGE.kind, STAGE.key)
    never = Trainer(fails=True)
    state, recorder = run(two, never)
    assert isinstance(state, State) and state.name == "Cached" and recorder.found == [STAGE]
    manifest = manifest_of(two, STAGE.reference)
    assert manifest is not None and manifest == one.peek(STAGE.kind, STAGE.key)
    assert STAGE not in missing_stages(PLAN, two) and STAGE in missing_stages(PLAN, ArtifactStore(tmp_path / "none"))
    assert not (two.root / "artifacts").exists()
    # what people read next is fetched, and looked at to the last bit
    report = PLAN.report()
    put(one, report.kind, report.key)
    state, _ = run(two, never, report)
    assert isinstance(state, State)
    assert (two.root / "artifacts" / report.kind / report.key / "a.txt").read_text() == "hello"


def test_a_stage_that_is_damaged_in_a_remote_store_is_said_and_built(tmp_path: Path) -> None:
    name = uuid.uuid4().hex
    one, two = (remote_store(tmp_path, name, machine) for machine in ("one", "two"))
    put(one, STAGE.kind, STAGE.key)
    assert one.remote is not None
    one.remote.write(f"artifacts/{STAGE.kind}/{STAGE.key}/a.txt", b"hell")
    assert manifest_of(two, STAGE.reference) is None  # a look moves nothing
    assert one.remote.read(f"artifacts/{STAGE.kind}/{STAGE.key}/manifest.json") is not None
    with pytest.warns(ArtifactDamagedWarning, match="has 4 bytes, its manifest says 5"):
        outcome, recorder = run(two, Trainer())
    assert outcome["metrics"] == {"loss": 0.5} and recorder.built == [STAGE]
