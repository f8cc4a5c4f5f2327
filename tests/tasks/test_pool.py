"""Who gets a worker: what the next generation waits for goes before what only the report reads."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest

from flows.load import load_experiment_config
from tasks.engine.pool import WorkerPool
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
