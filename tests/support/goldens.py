"""What this software computes, written down: `python tests/support/goldens.py` records it, a test compares.
`python tests/support/goldens.py arena share` records the keys of these presets only.

keys/PRESET.json  the key of every stage of every preset, with the digests of the data that they stand for
smoke.json        of the preset `smoke` on one thread: the loss of every training step, the log-probabilities of both
                  answers of every question, retention, drift, time to failure
masked.json       the same with a gamma so small that TCE masks much, and the aligned engine
classes.json      every measure of a short run of every other model class

A change of either is a change of results. Where one is meant, raise the version of the stage that changed, record
anew, and say so in the changelog.
"""

from __future__ import annotations

import json
import sys
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

GOLDEN = Path(__file__).parent.parent / "golden"
KEYS = GOLDEN / "keys"
MASKED = ("losses=[{type: tce, gamma: 0.0022}]", "regeneration.engine=aligned", "model.max_positions=512")
CLASSES = {
    "gaussian": ("family.samples=500", "family.replicates=7", "generations=12", "family.segment=5"),
    "gaussian-noise": ("family.samples=500", "family.replicates=7", "generations=4"),
    "gmm": ("seeds=[1]", "generations=3"),
    "zipf": ("seeds=[1]", "generations=3", "family.vocabulary=300", "family.documents=50", "family.length=100"),
    "vae": ("seeds=[1]", "generations=2", "family.epochs=2"),
    "diffusion": ("seeds=[1]", "generations=2", "family.epochs=2"),
}


def digests_of(preset: str) -> dict[str, str]:
    """Digests of what a preset reads. Of a dataset they need the mirror (FORTIFAI_DATA)."""
    from flows.load import load_any_config
    from fortifai_core.families.registry import FamilyExperiment
    from storage.sources.family_data import data_digests
    from storage.sources.sources import source_digests

    config = load_any_config(preset)
    return data_digests(config.family) if isinstance(config, FamilyExperiment) else source_digests(config.corpus)


def keys_of(preset: str, digests: dict[str, str]) -> dict[str, str]:
    """Run and label of every stage → kind and key, for data of these digests. Reads no data.

    Of the study's presets only the first seed's: the others' differ in nothing else.
    """
    from flows.load import load_any_config
    from fortifai_core.families.registry import FamilyExperiment
    from tasks.families.plan import plan_family
    from tasks.language.plan import Digests, plan_experiment

    config = load_any_config(preset)
    if preset.startswith("study-"):
        config = config.model_copy(update={"seeds": config.seeds[:1]})
    if isinstance(config, FamilyExperiment):
        plan: Any = plan_family(config, data_digests=digests)
    else:
        plan = plan_experiment(config, Digests(digests))
    keys: dict[str, str] = {}
    for stage in plan.uses():
        name = f"{stage.run} · {stage.label}"
        if stage.role != "report":  # a report may change its form; nobody's store depends on it
            while name in keys:  # shared stages of several seeds have one label
                name += " ′"
            keys[name] = f"{stage.kind} {stage.key}"
    return keys


def language_model(folder: Path, *overrides: str) -> dict[str, Any]:
    """Build every stage of `smoke` in this process, one after the other; what came out."""
    import torch
    from transformers import PreTrainedModel

    from flows.load import load_any_config
    from storage.tables import parquet
    from tasks.language.plan import Digests, plan_experiment

    losses: list[float] = []

    def note(module: Any, _inputs: Any, output: Any) -> None:
        if isinstance(module, PreTrainedModel) and module.training and getattr(output, "loss", None) is not None:
            losses.append(output.loss.item())

    found: dict[str, dict[str, Any]] = {"losses": {}, "scores": {}, "metrics": {}, "failure": {}}
    plan = plan_experiment(load_any_config("smoke", overrides), Digests({}))
    hook = torch.nn.modules.module.register_module_forward_hook(note)
    try:
        for stage, artifact in built(plan, folder):
            name = f"{stage.arm or 'shared'} · {stage.label}"
            files = {entry["name"] for entry in artifact.manifest.files}
            if losses:
                found["losses"][name] = list(losses)
                losses.clear()
            if "scores.parquet" in files:
                rows = parquet.read_rows(artifact.file("scores.parquet"))
                found["scores"][name] = {r["question"]: [r["logp_true"], r["logp_false"]] for r in rows}
            if "metrics.parquet" in files:
                rows = parquet.read_rows(artifact.file("metrics.parquet"))
                found["metrics"][name] = {
                    r["metric"] + ("" if r["split"] is None else f" · split {r['split']}"): r["value"] for r in rows
                }
            if "failure.json" in files:
                found["failure"][name] = json.loads(artifact.file("failure.json").read_text())
    finally:
        hook.remove()
    return found


def model_classes(folder: Path) -> dict[str, Any]:
    """Every measure of a short run of each of `CLASSES`: preset → arm and generation → measure → value."""
    from flows.load import load_any_config
    from storage.tables import parquet
    from tasks.families.plan import plan_family

    found: dict[str, dict[str, dict[str, float]]] = {}
    for preset, overrides in CLASSES.items():
        of_preset = found.setdefault(preset, {})
        config = load_any_config(preset, overrides)
        for stage, artifact in built(plan_family(config, data_digests={}), folder):
            if "metrics.parquet" in {entry["name"] for entry in artifact.manifest.files}:
                for row in parquet.read_rows(artifact.file("metrics.parquet")):
                    name = f"{stage.arm} · seed {stage.seed} · g{row['generation']}"
                    of_preset.setdefault(name, {})[row["metric"]] = row["value"]
    return found


def built(plan: Any, folder: Path) -> Iterator[tuple[Any, Any]]:
    """Every stage of a plan but the report, with its artifact, built on one thread."""
    import torch

    from fortifai_core.config.stages import Runtime
    from storage.store.store import ArtifactStore
    from tasks.engine.build import build

    store = ArtifactStore(folder)
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        for stage in plan.stages():
            if stage.role != "report":
                yield stage, build(stage, store, Runtime(), progress=lambda *_: None)[0]
    finally:
        torch.set_num_threads(threads)


COMPUTED: dict[str, Callable[[Path], dict[str, Any]]] = {
    "smoke": language_model,
    "masked": lambda folder: language_model(folder, *MASKED),
    "classes": model_classes,
}


def main() -> None:
    """Record all of it anew, or the keys of the presets that the command line names."""
    from flows.load import presets

    named = sys.argv[1:]
    KEYS.mkdir(parents=True, exist_ok=True)
    for preset in named or presets():
        digests = digests_of(preset)
        if any("@" in value for value in digests.values()):
            sys.exit(f"{preset} reads a dataset: point FORTIFAI_DATA at the mirror, so that its digests are known")
        recorded = {"digests": digests, "keys": keys_of(preset, digests)}
        (KEYS / f"{preset}.json").write_text(json.dumps(recorded, indent=1, ensure_ascii=False) + "\n")
    for name, compute in () if named else COMPUTED.items():
        with tempfile.TemporaryDirectory() as folder:
            text = json.dumps(compute(Path(folder)), indent=1, ensure_ascii=False)
        (GOLDEN / f"{name}.json").write_text(text + "\n")


if __name__ == "__main__":
    sys.path.insert(0, str(GOLDEN.parent.parent))
    main()
