"""Several processes for one stage, by torch's own launcher (torchrun): `launch` starts them, and hears what they say.

`python -m tasks.engine.launch` is that launcher in a process that dies with its parent; what it starts joins in by
`rank`. Nobody is left whichever of them is killed: torch ends the others when one dies, and the kernel ends children
whose parent is gone.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

from fortifai_core import errors
from tasks.engine.children import child_environment
from tasks.engine.context import Progress
from tasks.engine.messages import Send, die_with_parent, open_channel, send_error


def launch(module: str, folder: Path, *, processes: int, device: str, log: Path, progress: Progress) -> dict[str, Any]:
    """Run `python -m module folder` in so many processes of this machine; what the first of them sends as done.

    Args:
        device: `cpu`, where they share this process's threads; or the first GPU, of which each has one from there on.
        log: what they print.

    Raises:
        NonFiniteLoss, ArtifactDamaged: as one of them did.
        StageFailed: one of them failed otherwise, or died.
    """
    import torch

    environment = child_environment()
    if device == "cpu":
        environment["OMP_NUM_THREADS"] = str(max(1, torch.get_num_threads() // processes))
    else:
        first, count = int(device.rpartition(":")[2]), torch.cuda.device_count()
        visible = os.environ.get("CUDA_VISIBLE_DEVICES") or ",".join(map(str, range(count)))
        chosen = [visible.split(",")[(first + number) % count] for number in range(processes)]
        environment["CUDA_VISIBLE_DEVICES"] = ",".join(chosen)
    launcher_command = [sys.executable, "-m", "tasks.engine.launch", "--standalone", f"--nproc-per-node={processes}"]
    done: dict[str, Any] | None = None
    failures: list[dict[str, Any]] = []
    log.parent.mkdir(parents=True, exist_ok=True)
    with (
        log.open("ab") as printed,
        subprocess.Popen(
            [*launcher_command, f"--log-dir={folder}", "-m", module, str(folder)],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=printed,
            env=environment,
            text=True,
        ) as launcher,
    ):
        assert launcher.stdout is not None
        try:
            for line in launcher.stdout:
                message = json.loads(line)
                match message["event"]:
                    case "progress":
                        progress(message["done"], message["total"], message["unit"])
                    case "done":
                        done = message
                    case _:
                        failures.append(message)
            launcher.wait()
        except BaseException:
            launcher.kill()
            raise
    if launcher.returncode == 0 and done is not None:
        return done
    reason = min(failures, key=_by_reason, default=None)
    raise _failed(reason, processes=processes, code=launcher.returncode, log=log)


def _by_reason(failure: dict[str, Any]) -> int:
    """When one process ends, the others lose their connection: what says why comes first."""
    if failure.get("expected"):
        return 0  # raised on purpose
    if failure["event"] == "died":
        return 1 if failure["code"] < 0 else 3
    return 2


def _failed(reason: dict[str, Any] | None, *, processes: int, code: int, log: Path) -> errors.FortifaiError:
    if reason is not None and reason.get("expected"):
        kind = {kind.__name__: kind for kind in (errors.NonFiniteLoss, errors.ArtifactDamaged)}.get(reason["type"])
        return (kind or errors.StageFailed)(reason["message"])
    what = f"torch's launcher ended with code {code}"
    if reason is not None and reason["event"] == "died":
        ended = f"signal {-reason['code']}" if reason["code"] < 0 else f"code {reason['code']}"
        perhaps = " (out of memory?)" if reason["code"] == -9 else ""
        what = f"process {reason['rank']} of {processes} ended with {ended}{perhaps}"
    elif reason is not None:
        what = f"{reason['type']}: {reason['message']}"
    return errors.StageFailed(errors.one_line(f"{what}; log: {log}"))


def rank(serve: Callable[[Path, Send], None]) -> None:
    """The `main` of a launched module: serve the folder that it is given, and send what goes wrong."""
    die_with_parent()
    send = open_channel()
    try:
        serve(Path(sys.argv[1]), send)
    except Exception as error:  # noqa: BLE001 - sent to the parent, which raises it as StageFailed
        send_error(send, error)
        os._exit(1)  # at once: others may wait for this one in a collective operation


def main() -> None:
    """Torch's launcher, as its own command line has it; which process died is sent to the parent."""
    die_with_parent()
    from torch.distributed.elastic.multiprocessing.errors import ChildFailedError
    from torch.distributed.run import main as torchrun

    try:
        torchrun()
    except ChildFailedError as error:
        # one that a signal ended is why the others lost their connection, though torch may see them end at once
        killed = ((number, failure) for number, failure in error.failures.items() if failure.exitcode < 0)
        number, failure = next(killed, error.get_first_failure())
        died = {"event": "died", "rank": number, "code": failure.exitcode}
        print(json.dumps(died), flush=True)
        print(error, file=sys.stderr)
        sys.exit(1)


if __name__ == "__main__":
    main()
