"""Places that a command will write to, tried before anything is computed for them."""

from __future__ import annotations

import contextlib
import tempfile
from collections.abc import Iterator
from pathlib import Path

from fortifai_core.errors import InputError, within
from fortifai_core.parsing import local_path, said
from storage.store import durable


def file_to_write(option: str, path: Path, *, endings: tuple[str, ...]) -> Path:
    """The path of a file that can be written; nothing is left there by the trial.

    Raises:
        InputError: its name ends otherwise, it is a folder, or lies where nothing can be written.
    """
    with within(option):
        place = local_path(path)
    if not place.name.endswith(endings) or place.name in endings:
        raise InputError(option, str(path), f"name a file that ends in {' or '.join(endings)}")
    _try(option, place)
    return place


def folder_to_make(option: str, path: Path) -> Path:
    """The path of a folder that is not there yet and can be made.

    Raises:
        InputError: something is there already, or nothing can be made there.
    """
    with within(option):
        place = local_path(path)
    _try(option, place, new=True)
    return place


@contextlib.contextmanager
def whole_file(option: str, target: Path) -> Iterator[Path]:
    """Where to write a file that takes its place when the block ends well.

    Raises:
        InputError: it cannot be written.
    """
    try:
        with durable.replacing(target) as aside:
            yield aside
    except OSError as error:
        raise InputError(option, str(target), f"cannot be written ({said(error)}); name another place") from error


def _try(option: str, place: Path, *, new: bool = False) -> None:
    try:
        if new and (place.exists() or place.is_symlink()):
            raise InputError(option, str(place), "is there already; name a folder that does not exist yet")
        if place.is_dir():
            raise InputError(option, str(place), "is a folder; name a file in it")
        above = place.parent
        while not above.exists():
            above = above.parent
        with tempfile.NamedTemporaryFile(dir=above, prefix=".fortifai-"):
            pass
    except OSError as error:
        raise InputError(option, str(place), f"cannot be written ({said(error)}); name another place") from error
