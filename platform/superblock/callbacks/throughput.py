"""Training speed: tokens per second, model FLOP/s, and the share of what matrix products alone could reach."""

from typing import Any

import torch
from lightning.pytorch import Callback, Trainer

from superblock.callbacks.base import is_due
from superblock.callbacks.stopwatch import Stopwatch
from superblock.evaluation.matmul_limit import matmul_limit

DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}


class Throughput(Callback):
    """Records speed between two records; evaluations do not count, checkpoints do.

    The first step of a process is left out, since it allocates and plans.

    Args:
        training_flops_per_token: forward and backward, three times the forward count of `models.formulas`.
    """

    def __init__(self, *, training_flops_per_token: float) -> None:
        self.training_flops_per_token = training_flops_per_token
        self.limit = 0.0
        """FLOP/s of all processes in plain matrix products."""
        self._watch = Stopwatch()
        self._window_tokens: int | None = None  # tokens seen when the window began
        self._seconds, self._tokens = 0.0, 0

    @property
    def tokens_per_second(self) -> float:
        """Over the whole run; 0 before the first record."""
        return self._tokens / self._seconds if self._seconds else 0.0

    @property
    def flops_per_second(self) -> float:
        """Model FLOP/s over the whole run."""
        return self.tokens_per_second * self.training_flops_per_token

    @property
    def matmul_share(self) -> float:
        """Model FLOP/s over the whole run as a share of the measured limit."""
        return self.flops_per_second / self.limit if self.limit else 0.0

    def on_train_start(self, trainer: Trainer, pl_module: Any) -> None:
        dtype = DTYPES[pl_module.config.trainer.precision]
        self.limit = matmul_limit(pl_module.device, dtype) * trainer.world_size
        self._window_tokens = None

    def on_train_batch_end(self, trainer: Trainer, pl_module: Any, outputs: Any, batch: Any, batch_idx: int) -> None:
        if self._window_tokens is None:
            self._begin_window(pl_module)
        elif is_due(pl_module):
            self._record(trainer, pl_module)
            self._begin_window(pl_module)

    def _begin_window(self, module: Any) -> None:
        self._window_tokens = module.tokens_seen
        self._watch.restart()

    def _record(self, trainer: Trainer, module: Any) -> None:
        if module.device.type == "cuda":
            torch.cuda.synchronize()  # otherwise the clock shows when work was queued
        seconds, tokens = self._watch.seconds, module.tokens_seen - self._window_tokens
        self._seconds += seconds
        self._tokens += tokens
        flops = tokens / seconds * self.training_flops_per_token
        values = {
            "throughput/tokens_per_second": tokens / seconds,
            "throughput/model_tflop_per_second": flops / 1e12,
            "throughput/matmul_share": flops / self.limit,
        }
        if trainer.is_global_zero:
            module.tracker.metrics(values, step=module.step)

    def on_validation_start(self, trainer: Trainer, pl_module: Any) -> None:
        self._watch.pause()

    def on_validation_end(self, trainer: Trainer, pl_module: Any) -> None:
        self._watch.go_on()

    def on_train_end(self, trainer: Trainer, pl_module: Any) -> None:
        if self._seconds and trainer.is_global_zero:
            pl_module.tracker.result(
                {
                    "final/tokens_per_second": self.tokens_per_second,
                    "final/matmul_share": self.matmul_share,
                    "final/matmul_limit_tflop_per_second": self.limit / 1e12,
                }
            )

    def state_dict(self) -> dict[str, Any]:
        return {"seconds": self._seconds, "tokens": self._tokens}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self._seconds, self._tokens = state_dict["seconds"], state_dict["tokens"]
