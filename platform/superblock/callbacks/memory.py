"""Memory of the training process, now and at its highest."""

from typing import Any

import torch
from lightning.pytorch import Callback, Trainer

from superblock.callbacks.base import is_due
from superblock.training.process import peak_bytes, resident_bytes

MIB = 2**20


class Memory(Callback):
    """Records resident and peak memory in MiB, and the allocator's peaks on a GPU."""

    @property
    def peak(self) -> int:
        """The most memory the process held during this run, in bytes."""
        return peak_bytes()

    def values(self, device: torch.device) -> dict[str, float]:
        """What is known about memory now, in MiB."""
        values = {"memory/resident_mib": resident_bytes() / MIB, "memory/peak_mib": peak_bytes() / MIB}
        if device.type == "cuda":
            values["memory/cuda_allocated_peak_mib"] = torch.cuda.max_memory_allocated(device) / MIB
            values["memory/cuda_reserved_peak_mib"] = torch.cuda.max_memory_reserved(device) / MIB
        return values

    def on_train_batch_end(self, trainer: Trainer, pl_module: Any, outputs: Any, batch: Any, batch_idx: int) -> None:
        if is_due(pl_module) and trainer.is_global_zero:
            pl_module.tracker.metrics(self.values(pl_module.device), step=pl_module.step)

    def on_train_end(self, trainer: Trainer, pl_module: Any) -> None:
        if trainer.is_global_zero:
            peaks = {name: value for name, value in self.values(pl_module.device).items() if "peak" in name}
            pl_module.tracker.result({name.replace("memory/", "final/memory_"): value for name, value in peaks.items()})
