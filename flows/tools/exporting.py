"""Taking results out of the store: a model that `from_pretrained` loads, a data set that `load_dataset` loads."""

from __future__ import annotations

import contextlib
import shutil
import tempfile
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import yaml
from pydantic import TypeAdapter, ValidationError

from flows.hints import command_line
from flows.outputs import folder_to_make
from fortifai_core.config.arms import ArmSettings
from fortifai_core.config.loss import Loss
from fortifai_core.config.stages import Mixture, Reading, Regime, reading_of
from fortifai_core.corpus.schedule import SplitVersion, subsample_splits, text_shares, training_set
from fortifai_core.errors import InputError
from fortifai_core.outside import fenced, markdown, visible
from storage.store import durable
from storage.store.experiments import Experiment, StageRecord, load_experiment
from storage.store.manifest import Manifest
from storage.store.store import Artifact, ArtifactStore
from storage.tables.models import ADAPTER

_LOSS: TypeAdapter[Loss] = TypeAdapter(Loss)
BASE = -1  # the generation of the model before all others


def export_model(store: ArtifactStore, experiment: str, *, arm: str, seed: int, generation: int, target: Path) -> Path:
    """Copy M_generation of one run into a new folder, with its tokenizer and a model card.

    A LoRA adapter is merged into its base model, so that what is exported needs neither peft nor this software.

    Args:
        experiment: name, label or id of an experiment, or `latest`.
        generation: which model; -1 is the base model that the arm starts from.

    Returns:
        The folder: `AutoModelForCausalLM.from_pretrained` and `AutoTokenizer.from_pretrained` load it.

    Raises:
        InputError: no such experiment, arm, seed or generation (the message lists what there is), `target` is
            there already, or the artifact is not in the store (the message says which command builds it).
    """
    record = load_experiment(store, experiment)
    stage = model_stage(record, arm=arm, seed=seed, generation=generation)
    with _new_folder(target) as folder:
        artifact = whole_model(store, record, stage.kind, stage.key)
        if (artifact.path / ADAPTER).is_dir():
            base = whole_model(store, record, "model", stage.parents["base"])
            _write_merged(artifact, base, folder)
        else:
            for path in artifact.files():
                if path.parent == artifact.path:
                    shutil.copyfile(path, folder / path.name)
        for path in artifact.files("tokenizer/*"):
            shutil.copyfile(path, folder / path.name)
        (folder / "README.md").write_text(_model_card(store, record, stage, artifact), encoding="utf-8")
    return target


def export_dataset(
    store: ArtifactStore, experiment: str, *, arm: str, seed: int, generation: int, target: Path
) -> Path:
    """Write the text that M_generation of one run was trained on into a new folder: `data/*.parquet`, a data set card.

    Columns: document, split, version (0: real text, j: regenerated j times), text, tokens.

    Returns:
        The folder: `datasets.load_dataset` loads it.

    Raises:
        InputError: as `export_model`.
    """
    from storage.tables.exports import export_text

    record = load_experiment(store, experiment)
    stage = model_stage(record, arm=arm, seed=seed, generation=generation)
    if generation == BASE:
        raise InputError("--generation", generation, "the base model's text is in no split; choose 0 or above")
    reading = reading_of_arm(record, arm)
    treated = "treated" in stage.parents
    parts = [
        (
            version.split,
            version.version,
            treated_text_of(store, record, stage, n) if treated else text_of(store, record, stage, version),
        )
        for n, version in enumerate(training_set(reading, generation))
    ]
    with _new_folder(target) as folder:
        (folder / "data").mkdir()
        held = export_text(folder / "data", parts)
        rows = [f"| {text.split} | {text.version} | {text.documents} | {text.tokens} |" for text in held]
        card = _dataset_card(store, record, stage, rows, note=_read_in_part(reading, generation))
        (folder / "README.md").write_text(card, encoding="utf-8")
    return target


def export_report(store: ArtifactStore, record: Experiment, *, target: Path) -> Path:
    """Copy an experiment's report into a new folder: report.html, times.html, figures/ and tables/.

    Raises:
        InputError: there is no report yet, or `target` is there already.
    """
    from flows.local import read_report

    source = read_report(store, record)[1]
    with _new_folder(target) as folder:
        for page in ("report.html", "times.html"):
            if (source / page).is_file():  # reports of earlier releases have their times within
                shutil.copyfile(source / page, folder / page)
        for part in ("figures", "tables"):
            if (source / part).is_dir():
                shutil.copytree(source / part, folder / part)
    return target


