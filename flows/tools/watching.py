"""`fortifai watch`: a series of models, each probed beside the first one (or a baseline)."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

from fortifai_core.errors import InputError, within
from fortifai_core.parsing import local_path
from storage.sources.pretrained import Pretrained, is_local
from storage.sources.textfiles import read_documents

if TYPE_CHECKING:
    from fortifai_core.watch.probe import Size
    from fortifai_core.watch.signals import Watched

Probed = list[tuple[str, "list[Watched]"]]
SEEN_ROWS = 32  # of the text that was trained on


def texts_of(option: str, path: Path, *, text_field: str) -> list[str]:
    """The documents of a file.

    Raises:
        InputError: it is not there, or holds no text.
    """
    with within(option):
        return [document.text for document in read_documents(local_path(path), text_field=text_field)]


def series_of(models: Sequence[str]) -> list[str]:
    """The models that are named; a folder of a Trainer stands for its checkpoints, in the order of their steps."""
    found: list[str] = []
    for name in models:
        folder = local_path(name, "MODEL") if is_local(name) else None
        inside = sorted(
            (path for path in folder.glob("checkpoint-*") if path.is_dir() and path.name[11:].isdigit())
            if folder is not None and folder.is_dir() and not (folder / "config.json").is_file()
            else [],
            key=lambda path: int(path.name[11:]),
        )
        found += [str(path) for path in inside] or [name]
    return found


def watch_models(
    models: Sequence[str],
    texts: Sequence[str],
    *,
    size: Size,
    seen: Sequence[str] = (),
    limits: dict[str, float] | None = None,
    device: str = "cpu",
    say: Callable[[str], None] = lambda text: None,
) -> Probed:
    """Probe every model beside the first one; all are looked at before anything is computed.

    Args:
        texts: held-out documents.
        seen: text that the models were trained on, for the live fraction.
        say: told before each model is probed.

    Raises:
        InputError: a model that cannot be read, or that has another tokenizer than the first; too little text.
    """
    from transformers.utils import logging

    from fortifai_core.watch.probe import Probe
    from fortifai_core.watch.signals import compare, limits_of

    logging.disable_progress_bar()  # type: ignore[no-untyped-call]
    held_against = limits_of(limits)
    longest = max(size.window_tokens, size.prompt_tokens + size.sample_tokens)
    places = [Pretrained.find(name) for name in models]
    for place in places:
        place.check(longest=longest)
    tokenizer = places[0].fetch_tokenizer()
    for name, place in zip(models[1:], places[1:], strict=True):
        if place.fetch_tokenizer().get_vocab() != tokenizer.get_vocab():
            raise InputError("MODEL", name, f"has another tokenizer than {models[0]}: their numbers cannot be compared")
    probe = Probe(tokenizer, texts, size)
    batch = batch_of(tokenizer, seen, tokens=size.window_tokens) if seen else None
    baseline, probed = None, Probed()
    for number, (name, place) in enumerate(zip(models, places, strict=True)):
        say(name)
        model = place.fetch_model(dtype="float32").to(device)
        probe.check(model)
        given = None if batch is None else {key: tensor.to(device) for key, tensor in batch.items()}
        reading = probe.read(model, batch=given, baseline=baseline, keep=number == 0)
        before = baseline.columns if baseline is not None else None
        probed.append((name, compare(reading.columns, before, step=number, limits=held_against)))
        baseline = baseline or reading
        del model
    return probed


def batch_of(tokenizer: Any, texts: Sequence[str], *, tokens: int) -> dict[str, Any]:
    """The beginnings of some documents as one batch, of `tokens` each at most."""
    import torch

    rows = [row for text in texts[:SEEN_ROWS] if (row := tokenizer(text)["input_ids"][:tokens])]
    ids = torch.zeros((len(rows), max(map(len, rows), default=1)), dtype=torch.long)
    mask = torch.zeros_like(ids)
    for number, row in enumerate(rows):
        ids[number, : len(row)], mask[number, : len(row)] = torch.tensor(row), 1
    return {"input_ids": ids, "attention_mask": mask}


def as_json(probed: Probed, size: Size) -> dict[str, Any]:
    """Everything that was measured, as plain values; what is no number is null."""

    def plain(value: float | None) -> float | None:
        return None if value is None or not math.isfinite(value) else value

    def row(watched: Watched) -> dict[str, Any]:
        change = watched.change
        return {
            "value": plain(watched.value.estimate),
            "interval": [plain(watched.value.low), plain(watched.value.high)],
            "baseline": plain(watched.baseline),
            "change": None if change is None else plain(change.estimate),
            "change_interval": None if change is None else [plain(change.low), plain(change.high)],
            "by": watched.signal.by,
            "limit": watched.limit,
            "alert": watched.alert,
            "clusters": watched.clusters,
        }

    models = [
        {"model": name, "signals": {watched.signal.name: row(watched) for watched in signals}}
        for name, signals in probed
    ]
    return {"baseline": probed[0][0], "size": asdict(size), "models": models}
