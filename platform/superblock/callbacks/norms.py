"""Sizes of gradients, parameters, updates and recurrent states."""

from collections.abc import Iterable, Sequence
from typing import Any

import torch
from lightning.pytorch import Callback, Trainer
from torch import Tensor
from torch.distributed.tensor import DTensor

from superblock.callbacks.base import is_due, to_floats
from superblock.models.batch import Batch
from superblock.models.cache import Cache, DeltaState

SAMPLE = 4096
"""Elements of each parameter that are copied to see how far a step moves them; a full copy would cost a third of
AdamW's memory again."""


class Norms(Callback):
    """Records the gradient norm (before clipping), the parameter norm and the update ratio of a logged step.

    The update ratio |w_after - w_before| / |w_before| is taken on every n-th element of each parameter, weighted by n:
    exact for parameters of up to 4096 elements. About 1e-3 is healthy early in training; it falls with the rate.

    At each validation it also records how large the delta rule's states are after one sequence of the split.
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
        moved = size = torch.zeros((), dtype=torch.float64, device=pl_module.device)
        for (before, stride), (after, _) in zip(self._before, _samples(pl_module.model), strict=True):
            moved = moved + stride * (after.double() - before.double()).square().sum()
            size = size + stride * before.double().square().sum()
        self._before = []
        parameters = torch.stack(
            [torch.linalg.vector_norm(p, dtype=torch.float64).square() for p in _local_parameters(pl_module.model)]
        ).sum()
        squares = torch.stack([parameters, moved, size])
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

    @torch.no_grad()
    def on_validation_batch_end(
        self, trainer: Trainer, pl_module: Any, outputs: Any, batch: Batch, batch_idx: int, dataloader_idx: int = 0
    ) -> None:
        if batch_idx or trainer.sanity_checking or trainer.state.fn != "fit":
            return
        cache = Cache()
        pl_module.model(batch.input_ids_BT[:1], cache=cache, last_only=True)  # as one document, longer than most
        states = [s.recurrent_BHKV for s in cache.states.values() if isinstance(s, DeltaState)]
        values = state_norms([state for state in states if state is not None])
        if values and trainer.is_global_zero:
            pl_module.tracker.metrics(values, step=pl_module.step)


def state_norms(states: Sequence[Tensor]) -> dict[str, float]:
    """Size of delta-rule states [B, H, K, V] after a whole sequence, one per layer; empty without such layers."""
    if not states:
        return {}
    rms = torch.stack([state.double().square().mean().sqrt() for state in states])
    largest = torch.stack([state.double().abs().max() for state in states])
    return to_floats({"norms/state_rms": rms.mean(), "norms/state_absmax": largest.max()})


def _local_parameters(model: torch.nn.Module) -> Iterable[Tensor]:
    for parameter in model.parameters():
        yield (parameter.to_local() if isinstance(parameter, DTensor) else parameter).detach()


def _samples(model: torch.nn.Module) -> Iterable[tuple[Tensor, int]]:
    for parameter in _local_parameters(model):
        stride = max(1, -(-parameter.numel() // SAMPLE))
        yield parameter.flatten()[::stride], stride
