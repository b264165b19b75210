"""The optimizer's state of a grown model: it follows the weights, by the same plan.

A copied parameter inherits its source's moments (AdamW) or momentum (Muon) and its step count; a zero or fresh one has
no state, so that the optimizer starts it at step 0. Step counts therefore differ within one group, which torch's fused
AdamW allows: each parameter has a count of its own, and its bias correction with it. One count for all would be wrong
both ways: an old one multiplies a new parameter's first update by (1 - beta1) / sqrt(1 - beta2), 0.45 for our defaults,
and a new one multiplies an old parameter's by the inverse.

The code of G_stack (arXiv 2405.15319) starts a new optimizer instead; staged training (arXiv 2203.06211) grows the
optimizer's state with the weights, to keep the rate at which the loss falls.
"""

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from superblock.config.fields import ConfigError
from superblock.models.growth import GrowthPlan
from superblock.models.init import local_region


@torch.no_grad()
def transplant_states(
    plan: GrowthPlan,
    states: Mapping[str, Mapping[str, Tensor]],
    model: nn.Module,
    optimizer: torch.optim.Optimizer,
) -> None:
    """Gives the optimizer of a grown model the state that its parent had, and forgets any other.

    Args:
        plan: from `plan_growth`.
        states: of whole tensors, by the parent's parameter name and then by name of the state (`exp_avg`, `exp_avg_sq`,
            `step`, or `momentum_buffer`), as a checkpoint holds them. A parameter that has had no gradient is absent.
        model: the grown one; its parameters may be sharded.
        optimizer: from `build_optimizer`, over this model.

    Raises:
        ConfigError: if the parent was trained with another optimizer.
        ValueError: if a state has no place in the plan's parent. Either way nothing is changed.
    """
    _refuse_other_states(plan, states)
    muon = {parameter: group.get("muon", False) for group in optimizer.param_groups for parameter in group["params"]}
    found: dict[Tensor, Any] = {}
    for name, parameter in model.named_parameters():
        source = plan.origins[name].source
        if source is None or source not in states or parameter not in muon:
            continue
        if ("momentum_buffer" in states[source]) != muon[parameter]:
            theirs = "adamw" if muon[parameter] else "muon"
            raise ConfigError(
                f"optim.name: the parent's state of {source} is another optimizer's; optim.name={theirs} continues it"
            )
        found[parameter] = {key: _placed(key, value, parameter) for key, value in states[source].items()}
    optimizer.state.clear()
    optimizer.state.update(found)


def _placed(key: str, value: Tensor, parameter: nn.Parameter) -> Tensor:
    """A copy of its own, on the parameter's device and with its sharding; copies of one source must not share it."""
    if key == "step":
        return value.detach().clone().to(parameter.device)
    placed = torch.zeros_like(parameter, dtype=value.dtype, requires_grad=False)
    local, region = local_region(placed)
    local.copy_(value[region])
    return placed


def _refuse_other_states(plan: GrowthPlan, states: Mapping[str, Mapping[str, Tensor]]) -> None:
    for name, state in states.items():
        expected = plan.parent_shapes.get(name)
        if expected is None:
            raise ValueError(f"the parent's optimizer has state of {name}, which the plan's parent does not have")
        for key, value in state.items():
            if value.shape != (torch.Size() if key == "step" else expected):
                raise ValueError(f"the parent's {key} of {name} is {list(value.shape)}, not {list(expected)}")
