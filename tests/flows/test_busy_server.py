"""A run's own Prefect server that is busy for longer than a moment: it is asked again, until it has time."""

from __future__ import annotations

import os
import subprocess
import sys

# As the command line sets Prefect up; a server that is busy a hundred times, each as ours says it, but sooner again.
ASK = """
import asyncio
from flows.embedded import quiet_environment
quiet_environment()
import httpx
from prefect.client.base import PrefectHttpxAsyncClient

left = [100]

def answer(request):
    if left[0]:
        left[0] -= 1
        return httpx.Response(503, headers={"retry-after": "0.001"})
    return httpx.Response(201, json={})

async def ask():
    transport = httpx.MockTransport(answer)
    async with PrefectHttpxAsyncClient(transport=transport, base_url="http://server", enable_csrf_support=False) as one:
        return await one.post("/task_runs/")

print(asyncio.run(ask()).status_code)
"""


def test_a_server_that_is_busy_a_hundred_times_is_asked_again() -> None:
    environment = {name: value for name, value in os.environ.items() if name != "PREFECT_CLIENT_MAX_RETRIES"}
    done = subprocess.run([sys.executable, "-c", ASK], env=environment, capture_output=True, text=True, timeout=120)
    assert done.stdout.split() == ["201"], done.stderr
