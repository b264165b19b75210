"""Ctrl-C and SIGTERM end a run at the next step boundary, with a checkpoint, on all processes together.

Lightning's own handler runs a collective inside the signal handler, which hung in most trials with several processes,
and ends a single process with status 0, which a scheduler takes for success.
"""

import signal
import sys
from types import FrameType
from typing import Any

import lightning.pytorch as pl

from superblock.training.distributed import all_reduce_max

SIGNALS = tuple(getattr(signal, name) for name in ("SIGINT", "SIGTERM", "SIGUSR1") if hasattr(signal, name))


class Interruption(pl.Callback):
    """Signals only raise a flag; all processes agree on it after each step and stop training.

    Must stand before the callback that writes checkpoints, which saves when `signum` is set.
    """

    def __init__(self) -> None:
        self.signum = 0
        self._raised = 0
        self._previous: dict[int, Any] = {}

    def install(self) -> None:
        """Takes over the signals, before Lightning would. A second Ctrl-C ends the process at once."""
        for number in SIGNALS:
            self._previous[number] = signal.signal(number, self._raise_flag)

    def restore(self) -> None:
        """Gives the signals back."""
        for number, handler in self._previous.items():
            signal.signal(number, handler)
        self._previous.clear()

    def _raise_flag(self, number: int, frame: FrameType | None) -> None:
        if self._raised and number == signal.SIGINT:
            raise KeyboardInterrupt
        self._raised = number
        print("\nstopping after this step, with a checkpoint (Ctrl-C again: at once)", file=sys.stderr, flush=True)

    def check(self) -> None:
        """Ends the process if a signal came before or after training."""
        if self._raised:
            raise SystemExit(128 + self._raised)

    def on_train_batch_end(self, trainer: pl.Trainer, module: pl.LightningModule, *_: Any) -> None:
        """Agrees with the other processes and stops training."""
        self.signum = int(all_reduce_max(self._raised))
        if self.signum:
            trainer.should_stop = True
