"""Muon for matrices and AdamW for the rest, in one optimizer object (https://kellerjordan.github.io/posts/muon).

Muon replaces the momentum M of a matrix [A, B] by an approximation of U V^T of its singular value decomposition, so
that every direction moves equally far. Its step is `lr * sqrt(max(1, A / B))`, the rule of the original and the default
of `torch.optim.Muon`, for which 0.02 is the published rate; `match_rms_adamw` would want a rate ten times smaller.

A stack [E, A, B] is E matrices: each expert is orthogonalised by itself, in one batched product.

Under FSDP2 a stack that is sharded by expert is updated where it lies. Any other sharded matrix is gathered, and every
process computes the same orthogonalisation and keeps its own part: right for any sharding, at the price of one
all-gather and of repeated arithmetic. Legend: E experts, A rows, B columns.
"""

import math
from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor
from torch.distributed.tensor import DTensor, Replicate, Shard
from torch.optim.adamw import adamw

COEFFICIENTS = (3.4445, -4.7750, 2.0315)
"""Of the quintic x -> a x + b x^3 + c x^5: the steepest slope at 0 that still keeps singular values within [0.7, 1.2]."""
STEPS = 5
EPS = 1e-7


def orthogonalize(matrix_AB: Tensor) -> Tensor:
    """Newton-Schulz iteration towards U V^T, in bf16.

    Args:
        matrix_AB: [A, B], or [E, A, B] for E matrices one by one; any floating dtype.

    Returns:
        bf16 tensor of the same shape whose singular values lie about 1.
    """
    a, b, c = COEFFICIENTS
    x = matrix_AB.bfloat16()
    tall = x.shape[-2] > x.shape[-1]
    if tall:
        x = x.mT
    # the Frobenius norm bounds the largest singular value, and the iteration diverges above 1
    x = x / x.norm(dim=(-2, -1), keepdim=True).clamp(min=EPS)
    multiply_add = torch.addmm if x.ndim == 2 else torch.baddbmm
    for _ in range(STEPS):
        gram = x @ x.mT
        x = multiply_add(x, multiply_add(gram, gram, gram, beta=b, alpha=c), x, beta=a)
    return x.mT if tall else x


class MuonAdamW(torch.optim.Optimizer):
    """Groups with `muon=True` are updated by Muon, the others by fused AdamW.

    Args:
        groups: dictionaries with `params`, `lr`, `weight_decay` and `muon`; Muon's also have `momentum`, the others
            `betas` and `eps`.

    Raises:
        ValueError: for a Muon group with a parameter that is neither a matrix nor a stack of matrices.
    """

    def __init__(self, groups: Iterable[dict[str, Any]]) -> None:
        super().__init__(groups, defaults={"muon": False})
        for group in self.param_groups:
            for parameter in group["params"]:
                if group["muon"] and parameter.ndim not in (2, 3):
                    raise ValueError(f"Muon updates matrices, not a parameter of shape {list(parameter.shape)}")

    @torch.no_grad()
    def step(self, closure: Callable[[], Any] | None = None) -> Any:
        """One update of every parameter that has a gradient."""
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        for group in self.param_groups:
            parameters = [parameter for parameter in group["params"] if parameter.grad is not None]
            if group["muon"]:
                for parameter in parameters:
                    self._muon(parameter, group)
            elif parameters:
                self._adamw(parameters, group)
        return loss

    def _muon(self, parameter: Tensor, group: dict[str, Any]) -> None:
        gradient, state = parameter.grad, self.state[parameter]
        assert gradient is not None
        if not state:
            state["momentum_buffer"] = torch.zeros_like(parameter)
        momentum = state["momentum_buffer"].lerp_(gradient, 1 - group["momentum"])
        update = _orthogonalize_anywhere(gradient.lerp(momentum, group["momentum"]))  # Nesterov
        A, B = parameter.shape[-2:]
        parameter.mul_(1 - group["lr"] * group["weight_decay"])
        parameter.add_(update, alpha=-group["lr"] * math.sqrt(max(1.0, A / B)))

    def _adamw(self, parameters: list[Tensor], group: dict[str, Any]) -> None:
        for parameter in parameters:
            if not self.state[parameter]:
                self.state[parameter].update(
                    step=torch.zeros((), dtype=torch.float32, device=parameter.device),
                    exp_avg=torch.zeros_like(parameter),
                    exp_avg_sq=torch.zeros_like(parameter),
                )
        states = [self.state[parameter] for parameter in parameters]
        adamw(
            parameters,
            [parameter.grad for parameter in parameters if parameter.grad is not None],
            [state["exp_avg"] for state in states],
            [state["exp_avg_sq"] for state in states],
            [],
            [state["step"] for state in states],
            fused=True,
            amsgrad=False,
            beta1=group["betas"][0],
            beta2=group["betas"][1],
            lr=group["lr"],
            weight_decay=group["weight_decay"],
            eps=group["eps"],
            maximize=False,
        )


def _orthogonalize_anywhere(matrix_AB: Tensor) -> Tensor:
    """`orthogonalize` for plain and sharded tensors; the result lies as the argument does."""
    if not isinstance(matrix_AB, DTensor):
        return orthogonalize(matrix_AB)
    mesh, placements, shape = matrix_AB.device_mesh, matrix_AB.placements, matrix_AB.shape
    if matrix_AB.ndim == 3 and all(isinstance(p, Replicate) or p == Shard(0) for p in placements):
        local = orthogonalize(matrix_AB.to_local())
        return DTensor.from_local(local, mesh, placements, run_check=False, shape=shape, stride=matrix_AB.stride())
    whole = orthogonalize(matrix_AB.full_tensor()).contiguous()
    return DTensor.from_local(whole, mesh, [Replicate()] * mesh.ndim, run_check=False).redistribute(mesh, placements)
