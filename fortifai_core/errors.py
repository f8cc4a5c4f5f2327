"""The one tree of errors. Every message names the field or file, the value, and the remedy.

FortifaiError
├── InputError        bad configuration, file or argument: nothing was computed   (exit code 2)
│   ├── ConfigError       a field of the experiment
│   ├── DataError         a corpus, question file or mirror
│   │   └── Unusable          a file, row or dataset, as its reader sees it
│   └── StoreError        the artifact store cannot be used (not writable, full, unknown URL)
│       └── NewerRelease      what it holds was written by a newer release
├── ArtifactDamaged   an artifact's files do not match its manifest               (exit code 1)
├── StageFailed       a stage of a run stopped                                    (exit code 1)
└── NonFiniteLoss     the training loss became NaN or infinite                    (exit code 1)
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from contextlib import contextmanager

SHOWN = 200  # characters of a value


def shown(value: object) -> str:
    """A value as an error writes it: on one line, and not at any length."""
    try:
        text = repr(value)
    except (RecursionError, ValueError):  # nested without end; an integer of thousands of digits
        text = f"a {type(value).__name__}"
    return text if len(text) <= SHOWN else f"{text[:SHOWN]}…"


def one_line(text: str) -> str:
    """The same on one line, whatever separators of lines stand in it."""
    return " ".join(text.splitlines())


_USER = re.compile(r"(?<=://)([^/\s:@]*):[^/\s]*@")
_QUERY = re.compile(r"([?&][^=&\s]*(?:pass|pwd|secret|token|key|sig|credential)[^=&\s]*=)[^&\s]+", re.IGNORECASE)


def without_secrets(text: str) -> str:
    """URLs in a text without the passwords and tokens in them.

    >>> without_secrets("s3://me:secret@bucket/x?token=abc&y=1")
    's3://me:***@bucket/x?token=***&y=1'
    """
    return _QUERY.sub(r"\1***", _USER.sub(r"\1:***@", text))


class FortifaiError(Exception):
    """Root of all errors raised on purpose. The command line prints it on one line, without a traceback."""

    exit_code = 1


class InputError(FortifaiError):
    """Something the user can put right before any compute is spent.

    Args:
        field: dotted name of the field, or path of the file.
        value: what was found there.
        remedy: what to do instead.
    """

    exit_code = 2

    def __init__(self, field: str, value: object, remedy: str) -> None:
        self.field, self.value, self.remedy = field, value, remedy
        super().__init__(field, value, remedy)

    def __str__(self) -> str:
        return without_secrets(one_line(f"{self.field} = {shown(self.value)}: {self.remedy}"))


class ConfigError(InputError):
    """A field of the experiment's configuration is missing, unknown or out of bounds."""


class DataError(InputError):
    """A corpus, question file or local mirror cannot be used as it is."""


class Unusable(DataError):
    """A file, a row of one, or a dataset cannot be used as it is. Its reader knows the place, `within` the field.

    Args:
        place: the file with its line or row, or the dataset.
        remedy: what is wrong with it, and what to do instead.
        field: which field names it, as far as that is known.
    """

    def __init__(self, place: object, remedy: str, field: str = "") -> None:
        super().__init__(field, place, remedy)
        self.args = (place, remedy, field)

    def __str__(self) -> str:
        return super().__str__() if self.field else one_line(f"{self.value}: {self.remedy}")


@contextmanager
def within(field: str) -> Iterator[None]:
    """Name the field in whatever is found `Unusable` in the block; blocks within blocks name it level by level."""
    try:
        yield
    except Unusable as error:
        path = f"{field}.{error.field}" if error.field else field
        raise Unusable(error.value, error.remedy, path) from error


class StoreError(InputError):
    """The artifact store cannot be used."""


class NewerRelease(StoreError):
    """A newer release wrote what the store holds. It is no damage: nothing is moved, rebuilt or left out."""


class ArtifactDamaged(FortifaiError):
    """An artifact's files are missing or do not match its manifest.

    Args:
        message: what is wrong, and where.
        file: the artifact's file that is wrong, by its name inside the artifact, where it is one file.
    """

    def __init__(self, message: str, *, file: str | None = None) -> None:
        self.file = file
        super().__init__(message)


class StageFailed(FortifaiError):
    """A stage of a run stopped with an error."""


class NonFiniteLoss(FortifaiError):
    """The training loss became NaN or infinite; raised before the optimizer takes the step."""
