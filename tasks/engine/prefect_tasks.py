"""The Prefect tasks: each finds its stage's artifact or has a worker build it, and returns a reference.

Our store is the authority on what exists. A stage that is found there ends in the state `Cached`, without any
result record of Prefect's; when its artifact is gone or damaged, the very same call builds it again.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Awaitable
from typing import Any

from prefect import task
from prefect.artifacts import acreate_progress_artifact, aupdate_progress_artifact
from prefect.client.schemas.objects import State
from prefect.states import Completed
from prefect.tasks import exponential_backoff

from fortifai_core.outside import markdown
from storage.store.manifest import Manifest, Removal
from tasks.engine.needs import manifest_of
from tasks.engine.plans import unique
from tasks.engine.pool import OnProgress, WorkerError
from tasks.engine.progress import StageProgress
from tasks.engine.session import Session, current_session
from tasks.engine.stages import Reference, Stage

TRANSIENT = ("ConnectionError", "ConnectTimeout", "ReadTimeout", "HfHubHTTPError", "OSError", "TimeoutError")
PROGRESS_EVERY_SECONDS = 3.0


def _outside_trouble(_task: Any, _run: Any, state: State[Any]) -> bool:
    """Retry only what an outside resource may have caused: never bad input, never a failed computation."""
    error = state.data if isinstance(state.data, BaseException) else None
    return isinstance(error, WorkerError) and error.cause in TRANSIENT


async def reference(task_run: Awaitable[Any], stage: Stage) -> dict[str, Any]:
    """Wait for a stage's task; its reference, whether the artifact was built or found."""
    await task_run
    return current_session().references[stage.reference]


async def _publish_progress(stage: Stage, progress: StageProgress, finished: asyncio.Event) -> None:
    """A progress artifact in the UI, for stages long enough to be watched; at the end it says that all is done."""
    artifact, over = None, False
    while not over:
        with contextlib.suppress(TimeoutError):
            await asyncio.wait_for(finished.wait(), PROGRESS_EVERY_SECONDS)
        over = finished.is_set()  # read once: it may be set while the server is being told of the step before
        if not progress.total or (over and artifact is None):
            continue
        percent, words = progress.percent, str(progress)
        if over:
            percent, words = 100.0, f"finished, {progress.total:,} {progress.unit}"
        text = f"{markdown(stage.label)} ({markdown(stage.arm or 'shared')}): {words}"
        if artifact is None:
            artifact = await acreate_progress_artifact(percent, description=text)
        else:
            await aupdate_progress_artifact(artifact, percent, description=text)


async def _build(stage: Stage, session: Session) -> dict[str, Any]:
    progress, finished = StageProgress(), asyncio.Event()

    def on_progress(done: int, total: int, unit: str) -> None:
        progress.tell(done, total, unit)
        session.reporter.progressed(stage, done, total, unit)

    session.reporter.started(stage)
    publisher = asyncio.create_task(_publish_progress(stage, progress, finished))
    try:
        outcome = await _from_whole_parents(stage, session, on_progress)
        finished.set()
        await asyncio.wait([publisher])
        return outcome
    finally:
        publisher.cancel()
        await asyncio.wait([publisher])
        if not publisher.cancelled() and (error := publisher.exception()) is not None:
            # a server only shows results: what it will not show is no failure of the stage
            session.reporter.noted(f"warning: the progress of {stage.label} could not be published: {error}")


async def _from_whole_parents(stage: Stage, session: Session, on_progress: OnProgress) -> dict[str, Any]:
    """Have a worker build the stage. What it finds damaged on the way is set aside: that is built anew first."""
    rebuilt = set[Reference]()
    again = session.pool.has_begun(stage)  # it may have failed before it was asked for
    while True:
        for parent, manifest in _not_whole(stage, session).items():
            known = unique(session.plan.uses())
            if parent in known:
                session.reporter.noted(f"{known[parent].label} is made again for {stage.label}: {manifest.removal}")
                await _built(known[parent])
        try:
            return await session.pool.build(stage, on_progress)
        except WorkerError as error:
            known = unique(session.plan.uses())
            parents = known.keys() & set(stage.parents.values()) - rebuilt
            missing = [reference for reference in parents if not session.store.has(*reference)]
            if error.cause != "ArtifactDamaged" or not (missing or again):
                raise
            again = False
            rebuilt.update(missing)
            for parent in missing:
                session.reporter.noted(f"warning: {known[parent].label} is missing or was damaged: it is built anew")
                await look_up_or_build(known[parent])


