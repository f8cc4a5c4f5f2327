"""Which code, packages and hardware made an artifact; and, on a hit, whether they have changed since.

None of it is part of a key: a comment changed in a module must not throw away a week of training. It is kept
in the manifest, and a difference (`drift`) is said aloud. To invalidate on purpose, raise the
`version` of the stage's spec.
"""

from __future__ import annotations

import hashlib
import importlib.metadata
import importlib.util
import os
import platform
import resource
import subprocess
import sys
from collections.abc import Iterable, Mapping
from functools import lru_cache
from pathlib import Path
from typing import Any

# The rooms whose code decides what an artifact of a kind looks like.
ROOMS: dict[str, tuple[str, ...]] = {
    "source": ("fortifai_core", "storage"),
    "pretraining": ("fortifai_core", "storage"),
    "tokenizer": ("fortifai_core", "tasks"),
    "corpus": ("fortifai_core", "storage", "tasks"),
    "model": ("fortifai_core", "kernels", "tasks"),
    "split": ("fortifai_core", "tasks"),
    "pooled": ("fortifai_core", "tasks"),
    "treated": ("fortifai_core", "tasks"),
    "evaluation": ("fortifai_core", "tasks"),
    "failure": ("fortifai_core",),
    "report": ("fortifai_core", "storage"),
    "family-data": ("fortifai_core", "storage"),
    "family-segment": ("fortifai_core", "tasks"),
    "family-failure": ("fortifai_core",),
}
PACKAGES = (
    "accelerate",
    "datasets",
    "numpy",
    "peft",
    "pyarrow",
    "safetensors",
    "scikit-learn",
    "scipy",
    "tokenizers",
    "torch",
    "transformers",
)
# Compared by `drift`. A revision alone changes nothing; seconds, memory and load always differ.
_COMPARED = ("sources", "packages", "python", "platform", "cpu", "torch_threads", "processes")


def rooms_of(kind: str) -> tuple[str, ...]:
    """The rooms that make artifacts of `kind`; an unknown kind is charged to all that compute."""
    return ROOMS.get(kind, ("fortifai_core", "kernels", "storage", "tasks"))


def collect(rooms: Iterable[str]) -> dict[str, Any]:
    """Provenance of what this process makes now; JSON types only, and no name of a host or user.

    Keys: `release` of this software, `git` {revision, dirty} or None, `sources` {room: sha256}, `packages`
    {name: version}, `python`, `platform`, `cpu`, `cpu_count`, `torch_threads` (None unless torch is loaded),
    `peak_rss_bytes`.
    """
    rooms = tuple(sorted(rooms))
    torch = sys.modules.get("torch")
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return {
        "release": release(),
        "git": _git(rooms),
        "sources": {room: source_hash(room) for room in rooms},
        "packages": dict(_packages()),
        "python": platform.python_version(),
        "platform": f"{platform.system()} {platform.machine()}",
        "cpu": _cpu(),
        "cpu_count": os.cpu_count(),
        "torch_threads": torch.get_num_threads() if torch is not None else None,
        "peak_rss_bytes": peak if sys.platform == "darwin" else peak * 1024,
    }


@lru_cache
def release() -> str | None:
    """The version of this software; None where it is not installed."""
    try:
        return importlib.metadata.version("fortifai")
    except importlib.metadata.PackageNotFoundError:
        return None


@lru_cache
def source_hash(room: str) -> str:
    """sha256 over names and contents of a room's .py files, wherever it is installed.

    Raises:
        ValueError: there is no such package.
    """
    digest = hashlib.sha256()
    root = _directory(room)
    for path in sorted(root.rglob("*.py"), key=lambda p: p.relative_to(root).as_posix()):
        content = path.read_bytes()
        digest.update(f"{path.relative_to(root).as_posix()}\0{len(content)}\0".encode())
        digest.update(content)
    return digest.hexdigest()


def drift(old: Mapping[str, Any], new: Mapping[str, Any]) -> list[str]:
    """What differs, one `field: old → new` each; what one side does not know is no difference.

    >>> drift({"python": "3.11.7"}, {"python": "3.12.1"})
    ['python: 3.11.7 → 3.12.1']
    """
    before, after = _flat(old), _flat(new)
    lines = [
        f"{name}: {_short(name, before[name])} → {_short(name, after[name])}"
        for name in sorted(before.keys() & after.keys())
        if before[name] is not None and after[name] is not None and before[name] != after[name]
    ]
    if any(line.startswith("sources.") for line in lines):
        was, now = (str((side.get("git") or {}).get("revision") or "")[:12] for side in (old, new))
        if was and now and was != now:
            lines.append(f"git.revision: {was} → {now}")
    return lines


def _flat(side: Mapping[str, Any]) -> dict[str, Any]:
    flat: dict[str, Any] = {}
    for name in _COMPARED:
        value = side.get(name)
        if isinstance(value, Mapping):
            flat.update({f"{name}.{inner}": v for inner, v in value.items()})
        else:
            flat[name] = value
    return flat


def _short(name: str, value: object) -> str:
    return str(value)[:12] if name.startswith("sources.") else str(value)


def _directory(room: str) -> Path:
    spec = importlib.util.find_spec(room)
    if spec is None or not spec.submodule_search_locations:
        raise ValueError(f"room = {room!r}: there is no such package")
    return Path(next(iter(spec.submodule_search_locations)))


@lru_cache
def _packages() -> tuple[tuple[str, str], ...]:
    versions = []
    for name in PACKAGES:
        try:
            # a local build's tag (`+cpu`) is a matter of the machine, not of the code
            versions.append((name, importlib.metadata.version(name).partition("+")[0]))
        except importlib.metadata.PackageNotFoundError:
            continue  # not installed: not used
    return tuple(versions)


@lru_cache
def _git(rooms: tuple[str, ...]) -> dict[str, Any] | None:
    """Revision of the checkout the rooms come from; None for an installed package or without git."""
    places = [_directory(room) for room in rooms]
    revision = _run_git(places[0], "rev-parse", "HEAD") if places else None
    if revision is None:
        return None
    if _run_git(places[0], "ls-files", "--error-unmatch", "__init__.py") is None:
        return None  # an environment inside some other project's checkout
    status = _run_git(places[0], "status", "--porcelain", "--", *(str(place) for place in places))
    return {"revision": revision, "dirty": bool(status)}


def _run_git(place: Path, *arguments: str) -> str | None:
    try:
        done = subprocess.run(
            ["git", "-C", str(place), *arguments], capture_output=True, text=True, timeout=10, check=True
        )
    except (OSError, subprocess.SubprocessError):
        return None
    return done.stdout.strip()


@lru_cache
def _cpu() -> str:
    info = Path("/proc/cpuinfo")
    if info.is_file():
        for line in info.read_text(encoding="utf-8", errors="replace").splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    return platform.processor() or platform.machine()
