"""From a preset's name or a YAML file, and `--set` overrides, to a checked configuration. No torch, no Prefect."""

from __future__ import annotations

import difflib
import json
import re
from collections.abc import Sequence
from functools import cache
from importlib import resources
from typing import Any, cast

from pydantic import ValidationError

from fortifai_core import parsing
from fortifai_core.config.experiment import ExperimentConfig
from fortifai_core.errors import ConfigError, shown, within
from fortifai_core.families.registry import FamilyExperiment
from fortifai_core.settings import Inconsistent


def presets() -> dict[str, str]:
    """Every preset's name and the first line of its file, which says what it is for."""
    folder = resources.files("flows") / "presets"
    purposes = {}
    for entry in sorted(folder.iterdir(), key=lambda e: e.name):
        if entry.name.endswith(".yaml"):
            first = entry.read_text(encoding="utf-8").splitlines()[0]
            purposes[entry.name.removesuffix(".yaml")] = first.removeprefix("#").strip()
    return purposes


def preset_text(name: str) -> str:
    """The YAML of a preset, comments included.

    Raises:
        ConfigError: there is none of that name.
    """
    known = presets()
    if name not in known:
        close = difflib.get_close_matches(name, known, n=1)
        hint = f"did you mean `{close[0]}`? " if close else ""
        raise ConfigError("preset", name, f"{hint}choose one of {', '.join(known)}, or give a YAML file")
    return (resources.files("flows") / "presets" / f"{name}.yaml").read_text(encoding="utf-8")


def load_experiment_config(source: str, overrides: Sequence[str] = ()) -> ExperimentConfig:
    """A preset (`tiny`) or a file (`mine.yaml`) on language models, with overrides such as `losses.1.gamma=0.8`.

    Raises:
        ConfigError: as `load_any_config`; or it is an experiment on another family.
    """
    config = load_any_config(source, overrides)
    if isinstance(config, FamilyExperiment):
        raise ConfigError("experiment", source, f"is one on the family {config.family.type}, not on language models")
    return config


def load_any_config(source: str, overrides: Sequence[str] = ()) -> ExperimentConfig | FamilyExperiment:
    """A preset or a file, on language models or (where it has a field `family`) on another family, with overrides.

    Raises:
        ConfigError: an unknown preset, a file that is not YAML, an unknown or impossible field.
    """
    if source.endswith((".yaml", ".yml")) or "/" in source:
        data = _read_file(source)
    else:
        data = parse_yaml(preset_text(source), field="preset", value=source)
    if not isinstance(data, dict):
        raise ConfigError("file", source, "holds no mapping of fields; see `fortifai init tiny`")
    for override in overrides:
        _apply(data, override)
    return validate(data)


def _read_file(source: str) -> Any:
    with within("file"):
        path = parsing.local_path(source)
    with parsing.refusing("file", source, "correct the path", error=ConfigError):
        if not path.is_file():
            raise ConfigError("file", source, "there is no such file; `fortifai init tiny > mine.yaml` makes one")
        try:
            text = parsing.read_config(path)
        except parsing.Malformed as error:
            raise ConfigError("file", source, str(error)) from error
    return parse_yaml(text, field="file", value=source)


def parse_yaml(text: str, *, field: str, value: str) -> Any:
    """The value of a YAML text that `field` = `value` names.

    Raises:
        ConfigError: as `fortifai_core.parsing.load_yaml` says.
    """
    try:
        return parsing.load_yaml(text)
    except parsing.Malformed as error:
        raise ConfigError(field, value, str(error)) from error


def benchmark_overrides(benchmarks: str | None, limit: int | None, fewshot: Sequence[str]) -> list[str]:
    """`--benchmarks blimp,gsm8k --limit 50 --fewshot gsm8k=2` as overrides of `evaluation`.

    Raises:
        ConfigError: a `--fewshot` that is not benchmark=number.
    """
    overrides = []
    if benchmarks is not None:
        names = [name.strip() for name in benchmarks.split(",") if name.strip()]
        overrides.append(f"evaluation.benchmarks={json.dumps(names)}")  # names, whatever YAML makes of their characters
    if limit is not None:
        overrides.append(f"evaluation.benchmark_limit={limit}")
    for setting in fewshot:
        name, equals, count = setting.partition("=")
        if not equals or not name.strip() or not re.fullmatch("[0-9]{1,9}", count.strip()):
            raise ConfigError("--fewshot", setting, "write it as benchmark=number, e.g. gsm8k=2")
        overrides.append(f"evaluation.benchmark_fewshot.{name.strip()}={count.strip()}")
    return overrides


