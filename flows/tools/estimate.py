"""What an experiment of language models will take: tokens, FLOPs, time, memory and disk, calibrated by a short probe.

Each stage that is not in the store is given seconds by what the probe measured, and the stages are laid out over the
workers as the flow does: a stage starts when its parents are there and a worker is free. Not counted are benchmarks,
and what else runs on the machine. A training that several processes share is given the time of one: on cores they
share the worker's, and what GPUs gain by sharing was not measured.
"""

from __future__ import annotations

import heapq
import json
import math
import os
import subprocess
import sys
from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

from flows.fit import bytes_a_weight, disk_for_models
from fortifai_core.config.experiment import Arm, ExperimentConfig
from fortifai_core.config.model import PretrainedModel, ScratchModel
from fortifai_core.config.stages import Regime
from fortifai_core.corpus.tokenization import encode_documents
from fortifai_core.errors import InputError, StageFailed
from fortifai_core.language.rewriting.blocks import TokenisedDocument, plan_blocks
from storage.store.store import ArtifactStore
from tasks.engine.needs import missing_stages
from tasks.engine.plans import Plan
from tasks.engine.pool import pool_size
from tasks.engine.stages import Reference, Stage
from tasks.language.plan import world_of
from tasks.language.probe import Probed
from tasks.language.sizes import Sizes, pretraining_texts, read_sizes, tokenizer_for
from tasks.language.specs import BaseSpec, DriftSpec, EvaluateSpec, RegenerateSpec, TrainSpec, TreatSpec

# Seconds that the server and the workers take to start, and that the orchestration takes for each stage.
START, EACH_STAGE = 12.0, 0.2
# Seconds of stages whose work is no model's.
FIXED = {"source": 1.0, "pretraining": 1.0, "corpus": 1.0, "tokenizer": 0.5, "report": 5.0}
CHECKPOINTS = 10
# How many times the drift of a generation takes a sample of `drift_sample` tokens through a model: three texts by
# two models, the held-out one by two more for the model KL.
DRIFT_PASSES = 8
TEXT_MEASURES = 0.4  # seconds, of the rest of a drift
# Fields of the training that change what a step takes; the probe trains on real text, so without a teacher.
STEP = ("batch_size", "gradient_accumulation", "sequence_length", "optimizer", "precision")
BYTES_PER_TOKEN = 8  # of a split on disk: text, ids and flags, compressed

# Dense peak FLOP/s as the vendors state them: float32 (on tensor cores where PyTorch's default uses none: without),
# bfloat16 or float16 with accumulation in float32.
GPUS: dict[str, tuple[float, float]] = {
    "h200": (67e12, 989e12),
    "h100": (67e12, 989e12),
    "a100": (19.5e12, 312e12),
    "l40s": (91.6e12, 362e12),
    "l4": (30.3e12, 121e12),
    "rtx-4090": (82.6e12, 165e12),
    "t4": (8.1e12, 65e12),
}
TRAINING_UTILISATION, INFERENCE_UTILISATION = 0.3, 0.05


@dataclass(frozen=True)
class Work:
    """Of one stage: tokens that go through the model, how many of them forward and backward, and seconds here."""

    role: str
    tokens: int
    trained: int
    seconds: float


@dataclass(frozen=True)
class Estimate:
    """What is still to be done.

    Attributes:
        stages: of the plan that are not in the store, by role.
        seconds: until all of it is there, on this machine; `by_role`: seconds of workers.
        training, inference: tokens through a model; flops: of products of matrices, attention's scores left out.
        memory: bytes of all workers at their peak, and of the processes that share their trainings.
        disk: bytes of what is added to the store.
        probed: of the first arm and those like it; `others`: of arms of another kind, by their names.
    """

    stages: dict[str, int]
    workers: int
    seconds: float
    by_role: dict[str, float]
    training: int
    inference: int
    training_flops: float
    inference_flops: float
    memory: float
    disk: float
    probed: Probed
    others: dict[str, Probed] = field(default_factory=dict)


@dataclass(frozen=True)
class Peak:
    """A GPU's stated peak, in FLOP/s, of the precision that the experiment computes in."""

    training: float
    inference: float
    words: str

    def seconds(self, estimate: Estimate) -> float:
        """Of the products alone, at the assumed utilisation: small models keep a GPU far less busy."""
        training = estimate.training_flops / (self.training * TRAINING_UTILISATION)
        return training + estimate.inference_flops / (self.inference * INFERENCE_UTILISATION)

    def in_words(self) -> str:
        return (
            f"by its stated peak ({self.words}) and an assumed utilisation of {TRAINING_UTILISATION:.0%} in training "
            f"and {INFERENCE_UTILISATION:.0%} in rewriting and scoring; small models reach less"
        )


