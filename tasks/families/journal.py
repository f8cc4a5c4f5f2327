"""What a stage of several generations has finished so far, in its workspace: a crash loses a few seconds."""

from __future__ import annotations

import json
import time
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

from fortifai_core.errors import ArtifactDamaged
from fortifai_core.families.base import Made
from storage.store import durable
from storage.tables.arrays import read_arrays, read_parameters, write_arrays, write_parameters

EVERY_SECONDS = 2.0


def sample_name(generation: int) -> str:
    """The file of what M_i drew."""
    return f"sample-{generation:05d}.parquet"


class Journal:
    """Generations in the order in which they are made. Their samples are files at once, the rest every few seconds.

    Args:
        folder: the stage's workspace.
        first: the first generation of the stage.
        keep: whether another attempt can go on from here; otherwise nothing but samples is written.
        every: seconds after which what was finished meanwhile is written.
    """

    def __init__(self, folder: Path, *, first: int, keep: bool = True, every: float = EVERY_SECONDS) -> None:
        self.folder, self.first, self.keep, self.every = folder, first, keep, every
        self.made: list[Made] = []  # without their samples, which need not fit into memory together
        self._written = 0
        self._since = time.monotonic()
        folder.mkdir(parents=True, exist_ok=True)
        if keep:
            self._read()

    def add(self, made: Made) -> None:
        """Take in the next generation."""
        if made.sample:
            write_arrays(self.folder / sample_name(made.generation), made.sample)
        self.made.append(replace(made, sample={}))
        if self.keep and time.monotonic() - self._since >= self.every:
            self._write()

    def sample(self, generation: int) -> dict[str, Any]:
        """What M_i drew; nothing for a class that draws inside."""
        path = self.folder / sample_name(generation)
        return read_arrays(path) if path.exists() else {}

    def _write(self) -> None:
        """The generations since the last time; the list of them comes last, so that what is listed is whole."""
        new = self.made[self._written :]
        name = f"made-{self.first + self._written:05d}"
        arrays = {f"{made.generation}/{key}": array for made in new for key, array in made.parameters.items()}
        write_parameters(self.folder / f"{name}.safetensors", arrays)
        listed = [asdict(replace(made, parameters={})) for made in new]
        durable.write_bytes(self.folder / f"{name}.json", json.dumps(listed).encode())
        self._written, self._since = len(self.made), time.monotonic()

    def _read(self) -> None:
        """What attempts before this one had written, as far as it follows without a gap."""
        for path in sorted(self.folder.glob("made-*.json")):
            try:
                arrays = by_generation(read_parameters(path.with_suffix(".safetensors")))
                generations = json.loads(path.read_bytes())
            except (ArtifactDamaged, ValueError):
                continue  # a gap: what is damaged is made again, or a run would fail for ever
            for listed in generations:
                if listed["generation"] == self.first + len(self.made):
                    self.made.append(Made(**{**listed, "parameters": arrays[listed["generation"]]}))
        self._written = len(self.made)


def by_generation(arrays: dict[str, Any]) -> dict[int, dict[str, Any]]:
    """Arrays named `3/weight` by their generations and names."""
    parameters: dict[int, dict[str, Any]] = {}
    for name, array in arrays.items():
        generation, _, own = name.partition("/")
        parameters.setdefault(int(generation), {})[own] = array
    return parameters
