"""Sizes of gradients, parameters and updates."""

from collections.abc import Iterable
from typing import Any

import torch
from lightning.pytorch import Callback, Trainer
from torch import Tensor
from torch.distributed.tensor import DTensor

from superblock.callbacks.base import is_due, to_floats

SAMPLE = 4096
"""Elements of each parameter that are copied to see how far a step moves them; a full copy would cost a third of
AdamW's memory again."""


class Norms(Callback):
    """Records the gradient norm (before clipping), the parameter norm and the update ratio of a logged step.

    The update ratio |w_after - w_before| / |w_before| is taken on every n-th element of each parameter, weighted by n:
    exact for parameters of up to 4096 elements. About 1e-3 is healthy early in training; it falls with the rate.
    """

    def __init__(self) -> None:
        self._before: list[tuple[Tensor, int]] = []

    def on_train_batch_start(self, trainer: Trainer, pl_module: Any, batch: Any, batch_idx: int) -> None:
        next_step = pl_module.step + 1
        if next_step % pl_module.config.trainer.log_every == 0 or next_step == pl_module.total_steps:
            self._before = [(sample.clone(), stride) for sample, stride in _samples(pl_module.model)]

    @torch.no_grad()
    def on_train_batch_end(self, trainer: Trainer, pl_module: Any, outputs: Any, batch: Any, batch_idx: int) -> None:
        if not is_due(pl_module) or not self._before:
            return
        moved, size = 0.0, 0.0
        for (before, stride), (after, _) in zip(self._before, _samples(pl_module.model), strict=True):
            moved = moved + stride * (after - before).double().square().sum()
            size = size + stride * before.double().square().sum()
        self._before = []
        parameters = sum(p.double().square().sum() for p in _local_parameters(pl_module.model))
        squares = torch.stack([torch.as_tensor(x, dtype=torch.float64) for x in (parameters, moved, size)])
        if any(isinstance(p, DTensor) for p in pl_module.model.parameters()):
            torch.distributed.all_reduce(squares)  # each process holds its own shard
        parameter_norm, update, weights = squares.sqrt()
        values = {
            "norms/gradient": pl_module.last_gradient_norm,
            "norms/parameters": parameter_norm,
            "norms/update_ratio": update / weights,
        }
        if trainer.is_global_zero:
            pl_module.tracker.metrics(to_floats(values), step=pl_module.step)


def _local_parameters(model: torch.nn.Module) -> Iterable[Tensor]:
    for parameter in model.parameters():
        yield (parameter.to_local() if isinstance(parameter, DTensor) else parameter).detach()


def _samples(model: torch.nn.Module) -> Iterable[tuple[Tensor, int]]:
    for parameter in _local_parameters(model):
        stride = max(1, -(-parameter.numel() // SAMPLE))
        yield parameter.flatten()[::stride], stride