def model_stage(record: Experiment, *, arm: str, seed: int, generation: int) -> StageRecord:
    """The stage that made the model, found step by step, so that the first wrong choice is the one named."""
    record.refuse_family("experiment", "`fortifai path KEY` names the folder of an artifact, its samples as Parquet")
    models = [stage for stage in record.stages if stage.role == "base"]
    if generation == BASE and models:
        started = {s.parents.get("model") for s in record.stages if (s.role, s.arm, s.generation) == ("train", arm, 0)}
        return next((model for model in models if model.key in started), models[0])
    models = [stage for stage in record.stages if stage.role == "train"]
    if not models:
        raise InputError("experiment", record.label, f"has no plan; `fortifai resume {record.label}` makes it anew")
    for field, value in (("arm", arm), ("seed", seed), ("generation", generation)):
        there = list(dict.fromkeys(getattr(stage, field) for stage in models))
        if value not in there:
            remedy = f"{record.label} has {', '.join(map(str, there))}"
            raise InputError(
                f"--{field}", value, remedy + (" (and -1, the base model)" if field == "generation" else "")
            )
        models = [stage for stage in models if getattr(stage, field) == value]
    return models[0]


def settings_of_arm(record: Experiment, arm: str | None) -> Mapping[str, Any]:
    """The recorded configuration as it is under an arm; as it stands where arms are losses."""
    own = next((one for one in record.config.get("arms", ()) if one["name"] == arm), None)
    return record.config if own is None else ArmSettings.model_validate(own).over(record.config)


def reading_of_arm(record: Experiment, arm: str | None) -> Reading:
    """What makes up the text of an arm's generations."""
    config = settings_of_arm(record, arm)
    mixture = config.get("mixture")
    return reading_of(Regime(config["regime"]), None if mixture is None else Mixture.model_validate(mixture))


def artifact_of(store: ArtifactStore, record: Experiment, kind: str, key: str) -> Artifact:
    artifact = store.read(kind, key)
    if artifact is None:
        going_on = command_line(f"resume {record.label}", store=store.url)
        remedy = f"is not in {store.name}; `{going_on}` builds it"
        raise InputError(kind, key[:12], remedy)
    if kind != "model":
        refuse_without_text(record, artifact.manifest)
    return artifact


def refuse_without_text(record: Experiment, manifest: Manifest) -> None:
    """Raise an `InputError` where an experiment's text was taken out, or never came along."""
    if manifest.removed is not None:
        remedy = f"removed it: `fortifai resume {record.label} --weights` makes it again"
        raise InputError(manifest.kind, manifest.key[:12], f"has no text, {manifest.removed['by']} {remedy}")


def whole_model(store: ArtifactStore, record: Experiment, kind: str, key: str) -> Artifact:
    """The model with its weights.

    Raises:
        InputError: it is not there, or its weights were removed; the message says which command makes them.
    """
    artifact = artifact_of(store, record, kind, key)
    if artifact.manifest.removed is not None:
        removed = f"has no weights, {artifact.manifest.removed['by']} removed them"
        raise InputError(kind, key[:12], f"{removed}: `fortifai resume {record.label} --weights` makes them again")
    return artifact


def treated_text_of(store: ArtifactStore, record: Experiment, stage: StageRecord, place: int) -> list[Path]:
    """The file of the text that stands in this place of what a train stage read, as its treatments left it."""
    from tasks.language.files import treated_file

    artifact = artifact_of(store, record, "treated", stage.parents["treated"])
    return [artifact.file(treated_file(place))] if artifact.has(treated_file(place)) else []


def text_of(store: ArtifactStore, record: Experiment, stage: StageRecord, version: SplitVersion) -> list[Path]:
    """The files of one split version that a train stage read."""
    if version.real:
        from tasks.language.files import split_file

        return [artifact_of(store, record, "corpus", stage.parents["corpus"]).file(split_file(version.split))]
    key = stage.parents[str(version)]
    kind = next((one.kind for one in record.stages if one.key == key), "split")
    return artifact_of(store, record, kind, key).files("part-*.parquet")


def newest_text_of(store: ArtifactStore, record: Experiment, stage: StageRecord) -> list[Path]:
    """The files of the newest version of split 0 that a train stage read, or of what it read instead."""
    texts = training_set(reading_of_arm(record, stage.arm), stage.generation or 0)
    newest = max([version for version in texts if version.split == 0] or texts)
    if "treated" in stage.parents:
        return treated_text_of(store, record, stage, texts.index(newest))
    return text_of(store, record, stage, newest)


@contextlib.contextmanager
def _new_folder(target: Path) -> Iterator[Path]:
    """A folder that becomes `target` when the block ends well, and is gone when it does not."""
    folder_to_make("target", target)
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        temporary = Path(tempfile.mkdtemp(prefix=f".{target.name}-", dir=target.parent))
    except OSError as error:
        raise InputError("target", str(target), f"cannot be written ({error.strerror or error})") from error
    try:
        folder = temporary / target.name
        folder.mkdir()  # with the usual permissions; the temporary folder is private
        with durable.naming_full_disk(target):
            yield folder
        folder.rename(target)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def _write_merged(artifact: Artifact, base: Artifact, folder: Path) -> None:
    from storage.tables.models import load_model

    load_model(artifact.path, base=base.path).merge_and_unload().save_pretrained(folder)


