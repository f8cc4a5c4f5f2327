"""A whole experiment with its store on an S3 server: what a local store holds, whoever dies meanwhile."""

from __future__ import annotations

import json
import re
import signal
import subprocess
import time
from pathlib import Path

import pytest

from arena import EXPERIMENTS
from helpers import cli, digests, start_cli
from object_storage import ObjectStorage
from storage.store.store import ArtifactStore

pytestmark = [pytest.mark.long, pytest.mark.timeout(900)]
Digests = dict[str, dict[str, str]]


def command(*more: str) -> list[str]:
    preset, settings = EXPERIMENTS["language"]
    return ["run", preset, *(part for setting in (*settings, *more) for part in ("--set", setting))]


SLOWER = "training.epochs=60"


def results(machine: Path, store: str) -> Digests:
    """Digests of everything in a store, which is looked at as a machine of its own; of a report its table."""
    opened = ArtifactStore(store, cache=machine / "looking") if "://" in store else ArtifactStore(machine / store)
    assert opened.verify().damaged == []
    return {
        address: {name: digest for name, digest in files.items() if name != "report.html"}
        for address, files in digests(opened).items()
    }


@pytest.fixture(scope="module")
def local(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A machine with a local store, in which the experiment ran undisturbed."""
    machine = tmp_path_factory.mktemp("local")
    cli(machine, "store", *command())
    return machine


@pytest.fixture(scope="module")
def slower(tmp_path_factory: pytest.TempPathFactory) -> Digests:
    """What the experiment that takes longer gives in a local store."""
    machine = tmp_path_factory.mktemp("slower")
    cli(machine, "store", *command(SLOWER))
    return results(machine, "store")


def until_it_trains(machine: Path, process: subprocess.Popen[str]) -> None:
    """Until the training of a generation has written a checkpoint and goes on."""
    deadline = time.monotonic() + 240
    while not any((machine / "cache").glob("*/work/model-*/trainer/*/digests.json")):
        assert process.poll() is None and time.monotonic() < deadline, process.communicate()
        time.sleep(0.02)


def test_an_experiment_gives_on_s3_what_it_gives_in_a_local_store(
    s3_server: ObjectStorage, local: Path, tmp_path: Path
) -> None:
    store = s3_server.new_store()
    assert "report:" in cli(tmp_path / "one", store, *command())
    assert results(tmp_path, store) == results(local, "store")
    # another machine finds all of it, and asks it the same
    assert "0 stages computed" in cli(tmp_path / "two", store, *command())
    sql = ["sql", "select arm, generation, metric, split, value, key from metrics order by all", "--json"]
    assert json.loads(cli(tmp_path / "two", store, *sql)) == json.loads(cli(local, "store", *sql))
    assert "are sound, 0 were set aside" in cli(tmp_path / "two", store, "verify")


def test_the_half_of_the_demo_without_language_models(s3_server: ObjectStorage, tmp_path: Path) -> None:
    store = s3_server.new_store()
    for place in ("store", store):
        cli(tmp_path, place, "run", "gaussian-demo")
    assert results(tmp_path, store) == results(tmp_path, "store") != {}


def test_a_killed_run_is_resumed_to_the_same_results(s3_server: ObjectStorage, slower: Digests, tmp_path: Path) -> None:
    store = s3_server.new_store()
    process = start_cli(tmp_path / "one", store, *command(SLOWER))
    until_it_trains(tmp_path / "one", process)
    process.send_signal(signal.SIGKILL)
    output, _ = process.communicate(timeout=60)
    (resume,) = set(re.findall(r"go on with: fortifai (resume smoke-\w+)", output))
    assert results(tmp_path, store).items() < slower.items()  # whole artifacts, and no others
    assert "report:" in cli(tmp_path / "one", store, *resume.split())
    assert results(tmp_path, store) == slower


def test_two_machines_build_each_artifact_once(s3_server: ObjectStorage, local: Path, tmp_path: Path) -> None:
    store, machines = s3_server.new_store(), [tmp_path / "one", tmp_path / "two"]
    processes = [start_cli(machine, store, *command(), "--json") for machine in machines]
    ended = [process.communicate(timeout=600)[0] for process in processes]
    assert [process.returncode for process in processes] == [0, 0], ended
    built = [json.loads(text[text.rindex("\n{") :])["built"] for text in ended]
    made = results(tmp_path, store)
    assert made == results(local, "store")
    assert sum(built) == len(made), built


def outage(server: ObjectStorage, machine: Path, store: str, seconds: float) -> tuple[int, str]:
    """The storage is away for so long in the middle of a training; exit code and output of the run."""
    process = start_cli(machine, store, *command(SLOWER))
    try:
        until_it_trains(machine, process)
        server.gate.shut()
        end = time.monotonic() + seconds
        while process.poll() is None and time.monotonic() < end:
            time.sleep(0.1)
    finally:
        server.gate.open()
    output, _ = process.communicate(timeout=300)
    return process.returncode, output


def test_a_storage_that_is_away_for_a_moment_is_waited_for(
    s3_server: ObjectStorage, slower: Digests, tmp_path: Path
) -> None:
    store = s3_server.new_store()
    code, output = outage(s3_server, tmp_path / "one", store, seconds=2)
    assert code == 0, output
    assert "Traceback" not in output
    assert results(tmp_path, store) == slower


def test_a_storage_that_stays_away_ends_the_run_in_one_line_and_nothing_is_half_written(
    s3_server: ObjectStorage, slower: Digests, tmp_path: Path
) -> None:
    store = s3_server.new_store()
    code, output = outage(s3_server, tmp_path / "one", store, seconds=240)
    assert code != 0 and "Traceback" not in output, output
    assert re.search(r"cannot be used \(.*127\.0\.0\.1", output), output
    (resume,) = set(re.findall(r"go on with: fortifai (resume smoke-\w+)", output))
    assert results(tmp_path, store).items() < slower.items()
    assert "report:" in cli(tmp_path / "one", store, *resume.split())
    assert results(tmp_path, store) == slower


def test_a_storage_that_is_away_is_said_in_one_line(s3_server: ObjectStorage, tmp_path: Path) -> None:
    store = s3_server.new_store()
    s3_server.gate.shut()
    try:
        for arguments in (["ls"], ["sql", "select 1"], command()):
            process = start_cli(tmp_path, store, *arguments)
            output, _ = process.communicate(timeout=240)
            assert process.returncode == 2 and "cannot be used" in output, output
            assert "Traceback" not in output
    finally:
        s3_server.gate.open()
    assert ArtifactStore(store, cache=tmp_path / "looking").ls() == []
