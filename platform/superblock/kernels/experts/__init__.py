"""A dropless mixture of SwiGLU experts behind one function.

Legend: N tokens, D model width, E experts, F expert width, G width of the shared expert, k experts per token.
"""

import torch
from torch import Tensor

from superblock.kernels.experts.backend import choose
from superblock.kernels.experts.grouped import grouped
from superblock.kernels.experts.loop import loop, swiglu
from superblock.kernels.experts.native import native_experts
from superblock.kernels.experts.sorted import sorted_experts
from superblock.kernels.precision import accumulation_dtype, compute_dtype

__all__ = ["mix_experts"]


def mix_experts(
    x_ND: Tensor,
    gate_up_E2FD: Tensor,
    down_EDF: Tensor,
    index_Nk: Tensor,
    weight_Nk: Tensor,
    *,
    shared: tuple[Tensor, Tensor] | None = None,
    shared_weight_N: Tensor | None = None,
    backend: str = "auto",
) -> tuple[Tensor, Tensor]:
    """y_n = sum_k weight_nk expert_e(x_n) with e = index_nk, plus shared_weight_n shared(x_n), in the compute dtype.

    expert(x) = down (silu(gate x) * up x); `gate_up` holds the F gate rows, then the F up rows. `shared` is such a pair
    of weights, [2G, D] and [D, G], of an expert that every token goes to, with weight 1 where `shared_weight_N` is None.
    Weights are applied after the experts and summed in fp32; an expert without tokens gets zero gradients.

    Returns y and, without gradient in fp32 (float64), the sums of squares of the routed and of the shared part.
    Raises RuntimeError where an explicit `backend` cannot run.
    """
    form = choose(backend, x_ND, gate_up_E2FD, down_EDF, shared)
    if form == "native":
        return native_experts(x_ND, gate_up_E2FD, down_EDF, index_Nk, weight_Nk, shared, shared_weight_N)
    x_ND = x_ND.to(compute_dtype(x_ND))
    mix = {"sorted": sorted_experts, "grouped": grouped, "loop": loop}[form]
    y_ND = mix(x_ND, gate_up_E2FD, down_EDF, index_Nk, weight_Nk)
    if shared is None:
        power = _power(y_ND)
        return y_ND, torch.stack([power, torch.zeros_like(power)])
    shared_ND = swiglu(x_ND, *shared)
    if shared_weight_N is not None:
        shared_ND = shared_ND * shared_weight_N[:, None].to(shared_ND.dtype)
    return y_ND + shared_ND, torch.stack([_power(y_ND), _power(shared_ND)])


@torch.no_grad()
def _power(x: Tensor) -> Tensor:
    return torch.linalg.vector_norm(x, dtype=accumulation_dtype(x)).square()
