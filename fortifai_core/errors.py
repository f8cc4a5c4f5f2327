"""The one tree of errors. Every message names the field or file, the value, and the remedy.

FortifaiError
├── InputError        bad configuration, file or argument: nothing was computed   (exit code 2)
│   ├── ConfigError       a field of the experiment
│   ├── DataError         a corpus, question file or mirror
│   └── StoreError        the artifact store cannot be used (not writable, full, unknown URL)
├── ArtifactDamaged   an artifact's files do not match its manifest               (exit code 1)
├── StageFailed       a stage of a run stopped                                    (exit code 1)
└── NonFiniteLoss     the training loss became NaN or infinite                    (exit code 1)
"""

from __future__ import annotations


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
        return f"{self.field} = {self.value!r}: {self.remedy}"


class ConfigError(InputError):
    """A field of the experiment's configuration is missing, unknown or out of bounds."""


class DataError(InputError):
    """A corpus, question file or local mirror cannot be used as it is."""


class StoreError(InputError):
    """The artifact store cannot be used."""


class ArtifactDamaged(FortifaiError):
    """An artifact's files are missing or do not match its manifest."""


class StageFailed(FortifaiError):
    """A stage of a run stopped with an error."""


class NonFiniteLoss(FortifaiError):
    """The training loss became NaN or infinite; raised before the optimizer takes the step."""
