"""Where a benchmark's data comes from and what stands for it in a key; no lm-eval needed to know that.

`blimp`, `hellaswag` and `gsm8k` are lm-eval's own definitions, on the hub's data or on the same files in the local
mirror. `hellaswag_text` is the mirror's text conversion of the whole HellaSwag validation split: its second sentences
are not capitalised as lm-eval does it, so its scores are not HellaSwag's, and its name is its own.
"""

from __future__ import annotations

import difflib
import importlib.metadata
import importlib.util
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from fortifai_core.errors import ConfigError, DataError, within
from storage.sources import hub, mirror


@dataclass(frozen=True)
class Data:
    """Splits of one dataset that a task reads: `shots` only where examples are shown, `items` always."""

    dataset: str
    config: str | None
    items: str
    shots: str | None = None


@dataclass(frozen=True)
class Known:
    """A benchmark whose data the mirror may hold: its task files in lm-eval (none: our own), its data by task."""

    name: str
    folder: str | None
    data: dict[str, Data]
    files: dict[str, str]
    fewshot: int = 0


def stock_folder() -> Path:
    """Where lm-eval keeps its task definitions.

    Raises:
        ConfigError: lm-eval is not installed.
    """
    spec = importlib.util.find_spec("lm_eval")
    if spec is None or spec.origin is None:
        raise ConfigError("evaluation.benchmarks", "lm-eval", "is not installed: pip install 'lm-eval>=0.4.9'")
    return Path(spec.origin).parent / "tasks"


def known(name: str) -> Known | None:
    """One of the benchmarks that the mirror can serve, or None."""
    match name:
        case "blimp":
            paths = sorted(path for path in (stock_folder() / "blimp").glob("*.yaml") if not path.name.startswith("_"))
            return Known(
                name,
                "blimp",
                {f"blimp_{path.stem}": Data("nyu-mll/blimp", path.stem, "train") for path in paths},
                {f"blimp_{path.stem}": path.name for path in paths},
            )
        case "hellaswag":
            data = Data("Rowan/hellaswag", None, "validation", shots="train")
            return Known(name, "hellaswag", {name: data}, {name: "hellaswag.yaml"})
        case "gsm8k":
            data = Data("openai/gsm8k", "main", "test", shots="train")
            return Known(name, "gsm8k", {name: data}, {name: "gsm8k.yaml"}, fewshot=5)
        case "hellaswag_text":
            return Known(name, None, {name: Data("hellaswag_text", None, "validation")}, {})
    return None


def describe(name: str, *, fewshot: int | None) -> dict[str, Any]:
    """What of a benchmark enters its key: version of the task, digests of its data; checked without computing.

    Raises:
        ConfigError: lm-eval knows no such task, or the mirror is needed and absent.
        DataError: the mirror lacks a file.
    """
    field = f"evaluation.benchmarks.{name}"
    found = known(name)
    if found is None:
        return {"version": _other_version(name), "data": {"hub": name}}
    if found.folder is None and mirror.root() is None:
        raise ConfigError(field, name, f"is a file of the local mirror: set {mirror.VARIABLE}, or use hellaswag")
    version = "1.0" if found.folder is None else _version(stock_folder() / found.folder)
    digests: dict[str, str] = {}
    for task, data in found.data.items():
        wanted = [data.items]
        shots = found.fewshot if fewshot is None else fewshot
        if shots:
            if data.shots is None:
                raise ConfigError(f"evaluation.benchmark_fewshot.{name}", shots, "it has no examples to show: use 0")
            wanted.append(data.shots)
        with within(field):
            own = hub.dataset_digests(data.dataset, data.config, wanted)
        missing = [split for split in wanted if f"mirror.{split}" not in own and "hub" not in own]
        if missing:
            raise DataError(field, missing, f"the local mirror lacks these splits of {data.dataset}")
        digests |= {f"{task}.{place}": digest for place, digest in own.items()}
    return {"version": version, "data": digests}


def mirror_rows(*, benchmark: str, name: str, fewshot: int, **_: Any) -> Any:
    """The data of one task from the mirror, as the `custom_dataset` of its lm-eval definition: split → dataset."""
    from datasets import Dataset

    found = known(benchmark)
    assert found is not None
    data = found.data[name]
    with within(f"evaluation.benchmarks.{benchmark}"):
        items = hub.load_dataset_rows(data.dataset, data.config, data.items, allow_part=True)
        result = {data.items: Dataset.from_list(items.rows)}
        if data.shots:
            # examples are drawn from the whole split: a part of it would show others than the stock definition
            rows = hub.load_dataset_rows(data.dataset, data.config, data.shots).rows if fewshot else []
            result[data.shots] = Dataset.from_list(rows or items.rows[:0])
    return result


def _version(folder: Path) -> str:
    """The version that the task definitions in a folder state (for BLiMP: of every paradigm, not of the group)."""
    for path in sorted(folder.glob("*template*")) + sorted(folder.glob(f"{folder.name}.yaml")):
        found = re.search(r"^\s+version:\s*([\w.]+)", path.read_text(encoding="utf-8"), re.MULTILINE)
        if found:
            return found[1]
    raise ConfigError("lm-eval", str(folder), "states no version of this task; use lm-eval 0.4.9 or newer")


def _other_version(name: str) -> str:
    """Of a task that only lm-eval knows: the release of lm-eval, whose definitions are part of it."""
    from lm_eval.tasks import TaskManager

    every = TaskManager().all_tasks
    if name not in every:
        near = difflib.get_close_matches(name, [*every, "hellaswag_text"], n=3)
        hint = f"did you mean {', '.join(near)}? " if near else ""
        raise ConfigError("evaluation.benchmarks", name, f"{hint}`lm-eval ls tasks` lists all there are")
    return f"lm-eval {importlib.metadata.version('lm_eval')}"