def _not_whole(stage: Stage, session: Session) -> dict[Reference, Manifest]:
    """The parents that the stage reads as a whole and out of which something was taken."""
    if not stage.spec.whole:
        return {}
    parents = {parent: manifest_of(session.store, parent) for parent in stage.parents.values()}
    return {parent: m for parent, m in parents.items() if m is not None and m.removed is not None}


async def look_up_or_build(stage: Stage) -> State[Any] | dict[str, Any]:
    """The reference `{"kind", "key", "metrics"}` of the stage's artifact; as a `Cached` state when it was there."""
    session = current_session()
    # what the pool began by itself is this run's own work, though it may be there by now
    looked_up = not session.pool.has_begun(stage)
    manifest = session.store.find_manifest(stage.kind, stage.key) if looked_up else None
    if manifest is not None and stage.spec.shown:  # whose files are read next, by people or for the terminal
        shown = session.store.find(stage.kind, stage.key, verify=True)
        manifest = shown.manifest if shown is not None else None
    if manifest is not None:
        session.circumstances.note(manifest)
        session.found.append(stage)
        session.reporter.finished(stage, found=True, seconds=0.0)
        reference = session.remember(stage, manifest.metrics)
        message = f"Found in the store: {stage.kind} {stage.key[:12]}"
        return Completed(name="Cached", message=message, data=reference)
    return await _built(stage)


async def _built(stage: Stage) -> dict[str, Any]:
    """The stage's reference, once a worker has built it or found that somebody else did."""
    session = current_session()
    before = manifest_of(session.store, stage.reference)
    outcome = await _build(stage, session)
    if before is not None and before.removed is not None:
        _compare(stage, before.removed, session)
    built_before = any(stage.reference == built.reference for built in session.built)
    if built_before:  # by another run of this experiment
        outcome = {**outcome, "found": True}
    elif not outcome["found"]:  # it may have been found before what it holds was looked at
        session.found[:] = [found for found in session.found if found.reference != stage.reference]
    seconds = 0.0 if outcome["found"] else float(outcome["seconds"])  # of building, not of waiting for a worker
    (session.found if outcome["found"] else session.built).append(stage)
    session.stage_seconds += seconds
    session.reporter.finished(stage, found=outcome["found"], seconds=seconds)
    return session.remember(stage, outcome["metrics"])


def _compare(stage: Stage, removed: Removal, session: Session) -> None:
    """Say where what was made again is not, to the last bit, what had been removed."""
    now = manifest_of(session.store, stage.reference)
    digests = {entry["name"]: entry["sha256"] for entry in now.files} if now else {}
    other = [entry["name"] for entry in removed["files"] if digests.get(entry["name"]) != entry["sha256"]]
    if other:
        session.reporter.noted(
            f"warning: {stage.label}, made again, differs from what {removed['by']} removed ({', '.join(other)}): "
            "other code, packages or hardware made it; what was computed from the former one stays as it is"
        )


def _task(name: str, what: str, *, tag: str = "", label: str = "{stage.label}", **options: Any) -> Any:
    """The task of one role, as the UI names and describes it; what it does follows from the stage that it is given."""
    options |= {"description": what, "tags": [tag or name], "task_run_name": label, "persist_result": False}
    return task(name=name, **options)(look_up_or_build)


prepare = _task(
    "prepare",
    "Read a corpus, train or fetch the tokenizer and the base model, cut the corpus into splits.",
    retries=3,
    retry_delay_seconds=exponential_backoff(backoff_factor=2),
    retry_jitter_factor=0.5,
    retry_condition_fn=_outside_trouble,
)
pool = _task("pool", "Make up the text of M_i of what several arms wrote, in stated shares.")
treat = _task("treat", "Treat the text that M_i is trained on: drop, repeat, edit or weigh documents.")
train = _task(
    "train", "Train M_i: from M_(i-1) on the newest version of every split, or a family on what the regime gives it."
)
regenerate = _task("regenerate", "Rewrite one split with M_i.")
evaluate = _task(
    "evaluate",
    "Ask M_i the questions of all splits seen so far, and its perplexity on real text; or take a family's measures.",
)
check_failure = _task(
    "time-to-failure",
    "Has the retention of split 0, or a family's measure, crossed its threshold by this generation?",
    tag="failure",
)
measure_drift = _task(
    "drift", "What became of the text that M_i rewrote, and how confident and how far from M_0 it is."
)
run_benchmark = _task(
    "benchmark", "One benchmark of lm-eval on M_i; its result is found again for the same weights, task and data."
)
write_report = _task("report", "One HTML file: the table, the curves, the intervals.", label="report")
