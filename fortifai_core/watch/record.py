"""What a watch has seen, on disk: a Parquet table, and the baseline beside it; each is replaced whole or not at all."""

from __future__ import annotations

import math
import os
import zipfile
from collections.abc import Callable, Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np

from fortifai_core.errors import InputError, Unusable
from fortifai_core.parsing import local_path, said
from fortifai_core.watch.probe import Reading
from fortifai_core.watch.reading import TopTokens
from fortifai_core.watch.signals import Watched

Row = dict[str, Any]


def row_of(watched: Watched, *, seconds: float, cost: float) -> Row:
    """One line of the table: value and change with their intervals, the limit, and whether it alerts.

    Args:
        seconds: what the whole probe took.
        cost: what all probes took until now, as a share of the training's time.
    """
    value, change = watched.value, watched.change
    return {
        "step": watched.step,
        "signal": watched.signal.name,
        "value": value.estimate,
        "low": value.low,
        "high": value.high,
        "baseline": watched.baseline,
        "change": None if change is None else change.estimate,
        "change_low": None if change is None else change.low,
        "change_high": None if change is None else change.high,
        "limit": watched.limit,
        "alert": watched.alert,
        "clusters": watched.clusters,
        "seconds": seconds,
        "cost": cost if math.isfinite(cost) else None,
    }


class Record:
    """The table of one training, `NAME.parquet`, and its baseline, `NAME.baseline.npz`.

    Args:
        path: of the table.

    Raises:
        InputError: pyarrow is missing, or nothing can be written there.
    """

    def __init__(self, path: str | Path) -> None:
        try:
            self.path = local_path(path, "to")
        except Unusable as error:
            raise InputError("to", str(path), error.remedy) from error
        if self.path.suffix != ".parquet" or self.path.is_dir():
            raise InputError("to", str(path), "name a file that ends in .parquet")
        if find_spec("pyarrow") is None:
            raise InputError("to", str(path), "writing Parquet needs pyarrow: install it, or leave this out")
        self.baseline_path = self.path.with_suffix(".baseline.npz")
        self._rows: list[Row] = []
        try:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            if not os.access(self.path.parent, os.W_OK):
                raise PermissionError(13, "Permission denied")
        except OSError as error:
            raise InputError("to", str(path), f"cannot be written ({said(error)}): name another place") from error

    def resume(self, step: int, digest: str) -> Reading | None:
        """Go on after a step: later rows are dropped. The baseline that was kept, or None where there is none.

        Args:
            digest: of the probe; what another probe measured is not gone on with.

        Raises:
            InputError: the files are another probe's, or damaged.
        """
        self._rows = []
        if step == 0:
            self.baseline_path.unlink(missing_ok=True)  # a training from the beginning has a baseline of its own
            return None
        if not self.baseline_path.exists():
            return None
        found, reading = self._read_baseline()
        if found != digest:
            remedy = "was measured on other text or in other sizes: go on with the same, or name another file"
            raise InputError("to", str(self.path), remedy)
        if self.path.exists():
            self._rows = [row for row in self._read_rows() if row["step"] <= step]
        return reading

    def alerting(self) -> set[str]:
        """The signals that alerted when they were last measured."""
        last = {row["signal"]: row["alert"] for row in self._rows}
        return {name for name, alert in last.items() if alert}

    def keep(self, baseline: Reading, digest: str) -> None:
        """Write the baseline."""
        arrays: dict[str, Any] = {f"of:{name}": columns for name, columns in baseline.columns.items()}
        if baseline.top is not None:
            arrays |= {"top-ids": baseline.top.ids, "top-log-p": baseline.top.log_p}

        def write(path: Path) -> None:
            with path.open("wb") as file:
                np.savez(file, digest=np.array(digest), **arrays)

        _replace(self.baseline_path, write)

    def add(self, rows: Sequence[Row]) -> None:
        """Write the table anew, with these rows at its end."""
        import pyarrow as pa
        import pyarrow.parquet as pq

        self._rows += rows
        kinds = {"step": pa.int64(), "signal": pa.string(), "alert": pa.bool_(), "clusters": pa.int64()}
        schema = pa.schema([(name, kinds.get(name, pa.float64())) for name in rows[0]])
        table = pa.Table.from_pylist(self._rows, schema=schema)
        _replace(self.path, lambda path: pq.write_table(table, path, compression="zstd"))

    def _read_rows(self) -> list[Row]:
        import pyarrow.parquet as pq

        try:
            rows: list[Row] = pq.read_table(self.path).to_pylist()
            return [row for row in rows if row["step"] >= 0 and row["signal"]]
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise self._damaged(self.path, error) from error

    def _read_baseline(self) -> tuple[str, Reading]:
        try:
            with np.load(self.baseline_path, allow_pickle=False) as file:
                arrays = {name: file[name] for name in file.files}
            top = TopTokens(arrays.pop("top-ids"), arrays.pop("top-log-p")) if "top-ids" in arrays else None
            digest = str(arrays.pop("digest"))
        except (OSError, ValueError, KeyError, EOFError, zipfile.BadZipFile) as error:
            raise self._damaged(self.baseline_path, error) from error
        return digest, Reading({name.removeprefix("of:"): columns for name, columns in arrays.items()}, top)

    def _damaged(self, path: Path, error: Exception) -> InputError:
        return InputError("to", str(path), f"cannot be read ({said(error)}): remove it, or name another file")


def _replace(path: Path, write: Callable[[Path], None]) -> None:
    """Write beside, sync, rename: whoever is killed in between leaves the old file."""
    aside = path.with_name(f".{path.name}.tmp")
    try:
        write(aside)
        with aside.open("rb") as file:
            os.fsync(file.fileno())
        aside.replace(path)
    finally:
        aside.unlink(missing_ok=True)
