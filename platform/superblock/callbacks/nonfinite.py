"""Stops a run whose loss or gradient is no longer a number."""

from typing import Any

import torch
from lightning.pytorch import Callback, Trainer
from torch import Tensor

from superblock.callbacks.base import is_due


class NonFiniteError(RuntimeError):
    """Training diverged. The text names the step and what was not finite."""


class NonFiniteGuard(Callback):
    """Watches every step and raises `NonFiniteError`; put it before whatever writes checkpoints.

    On a processor each step is looked at as it ends. On a GPU that would wait for the device at every step, so a flag
    collects there and is read on logged steps and before each checkpoint: a broken model is never saved.
    With fp16 the gradient may overflow while the loss scale is searched, and that step is skipped; only the loss counts.
    """

    def __init__(self) -> None:
        self._first: dict[str, Tensor] = {}  # name -> first bad step, or -1
        self._learning_rate = 0.0

    def on_train_batch_end(self, trainer: Trainer, pl_module: Any, outputs: Any, batch: Any, batch_idx: int) -> None:
        self._learning_rate = pl_module.config.optim.learning_rate
        watched = {f"the {name} loss": loss for name, loss in pl_module.last_losses.items()}
        if pl_module.config.trainer.precision != "fp16":
            watched["the gradient norm"] = torch.as_tensor(pl_module.last_gradient_norm)
        for name, value in watched.items():
            found = torch.where(torch.isfinite(value.detach()), -1, pl_module.step)
            first = self._first.get(name)
            self._first[name] = found if first is None else torch.where(first >= 0, first, found)
        if pl_module.device.type == "cpu" or is_due(pl_module):
            self.check()

    def check(self) -> None:
        """Raises if a step since the last check was not finite.

        Raises:
            NonFiniteError: naming the first bad step, the term, and what to try.
        """
        names, steps = list(self._first), [int(step) for step in self._first.values()]
        self._first = {}
        bad = sorted((step, name) for step, name in zip(steps, names, strict=True) if step >= 0)
        if not bad:
            return
        first = bad[0][0]
        terms = " and ".join(name for step, name in bad if step == first)
        raise NonFiniteError(
            f"step {first}: {terms} is not finite; training stopped and the last checkpoint is from before. "
            f"Try a lower rate (optim.learning_rate={self._learning_rate / 2:g}), a longer schedule.warmup, "
            f"optim.gradient_clip=1 or trainer.precision=fp32."
        )

    def state_dict(self) -> dict[str, Any]:
        self.check()  # the state is asked for when a checkpoint is about to be written
        return {}
