"""What the callbacks share: when to log, how metrics are called, and the frame of an evaluation.

The module a callback is given is `superblock.training.module.LanguageModelModule`. Callbacks read `model`, `config`,
`tracker`, `step`, `total_steps`, `tokens_seen` and the `last_...` values of the step just done. `last_losses` are this
process's shares of the global means, so that their sum over processes is the mean. `state_dict` of every callback holds
plain numbers, strings, lists and dicts only, since it is written as JSON.
"""

from abc import ABC, abstractmethod
from collections.abc import Mapping
from typing import Any

import torch
from lightning.pytorch import Callback, Trainer
from torch import Tensor

from superblock.models.batch import ModelOutput, TokenScores

MAIN = "next_token"
"""Name of the loss and the scores of the model proper."""


def is_due(module: Any) -> bool:
    """Whether the step just done is one that is logged: every `trainer.log_every` steps, and the last."""
    return module.step % module.config.trainer.log_every == 0 or module.step == module.total_steps


def metric_prefix(name: str) -> str:
    """Where a head's metrics go: `next_token` has no prefix, `exit/1/mtp/2` becomes `exit_1/mtp_2/`."""
    if name == MAIN:
        return ""
    words = name.split("/")
    pairs = [f"{word}_{words[i + 1]}" if i + 1 < len(words) else word for i, word in enumerate(words) if i % 2 == 0]
    return "/".join(pairs) + "/"


def to_floats(values: Mapping[str, Tensor | float]) -> dict[str, float]:
    """Numbers for the tracker, with one wait for the device however many tensors there are."""
    tensors = {name: value for name, value in values.items() if isinstance(value, Tensor)}
    floats = torch.stack([t.detach().double().reshape(()) for t in tensors.values()]).tolist() if tensors else []
    moved = dict(zip(tensors, floats, strict=True))
    return {name: moved[name] if name in moved else float(value) for name, value in values.items()}


def sum_over_processes(values: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Each scalar summed over all processes, which all call this with the same names; one collective."""
    if not values or not torch.distributed.is_initialized() or torch.distributed.get_world_size() == 1:
        return dict(values)
    total = torch.stack(list(values.values()))
    torch.distributed.all_reduce(total)
    return dict(zip(values, total.unbind(), strict=True))


class EvaluationCallback(Callback, ABC):
    """Adds up the scores of every batch, then records the values of the whole split.

    Validations during training are recorded at their step below `val/`; the evaluation of the whole split after
    training is a single result, below `final/val_` or `test/`. `results` keeps the newest value of each name.
    """

    def __init__(self) -> None:
        self.results: dict[str, float] = {}

    @abstractmethod
    def reset(self) -> None:
        """Forgets what was added."""

    @abstractmethod
    def add(self, scores: Mapping[str, TokenScores]) -> None:
        """Adds a batch."""

    @abstractmethod
    def values(self, module: Any, split: str, *, whole: bool) -> dict[str, float]:
        """Values of the split over every process; all processes call it. `whole` is false during training."""

    def _finish(self, trainer: Trainer, module: Any, split: str) -> None:
        if trainer.sanity_checking:
            return
        during_training = trainer.state.fn == "fit"
        prefix = "final/val_" if split == "val" and not during_training else f"{split}/"
        values = {prefix + name: value for name, value in self.values(module, split, whole=not during_training).items()}
        self.results.update(values)
        if not trainer.is_global_zero:
            return
        if during_training:
            module.tracker.metrics(values, step=module.step)
        else:
            module.tracker.result(values)

    def on_validation_epoch_start(self, trainer: Trainer, pl_module: Any) -> None:
        self.reset()

    def on_validation_batch_end(
        self, trainer: Trainer, pl_module: Any, outputs: Any, batch: Any, batch_idx: int, dataloader_idx: int = 0
    ) -> None:
        assert isinstance(outputs, ModelOutput)
        self.add(outputs.scores)

    def on_validation_epoch_end(self, trainer: Trainer, pl_module: Any) -> None:
        self._finish(trainer, pl_module, "val")

    def on_test_epoch_start(self, trainer: Trainer, pl_module: Any) -> None:
        self.reset()

    def on_test_batch_end(
        self, trainer: Trainer, pl_module: Any, outputs: Any, batch: Any, batch_idx: int, dataloader_idx: int = 0
    ) -> None:
        assert isinstance(outputs, ModelOutput)
        self.add(outputs.scores)

    def on_test_epoch_end(self, trainer: Trainer, pl_module: Any) -> None:
        self._finish(trainer, pl_module, "test")
