"""Writes checkpoints at step boundaries: at a distance, at the best validation, at the end and on a signal."""

import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import lightning.pytorch as pl

from superblock.config.budget import Budget
from superblock.training import checkpoint
from superblock.training.distributed import all_reduce_max
from superblock.training.interruption import Interruption


class Checkpointing(pl.Callback):
    """Keeps the best and the newest checkpoints below `<run folder>/checkpoints`.

    Args:
        run_folder: folder of the run.
        every: distance between checkpoints; minutes are over when the first process finds them over.
        keep_last: newest checkpoints kept beside the best.
        config: the whole configuration, JSON-able, stored in every checkpoint.
        tokenizer: tokenizer file copied into every checkpoint, so that it can be used alone.
        interruption: tells whether a signal asked for a last checkpoint.
        stateful: callbacks whose `state_dict` belongs to the run, by name.
    """

    def __init__(
        self,
        run_folder: Path,
        *,
        every: Budget,
        keep_last: int,
        config: dict[str, Any],
        tokenizer: Path,
        interruption: Interruption,
        stateful: Mapping[str, pl.Callback],
    ) -> None:
        self.run_folder, self.every, self.keep_last, self.stateful = run_folder, every, keep_last, stateful
        self.config, self.tokenizer, self.interruption = config, tokenizer, interruption
        self._last_time = time.monotonic()
        self._saved_step = -1

    def on_train_start(self, trainer: pl.Trainer, module: Any) -> None:
        """Gives the callbacks their state back, and counts the distance from here."""
        for name, state in module.callback_states.items():
            self.stateful[name].load_state_dict(state)
        self._last_time, self._saved_step = time.monotonic(), module.step

    def on_train_batch_end(self, trainer: pl.Trainer, module: Any, *_: Any) -> None:
        """Saves when it is time."""
        if self.interruption.signum or module.step == module.total_steps or self._due(module):
            self.save(module)

    def on_validation_end(self, trainer: pl.Trainer, module: Any) -> None:
        """Saves and marks the best validation so far; `val/bits_per_byte` is set by the perplexity callback."""
        value = module.val_bits_per_byte
        if trainer.state.fn != "fit" or value is None:
            return
        if module.best_val_bits_per_byte is None or value < module.best_val_bits_per_byte:
            module.best_val_bits_per_byte = value
            self.save(module, best=True)

    def save(self, module: Any, *, best: bool = False) -> None:
        """Writes the checkpoint of this step, or only marks it as best where it exists."""
        if module.step == self._saved_step and not best:
            return
        states = {name: callback.state_dict() for name, callback in self.stateful.items()}  # raises if not finite
        checkpoint.save(
            self.run_folder,
            model=module.model,
            optimizer=module.optimizers(use_pl_optimizer=False),
            progress=module.progress() | {"callbacks": states},
            config=self.config,
            tokenizer=self.tokenizer,
            keep_last=self.keep_last,
            best=best,
        )
        self._last_time, self._saved_step = time.monotonic(), module.step

    def _due(self, module: Any) -> bool:
        if self.every.unit == "minutes":
            return bool(all_reduce_max(time.monotonic() - self._last_time >= self.every.amount * 60))
        return module.step - self._saved_step >= self.every.steps(module.tokens_per_step, 1.0)
