"""A worker's parent: one that is process 1, as in a container, and one that died before the worker looked."""

from __future__ import annotations

import json
import subprocess
import sys

import pytest

from tasks.engine.children import PARENT, child_environment

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="who becomes the parent of an orphan is Linux's")

# What stands between a program and its end here: it is given a new parent, and only then becomes the worker.
ORPHANED = 'while [ "$(cut -d" " -f4 /proc/$$/stat)" = "$FORTIFAI_PARENT" ]; do sleep 0.01; done; exec "$@"'
# A process that takes in orphans starts one that starts a worker and dies; it tells how the worker ends, if it does.
TAKES_IN = """
import ctypes, json, os, signal, subprocess, sys, time
assert ctypes.CDLL(None).prctl(36, 1, 0, 0, 0) == 0  # PR_SET_CHILD_SUBREAPER
kept, to_worker = os.pipe()  # its standard input, which stays open
started = subprocess.run([sys.executable, "-c", sys.argv[1], *sys.argv[2:]], stdin=kept, capture_output=True)
worker, end = int(started.stdout), time.monotonic() + 20
ended, status = 0, 0
while not ended and time.monotonic() < end:
    ended, status = os.waitpid(worker, os.WNOHANG)
    time.sleep(0.01)
if not ended:
    os.kill(worker, signal.SIGKILL)
    os.waitpid(worker, 0)
print(json.dumps(os.waitstatus_to_exitcode(status) if ended else "lives"))
"""
STARTS_AND_DIES = """
import subprocess, sys
from tasks.engine.children import child_environment
worker = subprocess.Popen(sys.argv[1:], env=child_environment(), stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
print(worker.pid, flush=True)
"""
WORKER = [sys.executable, "-m", "tasks.engine.worker"]
# As process 1 of its own namespace: how a worker ends that is asked for nothing.
IS_THE_FIRST = """
import os, subprocess, sys
from tasks.engine.children import child_environment
assert os.getpid() == 1, os.getpid()
worker = subprocess.Popen(sys.argv[1:], env=child_environment(), stdin=subprocess.PIPE, stdout=subprocess.PIPE)
worker.communicate(timeout=60)
print(worker.returncode)
"""
# Takes note of its parent, as workers and launchers do, and then starts another such process by itself.
STARTS_ANOTHER = """
import subprocess, sys
from tasks.engine.messages import die_with_parent
die_with_parent()
if sys.argv[1:]:
    sys.exit(subprocess.run([sys.executable, "-c", *sys.argv[1:]]).returncode)
print("lives")
"""


def output_of(command: list[str]) -> str:
    done = subprocess.run(command, env=child_environment(), capture_output=True, text=True, timeout=90)
    assert done.returncode == 0, done.stderr
    return done.stdout


def namespaces() -> list[str]:
    """The command that makes a program process 1 of a new namespace."""
    command = ["unshare", "--user", "--map-root-user", "--pid", "--fork", "--kill-child"]
    try:
        subprocess.run([*command, "true"], check=True, capture_output=True, timeout=30)
    except (OSError, subprocess.CalledProcessError):
        pytest.skip("this system lets nobody make a namespace of processes")
    return command


def test_a_worker_whose_parent_died_before_it_looked_ends() -> None:
    """The kernel's signal comes too late for it, and its parent is any process that takes in orphans."""
    by_shell = ["sh", "-c", ORPHANED, "sh", *WORKER]
    assert json.loads(output_of([sys.executable, "-c", TAKES_IN, STARTS_AND_DIES, *by_shell])) == 1


def test_a_worker_of_process_1_lives() -> None:
    """It ends when its parent has no more to ask, and not before."""
    assert output_of([*namespaces(), sys.executable, "-c", IS_THE_FIRST, *WORKER]) == "0\n"


def test_who_the_parent_was_is_not_told_to_what_a_worker_starts() -> None:
    """Torch's launcher gives its own environment to the processes of a training."""
    assert PARENT in child_environment()
    assert output_of([sys.executable, "-c", STARTS_ANOTHER, STARTS_ANOTHER]) == "lives\n"
