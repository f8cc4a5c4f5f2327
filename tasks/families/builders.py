"""Builders of a family's stages: real data, M_i, its samples, its measures, the time-to-failure check."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pydantic import TypeAdapter

from fortifai_core.families.registry import AnyFamily, AnyMask, family_from_config
from storage.tables import parquet
from storage.tables.arrays import read_arrays, read_parameters, write_arrays, write_parameters

if TYPE_CHECKING:
    from fortifai_core.families.base import Arrays, Family, FamilyConfig, Mask
    from tasks.engine.build import Context

_FAMILY: TypeAdapter[Any] = TypeAdapter(AnyFamily)
_MASK: TypeAdapter[Any] = TypeAdapter(AnyMask)
DATA, PARAMETERS, SAMPLE, PREVIEW = "data.parquet", "parameters.safetensors", "sample.parquet", "preview.png"
STATE, CHAIN = "state.safetensors", "chain.parquet"


def family_config(context: Context) -> FamilyConfig:
    """The whole configuration of the family: the recipe's, for paths are in no key."""
    config: FamilyConfig = _FAMILY.validate_python(context.stage.recipe["family"])
    return config


def family_of(context: Context) -> Family:
    """The family itself, with the folder that it reads real data from where they come from outside."""
    from storage.sources.family_data import data_folder

    config = family_config(context)
    return family_from_config(config, folder=data_folder(config))


def _mask(context: Context) -> Mask:
    mask: Mask = _MASK.validate_python(context.stage.recipe["mask"])
    return mask


def build_data(context: Context) -> dict[str, Any]:
    """The real data: read where they come from outside, otherwise the family's own."""
    from storage.sources.family_data import load_data

    config, seed = family_config(context), context.stage.content["seed"]
    arrays = load_data(config) or family_of(context).real(seed=seed)
    return {"items": write_arrays(context.directory / DATA, arrays)}


def build_train(context: Context) -> dict[str, Any]:
    """M_i: fitted to what its parents hold: real data, samples, or both."""
    content, parents = context.stage.content, context.stage.parents
    parts = []
    for name in parents:
        if name == "data":
            parts.append(read_arrays(context.parent(name).file(DATA)))
        elif name.startswith("X_"):
            parts.append(read_arrays(context.parent(name).file(SAMPLE)))
    previous = read_parameters(context.parent("model").file(PARAMETERS)) if "model" in parents else None
    data = joined(parts)
    parameters, metrics = family_of(context).fit(
        data,
        mask=_mask(context),
        generation=content["generation"],
        seed=content["seed"],
        previous=previous,
        progress=context.progress,
    )
    write_parameters(context.directory / PARAMETERS, parameters)
    write_metrics(
        context, {name: float(value) for name, value in metrics.items()}, count=len(next(iter(data.values())))
    )
    return _finite(metrics)


def _finite(measured: Mapping[str, float]) -> dict[str, Any]:
    """For a manifest, which is JSON and knows no NaN; metrics.parquet has all of them."""
    return {name: float(value) for name, value in measured.items() if math.isfinite(value)}


def joined(parts: list[Arrays]) -> Arrays:
    """Data sets one after another: the arrays that all of them have (what a VAE draws has no label)."""
    import numpy as np

    names = [name for name in parts[0] if all(name in part for part in parts)]
    return {name: np.concatenate([part[name] for part in parts]) for name in names}


def build_sample(context: Context) -> dict[str, Any]:
    """What M_i draws: as many items as configured, nothing dropped."""
    content, config = context.stage.content, family_config(context)
    real = context.parent("data").manifest.metrics["items"]
    sample = family_of(context).sample(
        read_parameters(context.parent("model").file(PARAMETERS)),
        count=config.sample_count(int(real)),
        generation=content["generation"],
        seed=content["seed"],
    )
    return {"items": write_arrays(context.directory / SAMPLE, sample)}