def peak_of(gpu: str, config: ExperimentConfig) -> Peak:
    """The peak that a named GPU has for an experiment.

    Raises:
        InputError: it is not among `GPUS`.
    """
    if gpu not in GPUS:
        raise InputError("--gpu", gpu, f"choose {', '.join(GPUS)}")
    single, half = GPUS[gpu]
    weights = half if isinstance(config.model, PretrainedModel) and config.model.dtype == "bfloat16" else single
    asked = {config.regeneration.dtype, config.evaluation.dtype}
    inference = half if asked == {"bfloat16"} else single if "float32" in asked else weights
    training = half if config.training.precision == "bfloat16" else weights
    names = {single: f"float32 {single / 1e12:g} TFLOP/s", half: f"bfloat16 {half / 1e12:g} TFLOP/s"}
    return Peak(training, inference, ", ".join(dict.fromkeys([names[training], names[inference]])))


class Experiment:
    """An experiment's sizes, in tokens, as they are for one of its arms. Its corpus is read once for each world.

    Args:
        arm: the first, unless another is named.
    """

    def __init__(self, plan: Plan, store: ArtifactStore, arm: Arm | None = None) -> None:
        assert isinstance(plan.config, ExperimentConfig)
        self.plan, self.store = plan, store
        self.arm = arm or plan.config.resolved_arms()[0]
        self.config = self.arm.experiment
        self._worlds: dict[int, Sizes] = {}

    @cached_property
    def tokenizer(self) -> Any:
        """The arm's own: from the store, or made as the stage would."""
        from storage.tables import models

        corpus = next(run.data for run in self.plan.runs if run.arm == self.arm.label)
        assert corpus is not None
        stage = next(one for one in self.plan.shared if one.reference == corpus.parents["tokenizer"])
        found = self.store.find(stage.kind, stage.key)
        if found is not None:
            return models.load_tokenizer(found.path)
        return tokenizer_for(self.config.model, self.config.corpus, splits=self.config.splits)

    @cached_property
    def pretraining(self) -> list[str]:
        """The texts that a scratch model is made from."""
        return pretraining_texts(self.config.corpus, splits=self.config.splits)

    def tokens(self, texts: Sequence[str]) -> list[int]:
        return [len(ids) for ids in encode_documents(self.tokenizer, texts)]

    def sizes(self, seed: int) -> Sizes:
        """Of the corpus that the runs of a seed read."""
        world = world_of(self.config, seed)
        if world not in self._worlds:
            config = self.config
            self._worlds[world] = read_sizes(config.corpus, splits=config.splits, world=world, lengths=self.tokens)
        return self._worlds[world]

    @cached_property
    def question(self) -> tuple[int, int]:
        """Mean tokens of a question's context and of one of its answers."""
        asked = [question for split in self.sizes(self.config.seeds[0]).questions for question in split][:512]
        if not asked:
            return 32, 16
        context = self.tokens([question.context for question in asked])
        answers = self.tokens([answer for q in asked for answer in (q.true_answer, q.false_answer)])
        return round(sum(context) / len(asked)), max(1, round(sum(answers) / len(answers)))

    def probe(self) -> Probed:
        """The probe, as often side by side as there will be workers; the mean of what each measured.

        Raises:
            StageFailed: a probe failed, with the last line that it wrote.
        """
        config = self.config
        documents = [size for split in self.sizes(config.seeds[0]).documents for size in split][:64]
        workers, threads = pool_size(config)
        device = config.runtime.device
        if device == "auto":
            import torch

            device = "cuda" if torch.cuda.is_available() else "cpu"
        request = json.dumps(
            {
                "config": config.model_dump(mode="json"),
                "vocabulary": len(self.tokenizer),
                "documents": documents,
                "question": self.question,
                "device": device,
            }
        )
        environment = {**os.environ, "OMP_NUM_THREADS": str(threads), "MKL_NUM_THREADS": str(threads)}
        command = [sys.executable, "-m", "tasks.language.probe"]
        processes = [
            subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE,
                             text=True, env=environment)
            for _ in range(workers if device == "cpu" else 1)
        ]  # fmt: skip
        try:
            for process in processes:
                assert process.stdin is not None
                process.stdin.write(request)
                process.stdin.close()
                process.stdin = None
            answers = [process.communicate() for process in processes]
        finally:
            for process in processes:
                process.kill()
        for process, (_, errors) in zip(processes, answers, strict=True):
            if process.returncode:
                raise StageFailed(f"the probe of the model failed: {(errors.strip().splitlines() or ['killed'])[-1]}")
        found = [json.loads(answer) for answer, _ in answers]
        mean = {name: sum(one[name] for one in found) / len(found) for name in found[0]}
        counts = {name: int(mean[name]) for name in ("parameters", "trained", "products")}
        return Probed(**{**mean, **counts})

    def work(self, stage: Stage, probed: Probed) -> Work:
        """What one stage takes."""
        spec, config = stage.spec, self.config
        if isinstance(spec, BaseSpec):
            model = config.model
            assert isinstance(model, ScratchModel)
            tokens = sum(self.tokens(self.pretraining)) + len(self.pretraining)
            rows = math.ceil(tokens / model.pretraining_sequence_length)
            steps = math.ceil(math.ceil(rows / model.pretraining_batch_size) * model.pretraining_epochs)
            trained = round(tokens * model.pretraining_epochs)
            return Work(
                stage.role, 0, trained, steps * probed.base_step + probed.start + CHECKPOINTS * probed.checkpoint
            )
        if stage.role in FIXED or stage.seed is None:
            return Work(stage.role, 0, 0, FIXED.get(stage.role, probed.load))
        sizes = self.sizes(stage.seed)
        if isinstance(spec, TrainSpec):
            shares = spec.shares or (1,) * len(spec.text)
            texts = [sizes.documents[text.split] for text in spec.text]
            tokens = round(sum(n * (sum(of) + len(of)) for n, of in zip(shares, texts, strict=True)))
            if spec.regime == Regime.ACCUMULATE_SUBSAMPLE:
                tokens //= len(spec.text)
            training = spec.training
            rows = math.ceil(tokens / training.sequence_length)
            steps = math.ceil(math.ceil(rows / training.batch_size) * training.epochs)
            seconds = steps * probed.step + probed.start + probed.load + CHECKPOINTS * probed.checkpoint
            return Work(stage.role, 0, round(tokens * training.epochs), seconds)
        if isinstance(spec, TreatSpec):
            tokens = spec.treatment.passes * sum(sum(sizes.documents[t.split]) for t in spec.text)
            return Work(stage.role, tokens, 0, tokens * probed.score + probed.load + TEXT_MEASURES)
        if isinstance(spec, RegenerateSpec):
            documents = [
                TokenisedDocument(str(n), n, range(size)) for n, size in enumerate(sizes.documents[spec.text.split])
            ]
            due = sum(block.length for block in plan_blocks(documents, spec.regeneration))
            return Work(stage.role, round(due * probed.read), 0, due * probed.rewrite + probed.load)
        if isinstance(spec, EvaluateSpec):
            context, answer = self.question
            tokens = sum(len(sizes.questions[k]) for k in spec.splits) * 2 * (context + answer)
            tokens += sum(sizes.validation) if spec.perplexity else 0
            return Work(stage.role, tokens, 0, tokens * probed.score + probed.load)
        if isinstance(spec, DriftSpec):
            tokens = DRIFT_PASSES * spec.sample
            return Work(stage.role, tokens, 0, tokens * probed.score + 3 * probed.load + TEXT_MEASURES)
        return Work(stage.role, 0, 0, 0.0)

    def backward(self, probed: Probed) -> float:
        """Operations of a trained token's backward pass: twice the forward's, for weights and for inputs."""
        return (4.0 if probed.trained == probed.parameters else 2.0) * probed.products

    def disk(self, probed: Probed, missing: Sequence[Stage], *, at_once: int) -> float:
        """Bytes of the models and texts among these stages, all of which are this arm's."""
        roles = [stage.role for stage in missing]
        text = sum(
            sum(self.sizes(stage.seed).documents[stage.spec.text.split]) * BYTES_PER_TOKEN
            for stage in missing
            if isinstance(stage.spec, RegenerateSpec) and stage.seed is not None
        )
        counts = {"bases": roles.count("base"), "generations": roles.count("train"), "at_once": at_once}
        models = disk_for_models(self.config, parameters=probed.parameters, trained=probed.trained, **counts)
        return models + text


