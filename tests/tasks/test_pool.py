"""Who gets a worker: what the next generation waits for goes before what only the report reads."""

from __future__ import annotations

import asyncio
import os
from typing import Any

import pytest

from flows.load import load_any_config, load_experiment_config
from tasks.engine.pool import WorkerPool, devices_for, gpu_count, pool_size
from tasks.engine.stages import Stage
from tasks.language.plan import Digests, plan_experiment


class Idle:
    """A worker without a process: it notes what it is given and finishes at once."""

    def __init__(self, built: list[str]) -> None:
        self.built = built

    async def start(self) -> None:
        return

    async def build(self, stage: Stage, on_progress: Any = None, **_: Any) -> dict[str, Any]:
        self.built.append(stage.role)
        await asyncio.sleep(0)
        return {}

    async def stop(self) -> None:
        return


def pool(workers: int) -> tuple[WorkerPool, list[str]]:
    order: list[str] = []
    return WorkerPool([Idle(order) for _ in range(workers)]), order


def stages(*roles: str) -> list[Stage]:
    config = load_experiment_config("smoke", ["evaluation.benchmarks=[blimp]"])
    plan = plan_experiment(config, Digests({}, benchmarks={"blimp": {"version": "1", "data": {}}}))
    return [next(s for s in plan.stages() if s.role == role) for role in roles]


@pytest.mark.parametrize("workers", [1, 2])
def test_what_the_next_generation_waits_for_goes_before_benchmarks_and_drift(workers: int) -> None:
    async def main() -> list[str]:
        made, order = pool(workers)
        await made.build(stages("source")[0])  # the first one of all starts the workers
        order.clear()
        busy = [await made.turns.get(0) for _ in range(workers)]
        asked = stages("benchmark", "drift", "train", "benchmark", "regenerate", "evaluate")
        work = [asyncio.create_task(made.build(one)) for one in asked]
        await asyncio.sleep(0.01)
        for worker in busy:
            made.turns.put(worker)
        await asyncio.gather(*work)
        return order

    assert asyncio.run(main()) == ["train", "regenerate", "evaluate", "benchmark", "drift", "benchmark"]


def test_a_worker_handed_to_somebody_who_was_cancelled_is_not_lost() -> None:
    async def main() -> None:
        made, order = pool(1)
        worker = await made.turns.get(0)
        waits = [asyncio.create_task(made.build(one)) for one in stages("train", "drift")]
        await asyncio.sleep(0.01)
        made.turns.put(worker)  # handed to the first, which is cancelled before it can take it
        waits[0].cancel()
        await asyncio.gather(*waits, return_exceptions=True)
        assert order == ["drift"]
        assert await asyncio.wait_for(made.turns.get(0), 1) is worker

    asyncio.run(main())


def test_a_cancelled_wait_is_passed_over() -> None:
    async def main() -> None:
        made, order = pool(1)
        worker = await made.turns.get(0)
        waits = [asyncio.create_task(made.build(one)) for one in stages("train", "evaluate")]
        await asyncio.sleep(0.01)
        waits[0].cancel()
        await asyncio.sleep(0.01)
        made.turns.put(worker)
        await asyncio.gather(*waits, return_exceptions=True)
        assert order == ["evaluate"]

    asyncio.run(main())


@pytest.fixture
def machine(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """A machine of so many cores and GPUs as torch and the system say it."""
    cores, gpus = request.param
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: set(range(cores)), raising=False)
    monkeypatch.setattr("torch.cuda.is_available", lambda: gpus > 0)
    monkeypatch.setattr("torch.cuda.device_count", lambda: gpus)


SIX_RUNS = ["losses=[{type: cross-entropy}, {type: tce}]", "seeds=[0, 1, 2]"]


@pytest.mark.parametrize(
    ("machine", "device", "asked", "expected"),
    [
        ((16, 3), "cuda", 0, (3, 5)),  # a run a GPU, which shares the cores
        ((16, 8), "cuda", 0, (6, 2)),  # no more than there are runs
        ((2, 3), "cuda", 0, (2, 1)),
        ((16, 1), "cuda", 0, (1, 16)),
        ((16, 3), "cuda", 5, (5, 3)),  # as it is asked for, whatever is there
        ((16, 3), "cpu", 0, (6, 2)),
        ((16, 0), "auto", 0, (6, 2)),
    ],
    indirect=["machine"],
)
@pytest.mark.usefixtures("machine")
def test_there_are_no_more_workers_than_gpus_unless_they_are_asked_for(
    device: str, asked: int, expected: tuple[int, int]
) -> None:
    overrides = [f"runtime.device={device}", f"runtime.workers={asked}"]
    config = load_experiment_config("smoke", [*SIX_RUNS, *overrides])
    assert pool_size(config) == expected
    if device == "cuda":
        workers, gpus = expected[0], gpu_count(config.runtime)
        assert devices_for(config.runtime, workers) == [f"cuda:{index % gpus}" for index in range(workers)]
    masks = "arms=[{type: none}, {type: threshold, gamma: 0.8}]"
    family = load_any_config("gaussian", ["seeds=[0, 1, 2]", masks, *overrides, "runtime.threads=0"])
    assert pool_size(family) == expected