def _model_card(store: ArtifactStore, record: Experiment, stage: StageRecord, artifact: Artifact) -> str:
    name = "the base model" if stage.generation is None else f"{_run(stage)} · generation {stage.generation}"
    front = {"library_name": "transformers", "pipeline_tag": "text-generation", "tags": ["fortifai", "model-collapse"]}
    text = [
        "A model of a recursive-training experiment: trained on text of which older parts were rewritten by the models "
        "before it. It serves to study how knowledge is lost, and nothing else.",
        "",
        *_measured(store, record, stage),
    ]
    return _card(front, f"{record.name}: {name}", text, store, record, stage, created=artifact.manifest.created)


def _dataset_card(store: ArtifactStore, record: Experiment, stage: StageRecord, rows: list[str], *, note: str) -> str:
    front = {"configs": [{"config_name": "default", "data_files": "data/*.parquet"}], "tags": ["fortifai"]}
    title = f"{record.name}: the training text of {_run(stage)} · generation {stage.generation}"
    text = [
        "Version 0 is real text; version j was rewritten j times by the models of this run.",
        "",
        "| split | version | documents | tokens |",
        "|---|---|---|---|",
        *rows,
        "",
        *([note, ""] if note else []),
    ]
    return _card(front, title, text, store, record, stage)


def _read_in_part(reading: Reading, generation: int) -> str:
    """What a generation left out of its texts; nothing where it read all of them."""
    texts, shares = training_set(reading, generation), text_shares(reading, generation)
    if shares is not None:
        parts = [
            f"{share:.4g} of version {text.version} of split {text.split}"
            for share, text in zip(shares, texts, strict=True)
        ]
        return f"Of the training sequences that these make the model read a random share: {', '.join(parts)}."
    sampled = subsample_splits(reading) is not None and len(texts) > 1
    return "Of these the model read a random sample as large as one split." if sampled else ""


def _run(stage: StageRecord) -> str:
    return f"{stage.arm} · seed {stage.seed}"


def _card(
    front: dict[str, Any],
    title: str,
    text: list[str],
    store: ArtifactStore,
    record: Experiment,
    stage: StageRecord,
    *,
    created: str = "",
) -> str:
    """A card as the hub reads it: front matter, text, and where it all comes from."""
    config = yaml.safe_dump(record.config, sort_keys=False, allow_unicode=True)
    if visible(config) != config:  # YAML has escapes of its own for what is not seen
        config = yaml.safe_dump(record.config, sort_keys=False)
    lines = ["---", yaml.safe_dump(front, sort_keys=False).rstrip(), "---", "", f"# {markdown(title)}", "", *text]
    lines += ["## Origin", "", f"- experiment: {markdown(record.label)}", f"- artifact: {stage.kind} `{stage.key}`"]
    lines += [f"- made: {created}"] if created else []
    lines += _lineage(store, record, stage)
    return "\n".join([*lines, "", fenced(config, "yaml"), ""])


def _lineage(store: ArtifactStore, record: Experiment, stage: StageRecord) -> list[str]:
    """Generation, loss, synthetic share of the training text, and every model before this one."""
    if stage.generation is None:
        return ["- generation: none, the base model of all runs"]
    named = {one["name"] for one in record.config.get("arms", ())}
    losses = settings_of_arm(record, stage.arm)["losses"]
    loss = next((loss for loss in losses if stage.arm in named or _label(loss) == stage.arm), None)
    lines = [f"- generation: {stage.generation}"]
    lines += [f"- loss: {', '.join(f'{name} {value}' for name, value in loss.items())}"] if loss else []
    manifest = store.peek(stage.kind, stage.key)
    read = manifest.metrics.get("tokens-read") if manifest is not None else None
    if manifest is not None and read:
        synthetic = manifest.metrics["tokens-synthetic"]
        share = float(synthetic) / float(read)
        lines.append(f"- synthetic share of its training text: {share:.1%} ({synthetic:,} of {read:,} tokens)")
    models = {s.key: s for s in record.stages if s.role in ("base", "train")}
    chain = [stage]
    while (before := models.get(chain[0].parents.get("model", ""))) is not None:
        chain.insert(0, before)
    written = [f"{'base' if s.generation is None else f'M{s.generation}'} `{s.key[:12]}`" for s in chain]
    return [*lines, f"- lineage: {' → '.join(written)}"]


def _label(loss: dict[str, Any]) -> str | None:
    """The arm that a loss of a recorded configuration makes; None where this release does not know it."""
    with contextlib.suppress(ValidationError):
        return _LOSS.validate_python(loss).label
    return None


def _measured(store: ArtifactStore, record: Experiment, stage: StageRecord) -> list[str]:
    """The evaluation of this model, where the store has one."""
    place = (stage.arm, stage.seed, stage.generation)
    for other in record.stages:
        if other.role == "evaluate" and (other.arm, other.seed, other.generation) == place:
            manifest = store.peek(other.kind, other.key)
            if manifest is not None:
                rows = [f"| {markdown(name)} | {markdown(str(value))} |" for name, value in manifest.metrics.items()]
                return ["| measured | value |", "|---|---|", *rows, ""]
    return []
