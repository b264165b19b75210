"""Whether the experts share the work. Legend: L MoE layers, E experts."""

import math
from collections.abc import Mapping
from typing import Any

import torch
from lightning.pytorch import Callback, Trainer
from torch import Tensor

from superblock.callbacks.base import is_due, to_floats


def load_statistics(counts_LE: Tensor) -> dict[str, Tensor]:
    """Per layer [L], fp64, from the tokens each expert was given in a step.

    load_entropy: entropy of the shares over that of equal shares; 1 is uniform.
    max_violation: the busiest expert's load over the mean, less 1; 0 is uniform (OLMo-core logs it with the 1).
    min_load: the idlest expert's load over the mean.
    dead_experts: experts that got nothing.
    """
    counts_LE = counts_LE.double()
    mean_L = counts_LE.mean(dim=1).clamp_min(torch.finfo(torch.float64).tiny)
    share_LE = counts_LE / counts_LE.sum(dim=1, keepdim=True).clamp_min(1.0)
    entropy_L = torch.special.entr(share_LE).sum(dim=1)
    return {
        "load_entropy": entropy_L / math.log(counts_LE.shape[1]) if counts_LE.shape[1] > 1 else entropy_L + 1,
        "max_violation": counts_LE.amax(dim=1) / mean_L - 1,
        "min_load": counts_LE.amin(dim=1) / mean_L,
        "dead_experts": (counts_LE == 0).sum(dim=1).double(),
    }


def layer_means(statistics: Mapping[str, Tensor]) -> dict[str, float]:
    """Metric names and values: each statistic's mean over the layers, then its value in each layer."""
    columns = {f"experts/{name}": value_L.double().mean() for name, value_L in statistics.items()}
    for name, value_L in statistics.items():
        columns |= {f"experts/layer_{i}/{name}": value for i, value in enumerate(value_L, start=1)}
    return to_floats(columns)


class ExpertHealth(Callback):
    """Records the balance of the last step, the selection biases and what the routers report."""

    def on_train_batch_end(self, trainer: Trainer, pl_module: Any, outputs: Any, batch: Any, batch_idx: int) -> None:
        counts_LE = pl_module.last_expert_counts_LE
        if not is_due(pl_module) or not trainer.is_global_zero or counts_LE is None or not counts_LE.numel():
            return
        statistics = load_statistics(counts_LE) | dict(pl_module.last_router_stats)
        buffers = pl_module.model.named_buffers()
        biases = [buffer.detach().abs().max() for name, buffer in buffers if name.endswith("balance_bias")]
        if biases:
            statistics["bias_absmax"] = torch.stack(biases)
        pl_module.tracker.metrics(layer_means(statistics), step=pl_module.step)
