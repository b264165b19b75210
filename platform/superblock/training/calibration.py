"""How long one optimizer step takes here, so that a budget in minutes becomes a number of steps once, at the start."""

import time
from collections.abc import Callable, Iterable
from statistics import median

import torch
from torch import nn

from superblock.models.batch import Batch

WARM_UP, TIMED = 3, 7
"""Steps of the measurement: kernels choose their forms in the first ones; 10 steps of MVP-1 take about 2 s."""


def seconds_per_step(
    step: Callable[[Batch], object], batches: Iterable[Batch], model: nn.Module, optimizer: torch.optim.Optimizer
) -> float:
    """The median duration of a whole optimizer step, leaving model and optimizer exactly as they were.

    Args:
        step: takes a batch through forward, backward and update.
        batches: at least `WARM_UP + TIMED` training batches.
        model: weights and buffers are put back afterwards, on each process its own shard.
        optimizer: must have no state yet.
    """
    assert not optimizer.state, "calibrate before training: the optimizer already has state"
    kept = {name: tensor.detach().clone() for name, tensor in model.state_dict().items()}
    durations = []
    for batch in batches:
        start = time.perf_counter()
        step(batch)
        if torch.cuda.is_available():
            torch.cuda.synchronize()
        durations.append(time.perf_counter() - start)
    with torch.no_grad():
        for name, tensor in model.state_dict().items():
            tensor.copy_(kept[name])
    optimizer.state.clear()
    optimizer.zero_grad(set_to_none=True)
    return median(durations[WARM_UP:])
