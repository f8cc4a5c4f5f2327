"""The environment of every Python process that this software starts. Imports nothing of it."""

from __future__ import annotations

import os
import sys
import sysconfig
from pathlib import Path

# The folder that relative paths start from, where a process must not start in it: Prefect puts a run's own on its path.
FOLDER = "FORTIFAI_FOLDER"
# The process id of who starts a child: 1 in a container.
PARENT = "FORTIFAI_PARENT"
ROOT = str(Path(__file__).resolve().parents[2])


def child_environment() -> dict[str, str]:
    """This process's environment, for a child whose module path holds no folder that nobody named.

    The current folder is not on it, in the child or in what the child starts: a `random.py` that lies there is not
    executed. What PYTHONPATH names is, as folders that stay the same wherever the child goes. A copy of this software
    that was never installed is named too.
    """
    named = [os.path.abspath(folder) for folder in os.environ.get("PYTHONPATH", "").split(os.pathsep) if folder]
    installed = {os.path.realpath(sysconfig.get_path(scheme)) for scheme in ("purelib", "platlib")}
    if ROOT in sys.path and ROOT not in (*named, *installed):
        named.append(ROOT)
    given = {"PYTHONSAFEPATH": "1", "PYTHONPATH": os.pathsep.join(named), PARENT: str(os.getpid())}
    environment = {**os.environ, **given}
    if not named:
        del environment["PYTHONPATH"]
    return environment
