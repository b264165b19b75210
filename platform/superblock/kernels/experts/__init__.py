"""A dropless mixture of SwiGLU experts behind one function.

Legend: N tokens, D model width, E experts, F expert width, k experts per token.
"""

from torch import Tensor

from superblock.kernels.experts.backend import choose
from superblock.kernels.experts.grouped import grouped
from superblock.kernels.experts.loop import loop
from superblock.kernels.experts.sorted import sorted_experts

__all__ = ["mix_experts"]


def mix_experts(
    x_ND: Tensor,
    gate_up_E2FD: Tensor,
    down_EDF: Tensor,
    index_Nk: Tensor,
    weight_Nk: Tensor,
    *,
    backend: str = "auto",
) -> Tensor:
    """y_n = sum_k weight_nk down_e (silu(gate_e x_n) * (up_e x_n)) with e = index_nk, in the compute dtype.

    `gate_up` holds the F gate rows, then the F up rows. Weights are applied after the experts and summed in fp32; an
    expert without tokens gets zero gradients. Raises RuntimeError where an explicit `backend` cannot run.
    """
    forms = {"sorted": sorted_experts, "grouped": grouped, "loop": loop}
    form = forms[choose(backend, x_ND, gate_up_E2FD, down_EDF)]
    return form(x_ND, gate_up_E2FD, down_EDF, index_Nk, weight_Nk)
