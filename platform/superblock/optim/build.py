"""The optimizer of a run, and the one place where its learning rate is set."""

from typing import Any

import torch
from torch import nn

from superblock.config.optim import OptimConfig
from superblock.optim.groups import Kind, group_parameters
from superblock.optim.muon import MuonAdamW


def build_optimizer(model: nn.Module, config: OptimConfig, *, fused: bool = True) -> torch.optim.Optimizer:
    """AdamW (fused, on CPU and GPU) for everything, or Muon for the matrices with AdamW for the rest.

    Every parameter group carries `name` (optim.groups) and `peak_lr`; what the groups hold besides follows from the
    configuration, so that a checkpoint needs the state of the parameters alone.

    Args:
        fused: one kernel for all of AdamW. Not with fp16's loss scaling: the fused kernel unscales gradients by itself,
            after they would have been clipped.
    """
    muon = config.name == "muon"
    groups = [
        _group(kind, parameters, config, muon) for kind, parameters in group_parameters(model).items() if parameters
    ]
    if muon:
        return MuonAdamW(groups)
    return torch.optim.AdamW(groups, fused=fused)


def set_learning_rate(optimizer: torch.optim.Optimizer, factor: float) -> float:
    """Sets every group to `factor` times its peak; returns the rate of the matrices, or of the first group without them."""
    for group in optimizer.param_groups:
        group["lr"] = group["peak_lr"] * factor
    groups = {group["name"]: group for group in optimizer.param_groups}
    return groups.get("matrices", optimizer.param_groups[0])["lr"]


def _group(kind: Kind, parameters: list[nn.Parameter], config: OptimConfig, muon: bool) -> dict[str, Any]:
    by_muon = muon and kind == "matrices"
    multiple = {"matrices": 1.0, "tables": config.table_rate, "vectors": config.vector_rate}[kind]
    rate = config.muon_learning_rate if by_muon else config.learning_rate * multiple
    group: dict[str, Any] = {"params": parameters, "name": kind, "peak_lr": rate, "lr": rate}
    group["weight_decay"] = 0.0 if kind == "vectors" else config.weight_decay
    if by_muon:
        return group | {"muon": True, "momentum": config.muon_momentum}
    return group | {"betas": (config.beta1, config.beta2), "eps": config.eps}
