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
from storage.store.keys import file_digest
from storage.store.manifest import seal_of
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
        self._samples: dict[int, str] = {}  # digests, by generation
        self._written = 0
        self._since = time.monotonic()
        folder.mkdir(parents=True, exist_ok=True)
        if keep:
            self._read()

    def add(self, made: Made) -> None:
        """Take in the next generation."""
        if made.sample:
            path = self.folder / sample_name(made.generation)
            write_arrays(path, made.sample)
            self._samples[made.generation] = file_digest(path)
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
        parameters = self.folder / f"{name}.safetensors"
        write_parameters(parameters, arrays)
        body = {
            "made": [asdict(replace(made, parameters={})) for made in new],
            "samples": {str(made.generation): self._samples.get(made.generation) for made in new},
            "parameters": file_digest(parameters),
        }
        durable.write_bytes(self.folder / f"{name}.json", json.dumps({**body, "seal": seal_of(body)}).encode())
        self._written, self._since = len(self.made), time.monotonic()

    def _read(self) -> None:
        """What attempts before this one had written, as far as it follows without a gap."""
        for path in sorted(self.folder.glob("made-*.json")):
            parameters = path.with_suffix(".safetensors")
            try:
                body = json.loads(path.read_bytes())
                if body.pop("seal") != seal_of(body) or body["parameters"] != file_digest(parameters):
                    continue  # a gap: what is damaged is made again, or a run would fail for ever
                arrays = by_generation(read_parameters(parameters))
            except (ArtifactDamaged, OSError, ValueError, TypeError, KeyError, AttributeError):
                continue  # cut off, or of an older release
            for listed in body["made"]:
                generation = listed["generation"]
                sample = body["samples"][str(generation)]
                if generation == self.first + len(self.made) and self._has_sample(generation, sample):
                    self.made.append(Made(**{**listed, "parameters": arrays.get(generation, {})}))
                    if sample is not None:
                        self._samples[generation] = sample
        self._written = len(self.made)

    def _has_sample(self, generation: int, digest: str | None) -> bool:
        path = self.folder / sample_name(generation)
        return digest is None or (path.is_file() and file_digest(path) == digest)


def by_generation(arrays: dict[str, Any]) -> dict[int, dict[str, Any]]:
    """Arrays named `3/weight` by their generations and names."""
    parameters: dict[int, dict[str, Any]] = {}
    for name, array in arrays.items():
        generation, _, own = name.partition("/")
        parameters.setdefault(int(generation), {})[own] = array
    return parameters