def kinds_of(plan: Plan) -> list[list[Arm]]:
    """The arms, those together of whose model one probe tells all: the same model, rewriting and size of a step."""
    assert isinstance(plan.config, ExperimentConfig)
    kinds: dict[str, list[Arm]] = {}
    for arm in plan.config.resolved_arms():
        told = arm.experiment.model_dump_json(include={"model": True, "regeneration": True, "training": set(STEP)})
        kinds.setdefault(told, []).append(arm)
    return list(kinds.values())


def estimate(plan: Plan, store: ArtifactStore) -> Estimate:
    """Probe the model of every kind of arm, and sum up what is not in the store."""
    config = plan.config
    assert isinstance(config, ExperimentConfig)
    missing, (workers, _) = missing_stages(plan, store), pool_size(config)
    kinds = kinds_of(plan)
    sized = [Experiment(plan, store, kind[0]) for kind in kinds]
    probes = [one.probe() for one in sized]
    place = {arm.label: number for number, kind in enumerate(kinds) for arm in kind}
    of_base = {run.generations[0].train.parents["model"]: place[run.arm] for run in reversed(plan.runs)}
    stages: list[list[Stage]] = [[] for _ in kinds]
    for stage in missing:  # what arms share without being a model of theirs counts as the first's
        stages[place[stage.arm] if stage.arm else of_base.get(stage.reference, 0)].append(stage)
    works = {
        stage.reference: one.work(stage, probed)
        for one, probed, of_kind in zip(sized, probes, stages, strict=True)
        for stage in of_kind
    }
    by_role: dict[str, float] = defaultdict(float)
    for work in works.values():
        by_role[work.role] += work.seconds
    at_once = min(workers, len(plan.runs))
    memory = max(memory_of(one.config, probed) for one, probed in zip(sized, probes, strict=True))
    training, inference, training_flops, inference_flops, disk = 0, 0, 0.0, 0.0, 0.0
    for one, probed, of_kind in zip(sized, probes, stages, strict=True):
        trained, read = (sum(getattr(works[s.reference], name) for s in of_kind) for name in ("trained", "tokens"))
        training, inference = training + trained, inference + read
        # a product of a weight and a value is two operations
        training_flops += trained * (2.0 * probed.products + one.backward(probed))
        inference_flops += 2.0 * probed.products * read
        disk += one.disk(probed, of_kind, at_once=at_once)
    seconds = laid_out(missing, {r: w.seconds + EACH_STAGE for r, w in works.items()}, workers=workers)
    names = [", ".join(arm.label for arm in kind) for kind in kinds]
    return Estimate(
        stages=dict(Counter(stage.role for stage in missing)),
        workers=workers,
        seconds=seconds + (START if missing else 0),
        by_role=dict(by_role),
        training=training,
        inference=inference,
        training_flops=training_flops,
        inference_flops=inference_flops,
        memory=memory * workers,
        disk=disk,
        probed=probes[0],
        others=dict(zip(names[1:], probes[1:], strict=True)),
    )