def build_evaluate(context: Context) -> dict[str, Any]:
    """The measures of M_i, and a picture of what it draws."""
    from fortifai_core.families.pictures import preview

    content, config = context.stage.content, family_config(context)
    parameters = read_parameters(context.parent("model").file(PARAMETERS))
    sample = read_arrays(context.parent("sample").file(SAMPLE))
    real = read_arrays(context.parent("data").file(DATA))
    measured = family_of(context).measure(
        parameters,
        sample,
        real,
        generation=content["generation"],
        seed=content["seed"],
        first=read_parameters(context.parent("first").file(PARAMETERS)),
    )
    write_metrics(context, measured, count=len(next(iter(sample.values()))))
    preview(
        config,
        real=real,
        sample=sample,
        parameters=parameters,
        title=f"M{content['generation']}",  # not the arm's name: arms may share what is found by this key
        path=context.directory / PREVIEW,
    )
    return _finite(measured)


def build_segment(context: Context) -> dict[str, Any]:
    """Generations `first` to `last` of a chain: fitted, sampled and measured, for all replicates at once."""
    import numpy as np

    from fortifai_core.families.gaussian.chain import run_chain, summary
    from fortifai_core.families.gaussian.config import GaussianConfig

    content, config, mask = context.stage.content, family_config(context), _mask(context)
    assert isinstance(config, GaussianConfig)
    first, count = content["first"], content["last"] - content["first"] + 1
    before = "before" in context.stage.parents
    state = read_parameters(context.parent("before").file(STATE)) if before else None
    chain = run_chain(config, mask, seed=content["seed"], generations=count, state=state, progress=context.progress)
    write_parameters(context.directory / STATE, chain.state)
    replicates = config.replicates
    columns: Arrays = {
        "generation": np.repeat(np.arange(first, first + count, dtype=np.int32), replicates),
        "replicate": np.tile(np.arange(replicates, dtype=np.int32), count),
        **{name: array.reshape(-1) for name, array in chain.arrays.items()},
    }
    write_arrays(context.directory / CHAIN, columns)
    measured = summary(chain.arrays, config=config, mask=mask, first=first)
    rows = (
        {"generation": first + i, "metric": name, "value": float(values[i]), "count": replicates}
        for i in range(count)
        for name, values in measured.items()
    )
    parquet.write_table(context.directory / "metrics.parquet", rows, schema="family-metrics")
    return _finite({name: float(values[-1]) for name, values in measured.items()})


def read_chain(path: Path) -> dict[int, Arrays]:
    """The arrays of a chain's segment by generation, each of shape (replicates,)."""
    import numpy as np

    columns = read_arrays(path)
    generations = columns.pop("generation")
    replicates = int(columns.pop("replicate").max()) + 1
    names = generations.reshape(-1, replicates)[:, 0]
    shaped = {name: array.reshape(-1, replicates) for name, array in columns.items()}
    return {int(i): {name: np.asarray(array[row]) for name, array in shaped.items()} for row, i in enumerate(names)}


def write_metrics(context: Context, measured: dict[str, float], *, count: int) -> None:
    """metrics.parquet: one row a measure of this generation."""
    rows = [
        {"generation": context.stage.content["generation"], "metric": name, "value": float(value), "count": count}
        for name, value in measured.items()
    ]
    if rows:
        parquet.write_table(context.directory / "metrics.parquet", rows, schema="family-metrics")


def build_failure(context: Context) -> dict[str, Any]:
    """Whether a measure lies beyond its threshold by now; `failed_in` is the first generation in which it does."""
    from fortifai_core.errors import ConfigError
    from fortifai_core.outcomes.family_failure import first_beyond

    content = context.stage.content
    values: dict[int, float] = {}
    for name in context.stage.parents:
        for row in parquet.read_rows(context.parent(name).file("metrics.parquet")):
            if row["metric"] == content["metric"]:
                values[row["generation"]] = row["value"]
    if not values:
        raise ConfigError("failure.metric", content["metric"], "was not measured; `fortifai sql` lists the metrics")
    outcome = first_beyond(values, threshold=content["threshold"], when=content["when"], relative=content["relative"])
    result: dict[str, Any] = {
        "status": outcome.status,
        "failed_in": outcome.failed_in,
        "threshold": outcome.threshold,
        "time-to-failure": outcome.describe(),
    }
    if outcome.generations is not None:
        result["generations"] = outcome.generations
    (context.directory / "failure.json").write_text(json.dumps({**result, "metric": content["metric"]}, indent=2))
    return result
