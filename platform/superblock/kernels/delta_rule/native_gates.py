"""The C++ form of Gated DeltaNet's gates as torch operators. Legend: ... any shape of tokens, D width, H value heads."""

from typing import Any

import torch
from torch import Tensor

from superblock.kernels.delta_rule.native_library import LIBRARY
from superblock.kernels.native import native_operator
from superblock.kernels.native.rows import row_counts, rows_of

_TILE, _BLOCKS = 64, 64
"""As in the source: tokens of a tile, and into how many blocks, at most, sums over tokens are cut."""


def fits(*inputs: Tensor) -> bool:
    """Whether the C++ form serves these tensors; builds it at the first call."""
    return (
        all(t.device.type == "cpu" and t.dtype in (torch.float32, torch.bfloat16) for t in inputs)
        and inputs[0].dtype == torch.float32
        and inputs[0].numel() > 0
        and LIBRARY.why_not() is None
    )


@native_operator("delta_gates")
def delta_gates(
    x_D: Tensor, weight_2HD: Tensor, A_log_H: Tensor, dt_bias_H: Tensor, strength: float
) -> tuple[Tensor, Tensor, Tensor]:
    """g and beta [..., H], and what the backward pass keeps. `x` is fp32 with any strides, parameters fp32 or bf16."""
    x, H = rows_of(x_D), len(weight_2HD) // 2
    assert x_D.dtype == torch.float32, f"the C++ gates take fp32, not {x_D.dtype}"
    assert weight_2HD.shape == (2 * H, x_D.shape[-1]), "two columns per head"
    assert A_log_H.shape == dt_bias_H.shape == (H,), "one rate and one bias per head"
    tokens = x_D.shape[:-1]
    g_H, beta_H = x_D.new_empty(*tokens, H), x_D.new_empty(*tokens, H)
    ba = x_D.new_empty(-(-tokens.numel() // _TILE), 2 * H, _TILE)
    parameters = [t.float().contiguous() for t in (weight_2HD, A_log_H, dt_bias_H)]
    LIBRARY.call("gates_forward", *x, *parameters, strength, g_H, beta_H, ba, *_sizes(x_D), H)
    return g_H, beta_H, ba


@delta_gates.register_fake
def _(
    x_D: Tensor, weight_2HD: Tensor, A_log_H: Tensor, dt_bias_H: Tensor, strength: float
) -> tuple[Tensor, Tensor, Tensor]:
    H, tokens = len(weight_2HD) // 2, x_D.shape[:-1]
    g_H = x_D.new_empty(*tokens, H)
    return g_H, torch.empty_like(g_H), x_D.new_empty(-(-tokens.numel() // _TILE), 2 * H, _TILE)


@native_operator("delta_gates_backward")
def delta_gates_backward(
    x_D: Tensor,
    weight_2HD: Tensor,
    A_log_H: Tensor,
    dt_bias_H: Tensor,
    ba: Tensor,
    strength: float,
    dg_H: Tensor,
    dbeta_H: Tensor,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Gradients of the four inputs in their dtypes, with the same bits for any number of threads."""
    x, H = rows_of(x_D), len(A_log_H)
    parameters = [t.float().contiguous() for t in (weight_2HD, A_log_H, dt_bias_H)]
    dx_D, gradients = x_D.new_empty(x_D.shape), [torch.empty_like(t) for t in parameters]
    partial = x_D.new_empty(_BLOCKS, weight_2HD.numel() + 2 * H)
    LIBRARY.call(
        "gates_backward", *x, *parameters, strength, ba, dg_H.contiguous(), dbeta_H.contiguous(),
        dx_D, *gradients, partial, *_sizes(x_D), H,
    )  # fmt: skip
    dweight, dA_log, dbias = (d.to(t.dtype) for d, t in zip(gradients, (weight_2HD, A_log_H, dt_bias_H), strict=True))
    return dx_D, dweight, dA_log, dbias


@delta_gates_backward.register_fake
def _(
    x_D: Tensor,
    weight_2HD: Tensor,
    A_log_H: Tensor,
    dt_bias_H: Tensor,
    ba: Tensor,
    strength: float,
    dg_H: Tensor,
    dbeta_H: Tensor,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    dx_D, dweight, dA_log, dbias = (t.new_empty(t.shape) for t in (x_D, weight_2HD, A_log_H, dt_bias_H))
    return dx_D, dweight, dA_log, dbias


def _save(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor, Tensor]) -> None:
    ctx.save_for_backward(*inputs[:4], output[2])
    ctx.mark_non_differentiable(output[2])
    ctx.set_materialize_grads(False)
    ctx.strength = inputs[4]


def _gradients(ctx: Any, dg_H: Tensor | None, dbeta_H: Tensor | None, _: None) -> tuple[Tensor | None, ...]:
    given = dg_H if dg_H is not None else dbeta_H
    if given is None:
        return None, None, None, None, None
    dg_H, dbeta_H = (torch.zeros_like(given) if d is None else d for d in (dg_H, dbeta_H))
    return *delta_gates_backward(*ctx.saved_tensors, ctx.strength, dg_H, dbeta_H), None


delta_gates.register_autograd(_gradients, setup_context=_save)


def _sizes(x_D: Tensor) -> tuple[int, int, int]:
    """N, T and D: all tokens, those of a group, and their width."""
    groups, group, width = row_counts(x_D)
    return groups * group, group, width


def check() -> None:
    from superblock.kernels.delta_rule.gates import reference_gates  # which asks this module whether it fits

    generator = torch.Generator().manual_seed(0)
    shapes = ((2, 35, 19), (6, 19), (3,), (3,))
    x_D, weight, A_log, bias = inputs = [torch.randn(s, generator=generator).requires_grad_() for s in shapes]
    d = torch.randn(2, 35, 3, generator=generator)
    found = delta_gates(x_D, weight, A_log, bias, 2.0)[:2]
    want = reference_gates(x_D, weight, A_log, bias, 2.0)
    results = [[*pair, *torch.autograd.grad(pair, inputs, (d, d))] for pair in (found, want)]
    torch.testing.assert_close(*results, rtol=1e-4, atol=1e-4)