def memory_of(config: ExperimentConfig, probed: Probed) -> float:
    """Bytes of a worker at its peak: each process that shares a training has all of what one has, and its own rows.

    The worker, which waits for them, goes on holding the weights.
    """
    if config.runtime.launcher == "single":
        return probed.memory
    return probed.memory * config.runtime.processes + probed.parameters * bytes_a_weight(config)


def laid_out(stages: Sequence[Stage], seconds: Mapping[Reference, float], *, workers: int) -> float:
    """When the last stage ends, if each starts as soon as its parents have ended and a worker is free.

    Of several that may start, those go first that other stages wait for, then in the plan's order.

    Args:
        stages: parents before children; a parent that is not among them is there already.
    """
    order = {stage.reference: (stage.spec.waits, number) for number, stage in enumerate(stages)}
    waiting = {s.reference: {p for p in s.parents.values() if p in order} for s in stages}
    children: dict[Reference, list[Reference]] = defaultdict(list)
    for reference, parents in waiting.items():
        for parent in parents:
            children[parent].append(reference)
    ready = [(order[r], r) for r, parents in waiting.items() if not parents]
    heapq.heapify(ready)
    running: list[tuple[float, tuple[bool, int], Reference]] = []
    now = 0.0
    while ready or running:
        while ready and len(running) < workers:
            place, reference = heapq.heappop(ready)
            heapq.heappush(running, (now + seconds[reference], place, reference))
        now, _, ended = heapq.heappop(running)
        for child in children[ended]:
            waiting[child].discard(ended)
            if not waiting[child]:
                heapq.heappush(ready, (order[child], child))
    return now
