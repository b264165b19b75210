"""Which parameter is decayed, and which one Muon may orthogonalise.

    group      parameters                                                     decay   optimizer with `muon`
    matrices   projections, routers, experts [E, out, in] (one by one)         yes     Muon
    tables     embedding and unembedding [V, D]                                yes     AdamW
    vectors    norms, biases, A_log, dt_bias, convolutions, one-row gates      no      AdamW

A table's rows are looked up, not multiplied: orthogonalising its gradient would move the rows of absent tokens. A
convolution [C, W] is C filters of a few taps and a one-row gate is a vector, whatever their shapes say.
"""

from typing import Literal

from torch import nn

Kind = Literal["matrices", "tables", "vectors"]
TABLES = ("embedding.weight", "unembedding.weight")


def kind_of(name: str, parameter: nn.Parameter) -> Kind:
    """The group of a parameter from its name and shape.

    Raises:
        ValueError: for more than three dimensions; nothing says along which of them matrices lie.
    """
    if name in TABLES:
        return "tables"
    if parameter.ndim > 3:
        raise ValueError(f"{name} has shape {list(parameter.shape)}: a stack of matrices has at most 3 dimensions")
    filters = any(part.startswith("conv") for part in name.split("."))
    if parameter.ndim < 2 or filters or 1 in parameter.shape[-2:]:
        return "vectors"
    return "matrices"


def group_parameters(model: nn.Module) -> dict[Kind, list[nn.Parameter]]:
    """Every trainable parameter in exactly one group, in the model's order; a tied table appears once."""
    groups: dict[Kind, list[nn.Parameter]] = {"matrices": [], "tables": [], "vectors": []}
    for name, parameter in model.named_parameters():
        if parameter.requires_grad:
            groups[kind_of(name, parameter)].append(parameter)
    return groups
