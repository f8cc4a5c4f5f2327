"""`fortifai leads`: do the watch's signals warn before retention fails, and are they silent where it does not?

Every model of an experiment is probed beside M_0 of its own run, as a watch would that was started there.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import islice
from typing import TYPE_CHECKING

import numpy as np

from flows.tools.exporting import artifact_of, newest_text_of, whole_model
from flows.tools.watching import SEEN_ROWS, batch_of
from fortifai_core.errors import InputError
from storage.store.experiments import Experiment, StageRecord
from storage.store.store import ArtifactStore
from storage.tables import parquet

if TYPE_CHECKING:
    from fortifai_core.watch.probe import Size

OnModel = Callable[[str], None]


@dataclass(frozen=True)
class RunLeads:
    """One run.

    Attributes:
        failed: the first generation in which retention of split 0 was below the threshold; None where none was.
        alerts: by signal that was measured, the first generation in which it alerted; None where it never did.
        generations: models that were probed, M_0 not counted.
        noisy: by signal, how many of these alerted.
    """

    experiment: str
    arm: str
    seed: int
    retention: tuple[float, ...]
    failed: int | None
    alerts: dict[str, int | None]
    generations: int
    noisy: dict[str, int]


def leads_of(
    store: ArtifactStore,
    record: Experiment,
    *,
    threshold: float | None = None,
    size: Size | None = None,
    say: OnModel = lambda name: None,
) -> list[RunLeads]:
    """Probe every model of every run of an experiment.

    Args:
        threshold: of the retention of split 0; the experiment's own by default.
        say: told before each model is probed.

    Raises:
        InputError: it has no language models in the store with their weights, or no questions.
    """
    from transformers.utils import logging

    logging.disable_progress_bar()  # type: ignore[no-untyped-call]
    trained = [stage for stage in record.stages if stage.role == "train"]
    runs = dict.fromkeys((stage.arm, stage.seed) for stage in trained)
    if not trained:
        raise InputError("experiment", record.label, "it has no language models: name one that trains some")
    for stage in trained:
        whole_model(store, record, stage.kind, stage.key)
    limit = float(record.config["failure"]["threshold"]) if threshold is None else threshold
    return [_run(store, record, arm, seed, limit, size, say) for arm, seed in runs]


def _run(
    store: ArtifactStore,
    record: Experiment,
    arm: str | None,
    seed: int | None,
    threshold: float,
    size: Size | None,
    say: OnModel,
) -> RunLeads:
    from fortifai_core.watch.probe import Probe, Reading, Size
    from fortifai_core.watch.signals import NAMES, compare, limits_of
    from storage.tables.models import load_model, load_tokenizer

    of_run = [stage for stage in record.stages if (stage.arm, stage.seed) == (arm, seed)]
    models = sorted((s for s in of_run if s.role == "train"), key=lambda stage: stage.generation or 0)
    asked = sorted((s for s in of_run if s.role == "evaluate"), key=lambda stage: stage.generation or 0)
    kept = tuple(_retention(store, record, stage) for stage in asked if (stage.generation or 0) >= 0)
    corpus = artifact_of(store, record, "corpus", models[0].parents["corpus"])
    texts = list(parquet.iter_column(corpus.file("validation.parquet"), "text"))
    probe: Probe | None = None
    baseline: Reading | None = None
    limits = limits_of(None)
    alerts: dict[str, int | None] = {}
    noisy: dict[str, int] = {}
    for stage in models:
        say(f"{record.label} · {arm} · seed {seed} · M{stage.generation}")
        artifact = whole_model(store, record, stage.kind, stage.key)
        tokenizer = load_tokenizer(artifact.path / "tokenizer")
        base = whole_model(store, record, "model", stage.parents["base"]).path if "base" in stage.parents else None
        model = load_model(artifact.path, base=base)
        probe = probe or Probe(tokenizer, texts, size or Size(window_tokens=64))
        batch = batch_of(tokenizer, _seen(store, record, stage), tokens=probe.size.window_tokens)
        reading = probe.read(model, batch=batch, baseline=baseline, keep=baseline is None)
        generation = stage.generation or 0
        before = baseline.columns if baseline is not None else None
        for watched in compare(reading.columns, before, step=generation, limits=limits):
            name = watched.signal.name
            alerts.setdefault(name, None)
            noisy.setdefault(name, 0)
            if watched.alert:
                noisy[name] += generation > 0
                if alerts[name] is None:
                    alerts[name] = generation
        baseline = baseline or reading
    failed = next((i for i, share in enumerate(kept) if share < threshold), None)
    ordered = {name: alerts[name] for name in NAMES if name in alerts}
    return RunLeads(record.label, arm or "", seed or 0, kept, failed, ordered, len(models) - 1, noisy)


def _retention(store: ArtifactStore, record: Experiment, stage: StageRecord) -> float:
    evaluation = artifact_of(store, record, stage.kind, stage.key)
    share = evaluation.manifest.metrics.get("kr-split-0")
    if share is None:
        raise InputError("experiment", record.label, "it asks no questions about split 0: nothing says when it failed")
    return float(share)


def _seen(store: ArtifactStore, record: Experiment, stage: StageRecord) -> list[str]:
    """Text that the model was trained on."""
    return list(islice(parquet.iter_column(newest_text_of(store, record, stage), "text"), SEEN_ROWS))


@dataclass(frozen=True)
class SignalLeads:
    """One signal over all runs.

    Attributes:
        failing: runs that failed after M_0, and in which it was measured.
        before, together, after, never: of these, where its first alert came before the failure, in the same
            generation, later, or not at all.
        lead: mean generations by which it came before the failure, where it alerted; with a 95% interval over runs.
        sound: runs that did not fail.
        false: of these, how many had an alert; `false_low` and `false_high` are the ends of the share's 95% interval.
    """

    signal: str
    failing: int
    before: int
    together: int
    after: int
    never: int
    lead: float
    lead_low: float
    lead_high: float
    sound: int
    false: int
    false_low: float
    false_high: float

    @property
    def verdict(self) -> str:
        """What may be said of it from these runs; a rule, not an opinion."""
        if not self.failing:
            return "no run failed"
        if self.before + self.together == 0:
            return "does not warn"
        if self.sound and self.false == self.sound:
            return "alerts whether or not it fails"
        if self.before > self.failing / 2:
            return "warns in time"
        return "alerts with the failure, not before" if self.before == 0 else "warns in some runs"


def signal_leads(runs: Sequence[RunLeads]) -> list[SignalLeads]:
    """Over all runs. Those that were beyond the threshold at M_0 never learned, and count in neither."""
    from scipy.stats import binomtest

    from fortifai_core.outcomes.resampling import bootstrap_totals

    failing = [run for run in runs if run.failed]
    sound = [run for run in runs if run.failed is None]
    table = []
    for name in dict.fromkeys(name for run in runs for name in run.alerts):
        told = [(run.failed or 0, run.alerts[name]) for run in failing if name in run.alerts]
        gaps = [failed - alert for failed, alert in told if alert is not None]
        columns = np.array([(float(gap), 1.0) for gap in gaps])
        lead = bootstrap_totals(columns, lambda totals: totals[:, 0] / totals[:, 1]) if gaps else None
        silent = [run for run in sound if name in run.alerts]
        false = sum(run.alerts[name] is not None for run in silent)
        share = binomtest(false, len(silent)).proportion_ci() if silent else None
        table.append(
            SignalLeads(
                name,
                failing=len(told),
                before=sum(gap > 0 for gap in gaps),
                together=sum(gap == 0 for gap in gaps),
                after=sum(gap < 0 for gap in gaps),
                never=len(told) - len(gaps),
                lead=lead.estimate if lead else float("nan"),
                lead_low=lead.low if lead else float("nan"),
                lead_high=lead.high if lead else float("nan"),
                sound=len(silent),
                false=false,
                false_low=float(share.low) if share else float("nan"),
                false_high=float(share.high) if share else float("nan"),
            )
        )
    return table
