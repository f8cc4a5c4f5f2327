"""Turns at the workers, whatever the order of asking, giving back and giving up."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from typing import Any

from hypothesis import given
from hypothesis import strategies as st

from tasks.engine.pool import Turns

# what happens next: somebody of this rank asks; the n-th holder gives back; the n-th who waits gives up
EVENTS = st.lists(
    st.tuples(st.just("ask"), st.integers(0, 2))
    | st.tuples(st.sampled_from(["give back", "give up", "give back and give up"]), st.integers(0, 9)),
    max_size=40,
)


@given(st.integers(1, 3), EVENTS)
def test_no_worker_is_lost_or_shared_and_the_lowest_rank_that_waits_longest_is_served(
    workers: int, events: Sequence[tuple[str, int]]
) -> None:
    async def main() -> None:
        everyone: list[Any] = [f"worker {index}" for index in range(workers)]
        turns: Any = Turns(everyone)
        holding: list[str] = []
        waiting: list[tuple[int, int, asyncio.Task[str]]] = []  # rank, arrival, who waits
        for arrival, (event, number) in enumerate(events):
            before = sorted(waiting, key=lambda asked: asked[:2])
            gave_up = None
            if event == "ask":
                waiting.append((number, arrival, asyncio.create_task(turns.get(number))))
            if "give back" in event and holding:
                turns.put(holding.pop(number % len(holding)))
            if "give up" in event and before:
                # with a worker given back just before, the first in line gives up in the moment of being served
                gave_up = before[0 if "back" in event else number % len(before)]
                gave_up[2].cancel()
            for _ in range(4):
                await asyncio.sleep(0)
            served = [asked for asked in waiting if asked[2].done()]
            left = [asked for asked in before if asked is not gave_up]
            for asked in served:
                waiting.remove(asked)
                if not asked[2].cancelled():
                    holding.append(asked[2].result())
                    assert event == "ask" or asked is left[0]
            assert len(holding) == len(set(holding)), "a worker is one caller's"
            assert len(holding) == workers or not waiting, "nobody waits while a worker is free"
        for _, _, task in waiting:
            task.cancel()
        await asyncio.gather(*(task for _, _, task in waiting), return_exceptions=True)
        for worker in holding:
            turns.put(worker)
        assert sorted([await asyncio.wait_for(turns.get(0), 1) for _ in everyone]) == everyone

    asyncio.run(main())
