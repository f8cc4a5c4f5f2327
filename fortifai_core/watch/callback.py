"""The watch as a callback of transformers' Trainer, and so of TRL's trainers."""

from __future__ import annotations

from typing import Any

from transformers import TrainerCallback


class WatchCallback(TrainerCallback):
    """Starts, steps and stops a watch. Made by `Watch.attach`.

    Args:
        watch: the `Watch`.
        trainer: whose log the values go to.
    """

    def __init__(self, watch: Any, trainer: Any) -> None:
        self._watch, self._trainer = watch, trainer

    def on_train_begin(self, args: Any, state: Any, control: Any, model: Any = None, **kwargs: Any) -> None:
        self._tell(self._watch.start(model, step=state.global_step), control)

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        self._tell(self._watch.step(state.global_step), control)

    def on_train_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        self._tell(self._watch.stop(), control)

    def _tell(self, found: Any, control: Any) -> None:
        from transformers import Trainer

        if found is None:
            return
        # logging ends with "there is nothing to log", and the loss of this step may still have to be
        waiting = control.should_log
        # the Trainer's own: a subclass's, such as TRL's, would add its averages to these values and begin them anew
        Trainer.log(self._trainer, dict(found.values))
        control.should_log = waiting
        if self._watch.should_stop:
            control.should_training_stop = True
