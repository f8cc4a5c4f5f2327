"""One of the processes that train a generation together: `python -m tasks.language.ranks FOLDER`, by torch's launcher.

Each reads the model and the rows from the folder and trains as the stage would by itself; the first one leaves what
comes out in `trained`, and tells the stage how far it is.
"""

from __future__ import annotations

import json
import os
from pathlib import Path

from tasks.engine.launch import rank
from tasks.engine.messages import Send


def train(folder: Path, send: Send) -> None:
    """What the stage asks for in the folder's `request.json`."""
    from datasets import load_from_disk
    from torch.distributed.checkpoint.state_dict import StateDictOptions, get_model_state_dict
    from transformers.utils import logging

    from fortifai_core.config.stages import Runtime
    from storage.store.store import ArtifactStore
    from storage.tables.models import load_model, save_model
    from tasks.engine.context import Context
    from tasks.engine.stages import Stage
    from tasks.language.files import base_folder
    from tasks.language.specs import TrainSpec
    from tasks.language.train import train_generation

    logging.disable_progress_bar()
    asked, first = json.loads((folder / "request.json").read_text(encoding="utf-8")), os.environ["RANK"] == "0"
    stage, runtime = Stage.from_json(asked["stage"]), Runtime.model_validate(asked["runtime"])
    device = "cpu" if asked["device"] == "cpu" else f"cuda:{os.environ['LOCAL_RANK']}"

    def progress(done: int, total: int, unit: str) -> None:
        if first:
            send(event="progress", done=done, total=total, unit=unit)

    spec = stage.spec
    assert isinstance(spec, TrainSpec)
    context = Context(stage, spec, ArtifactStore(asked["store"]), folder, runtime, device, progress)
    model = load_model(folder / "given", base=base_folder(context, spec.base), trainable=True)
    validation = folder / "validation"
    metrics = train_generation(
        model,
        load_from_disk(str(folder / "rows")),
        context,
        seed=asked["seed"],
        validation=load_from_disk(str(validation)) if validation.is_dir() else None,
        processes=runtime.processes,
    )
    weights = None
    if runtime.sharding != "none":  # all bring their parts together
        whole = StateDictOptions(full_state_dict=True, cpu_offload=True)
        weights = get_model_state_dict(model, options=whole)
    if first:
        save_model(model, folder / "trained", weights=weights)
        send(event="done", metrics=metrics)


if __name__ == "__main__":
    rank(train)