def _apply(data: dict[str, Any], override: str) -> None:
    path, separator, raw = override.partition("=")
    if not separator or not path:
        raise ConfigError("--set", override, "write it as path=value, e.g. training.epochs=12")
    value = parse_yaml(raw, field="--set", value=override)
    here: Any = data
    parts = path.split(".")
    if len(parts) > parsing.MAX_DEPTH:
        raise ConfigError("--set", override, f"names more than {parsing.MAX_DEPTH} fields within fields")
    for depth, part in enumerate(parts):
        last = depth == len(parts) - 1
        name: Any = part
        if isinstance(here, list):
            if not re.fullmatch("[0-9]{1,6}", part) or int(part) >= len(here):
                raise ConfigError("--set", override, f"`{'.'.join(parts[:depth])}` has entries 0 to {len(here) - 1}")
            name = int(part)
        elif not isinstance(here, dict):
            raise ConfigError("--set", override, f"`{'.'.join(parts[:depth])}` has no fields of its own")
        if last:
            here[name] = value
        else:
            here = here[name] if isinstance(here, list) else here.setdefault(name, {})


def validate(data: dict[str, Any]) -> ExperimentConfig | FamilyExperiment:
    """The configuration, or one `ConfigError` for the first thing that is wrong with it."""
    kind = FamilyExperiment if "family" in data else ExperimentConfig
    try:
        return kind.model_validate(data)
    except ValidationError as error:
        raise config_error(error, kind, data) from error


def config_error(
    error: ValidationError, kind: type[ExperimentConfig] | type[FamilyExperiment], data: dict[str, Any]
) -> ConfigError:
    """Pydantic's findings about `data` as one line: the field, its value, what to do."""
    first = error.errors()[0]
    schema = _schema(kind)
    # pydantic puts the chosen alternative's `type` into the place, where a file has no such level
    unions = {d.get("properties", {}).get("type", {}).get("const") for d in schema.get("$defs", {}).values()}
    unions |= {"as-mask", "as-named"}
    location, here = list[str](), cast(Any, data)
    for part in first["loc"]:
        there = part in here if isinstance(here, dict) else isinstance(here, list) and part in range(len(here))
        if there or part not in unions:
            location.append(str(part)[:60])
            here = here[part] if there else None
    field = ".".join(location) or "experiment"
    value = first.get("input")
    if first["type"] == "extra_forbidden":
        remedy = "there is no such field" + _suggest(location, schema, kind)
    elif first["type"] == "value_error":
        cause = first["ctx"]["error"]
        if isinstance(cause, Inconsistent):
            return ConfigError(cause.field, cause.value, cause.remedy)
        remedy = str(cause)
    elif first["type"] == "list_type":
        given = "…" if value is None else shown(value).strip("'")
        remedy = f"give a list: [{given}]"
    else:
        remedy = first["msg"][0].lower() + first["msg"][1:]
    more = error.error_count() - 1
    return ConfigError(field, value, remedy + (f" (and {more} more)" if more else ""))


@cache
def _schema(kind: type[ExperimentConfig] | type[FamilyExperiment]) -> dict[str, Any]:
    return kind.model_json_schema()


def _suggest(
    location: Sequence[str], schema: dict[str, Any], kind: type[ExperimentConfig] | type[FamilyExperiment]
) -> str:
    names = {name for part in (schema, *schema.get("$defs", {}).values()) for name in part.get("properties", {})}
    close = difflib.get_close_matches(location[-1], names, n=1)
    shown = "gmm" if kind is FamilyExperiment else "tiny"
    return f"; did you mean `{close[0]}`?" if close else f"; `fortifai init {shown}` shows the fields"
