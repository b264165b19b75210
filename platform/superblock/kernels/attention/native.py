"""Attention by our C++ kernels: from the projection's rows, or from queries, keys and values, to the gated output.

Scores, softmax and sums are fp32; products of bf16 rows are exact where the processor multiplies pairs of bf16, and then
weights and gradients of scores are rounded to bf16 between two products, as in torch's own form. Results are the same bits
in every run with the same number of threads.

Legend: B sequences, T queries, S keys, H query heads, G kv heads, K head width, n = H + 2 G heads of the projection, 2 H + 2 G
with a gate.
"""

import functools
import math
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from superblock.kernels.attention.eager import eager
from superblock.kernels.attention.rope import angles
from superblock.kernels.native import NativeLibrary, native_operator
from superblock.kernels.packing import PackInfo
from superblock.kernels.precision import compute_dtype

_DTYPES = (torch.float32, torch.bfloat16)


def why_not(device: torch.device, dtype: torch.dtype, head_dim: int) -> str | None:
    """Why the C++ form cannot run; None if it can. Builds it at the first call that gets that far."""
    return unfit(device, dtype, head_dim) or LIBRARY.why_not()


def unfit(device: torch.device, dtype: torch.dtype, head_dim: int) -> str | None:
    """Why it is not made for such heads; None if it is."""
    if device.type != "cpu":
        return f"it has no kernels for {device.type}"
    if dtype not in _DTYPES:
        return f"it computes in float32 or bfloat16, not in {str(dtype).removeprefix('torch.')}"
    if head_dim % 16 or not 16 <= head_dim <= 256:
        return f"it takes heads of 16, 32, ... 256 dimensions, not of {head_dim}"
    return None


def native_attention(
    q_BTHK: Tensor, k_BSGK: Tensor, v_BSGK: Tensor, *, pack: PackInfo | None, window: int | None, query_start: int
) -> Tensor:
    """Same as `eager`, in the compute dtype; any strides, read in place where the last dimension is contiguous."""
    dtype = compute_dtype(q_BTHK)
    q, k, v = (x.to(dtype) for x in (q_BTHK, k_BSGK, v_BSGK))
    starts = None if pack is None or pack.whole_rows else pack.position_ids_BT
    return attention(q, k, v, starts, window or 0, query_start)[0]


def native_layer(
    rows_BTnK: Tensor,
    query_norm_K: Tensor,
    key_norm_K: Tensor,
    pack: PackInfo,
    *,
    heads: tuple[int, int],
    window: int | None,
    fraction: float,
    theta: float,
    eps: float,
) -> Tensor:
    """Gated output [B, T, H, K] of a projection's rows, heads in the order [q: H | k: G | v: G | gate: H, or none].

    Norm of queries and keys, rotation, attention and gate in one operation; `heads` is (H, G).
    """
    rows_BTnK = rows_BTnK.to(compute_dtype(rows_BTnK))
    H, G = heads
    assert rows_BTnK.shape[2] in (H + 2 * G, 2 * H + 2 * G), "rows are [q | k | v] or [q | k | v | gate]"
    rotated = round(fraction * rows_BTnK.shape[-1])
    arguments = (pack.position_ids_BT, not pack.whole_rows, H, G, window or 0, rotated, theta, eps)
    return attention_layer(rows_BTnK, query_norm_K, key_norm_K, *arguments)[0]


def native_positions(
    rows_BTnK: Tensor,
    query_norm_K: Tensor,
    key_norm_K: Tensor,
    pack: PackInfo,
    *,
    heads: tuple[int, int],
    fraction: float,
    theta: float,
    eps: float,
) -> Tensor:
    """Queries and keys [B, T, H + G, K] as `native_layer` uses them, for a cache: after norm and rotation. No gradient."""
    rows_BTnK = rows_BTnK.to(compute_dtype(rows_BTnK))
    rotated = round(fraction * rows_BTnK.shape[-1])
    return attention_positions(rows_BTnK, query_norm_K, key_norm_K, pack.position_ids_BT, *heads, rotated, theta, eps)


@native_operator("attention")
def attention(
    q_BTHK: Tensor, k_BSGK: Tensor, v_BSGK: Tensor, position_ids_BT: Tensor | None, window: int, query_start: int
) -> tuple[Tensor, Tensor]:
    """Output [B, T, H, K], and what backward needs of each query's scores, fp32 [2, B, G, T * H / G].

    `position_ids` count from the start of each document; None: no boundaries. A `window` of 0 is none.
    """
    q, k, v = (_rows(x) for x in (q_BTHK, k_BSGK, v_BSGK))
    positions = _positions(position_ids_BT, q)
    problem = _problem(q, k, v, None, positions, window, query_start, position_ids_BT is not None)
    y_BTHK, sums = _outputs(q, k)
    LIBRARY.call(
        "attention_forward", problem, q, k, v, None, None, None, None, None, positions, 0.0, y_BTHK, None, sums
    )
    return y_BTHK, sums


@attention.register_fake
def _(
    q_BTHK: Tensor, k_BSGK: Tensor, v_BSGK: Tensor, position_ids_BT: Tensor | None, window: int, query_start: int
) -> tuple[Tensor, Tensor]:
    return _outputs(q_BTHK, k_BSGK)


@native_operator("attention_backward")
def attention_backward(
    q_BTHK: Tensor, k_BSGK: Tensor, v_BSGK: Tensor, y_BTHK: Tensor, sums: Tensor, dy_BTHK: Tensor,
    position_ids_BT: Tensor | None, window: int, query_start: int,
) -> tuple[Tensor, Tensor, Tensor]:  # fmt: skip
    """Gradients of queries, keys and values, contiguous."""
    q, k, v = (_rows(x) for x in (q_BTHK, k_BSGK, v_BSGK))
    positions = _positions(position_ids_BT, q)
    # keys that no query sees are not visited
    whole = k.shape[1] == q.shape[1]
    dq = q.new_empty(q.shape)
    dk, dv = ((x.new_empty if whole else x.new_zeros)(x.shape) for x in (k, v))
    problem = _problem(q, k, v, None, positions, window, query_start, position_ids_BT is not None, (dq, dk, dv, None))
    LIBRARY.call(
        "attention_backward", problem, q, k, v, None, None, None, None, None, positions, 0.0,
        y_BTHK, sums, dy_BTHK.to(q.dtype).contiguous(), dq, dk, dv, None, None, None,
    )  # fmt: skip
    return dq, dk, dv


@attention_backward.register_fake
def _(
    q_BTHK: Tensor, k_BSGK: Tensor, v_BSGK: Tensor, y_BTHK: Tensor, sums: Tensor, dy_BTHK: Tensor,
    position_ids_BT: Tensor | None, window: int, query_start: int,
) -> tuple[Tensor, Tensor, Tensor]:  # fmt: skip
    return q_BTHK.new_empty(q_BTHK.shape), k_BSGK.new_empty(k_BSGK.shape), v_BSGK.new_empty(v_BSGK.shape)


def _save(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor]) -> None:
    *tensors, positions, window, query_start = inputs
    ctx.save_for_backward(*tensors, *output, positions)
    ctx.window, ctx.query_start = window, query_start
    ctx.set_materialize_grads(False)


def _gradients(ctx: Any, dy_BTHK: Tensor | None, _: Tensor | None) -> tuple[Tensor | None, ...]:
    if dy_BTHK is None:
        return (None,) * 6
    *tensors, positions = ctx.saved_tensors
    return *attention_backward(*tensors, dy_BTHK, positions, ctx.window, ctx.query_start), None, None, None


attention.register_autograd(_gradients, setup_context=_save)


@native_operator("attention_layer")
def attention_layer(
    rows_BTnK: Tensor, query_norm_K: Tensor, key_norm_K: Tensor, position_ids_BT: Tensor, packed: bool,
    H: int, G: int, window: int, rotated: int, theta: float, eps: float,
) -> tuple[Tensor, Tensor, Tensor]:  # fmt: skip
    """Gated output and output before the gate (empty without one) [B, T, H, K], and the sums as in `attention`."""
    rows = _rows(rows_BTnK)
    q, k, v, gate = _heads(rows, H, G)
    y_BTHK, sums = _outputs(q, k)
    o_BTHK = torch.empty_like(y_BTHK if gate is not None else y_BTHK[:0])
    positions, tables, weights = _turn(rows, query_norm_K, key_norm_K, position_ids_BT, rotated, theta)
    problem = _problem(q, k, v, gate, positions, window, 0, packed, rotated=rotated)
    LIBRARY.call(
        "attention_forward", problem, q, k, v, gate, *weights, *tables, positions, eps,
        y_BTHK, None if gate is None else o_BTHK, sums,
    )  # fmt: skip
    return y_BTHK, o_BTHK, sums


@attention_layer.register_fake
def _(
    rows_BTnK: Tensor, query_norm_K: Tensor, key_norm_K: Tensor, position_ids_BT: Tensor, packed: bool,
    H: int, G: int, window: int, rotated: int, theta: float, eps: float,
) -> tuple[Tensor, Tensor, Tensor]:  # fmt: skip
    q, k, _v, gate = _heads(rows_BTnK, H, G)
    y_BTHK, sums = _outputs(q, k)
    return y_BTHK, torch.empty_like(y_BTHK if gate is not None else y_BTHK[:0]), sums


@native_operator("attention_layer_backward")
def attention_layer_backward(
    rows_BTnK: Tensor, query_norm_K: Tensor, key_norm_K: Tensor, position_ids_BT: Tensor, o_BTHK: Tensor, sums: Tensor,
    dy_BTHK: Tensor, packed: bool, H: int, G: int, window: int, rotated: int, theta: float, eps: float,
) -> tuple[Tensor, Tensor, Tensor]:  # fmt: skip
    """Gradients of the rows, contiguous, and of both norms' weights."""
    rows = _rows(rows_BTnK)
    drows = rows.new_empty(rows.shape)
    q, k, v, gate = _heads(rows, H, G)
    grads = _heads(drows, H, G)
    positions, tables, weights = _turn(rows, query_norm_K, key_norm_K, position_ids_BT, rotated, theta)
    dquery_norm, dkey_norm = torch.empty_like(weights[0]), torch.empty_like(weights[1])
    problem = _problem(q, k, v, gate, positions, window, 0, packed, grads, rotated=rotated)
    LIBRARY.call(
        "attention_backward", problem, q, k, v, gate, *weights, *tables, positions, eps,
        o_BTHK, sums, dy_BTHK.to(q.dtype).contiguous(), *grads, dquery_norm, dkey_norm,
    )  # fmt: skip
    return drows, dquery_norm.to(query_norm_K.dtype), dkey_norm.to(key_norm_K.dtype)


@attention_layer_backward.register_fake
def _(
    rows_BTnK: Tensor, query_norm_K: Tensor, key_norm_K: Tensor, position_ids_BT: Tensor, o_BTHK: Tensor, sums: Tensor,
    dy_BTHK: Tensor, packed: bool, H: int, G: int, window: int, rotated: int, theta: float, eps: float,
) -> tuple[Tensor, Tensor, Tensor]:  # fmt: skip
    return rows_BTnK.new_empty(rows_BTnK.shape), torch.empty_like(query_norm_K), torch.empty_like(key_norm_K)


def _save_layer(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor, Tensor]) -> None:
    rows, query_norm, key_norm, positions, *ctx.rest = inputs
    y_BTHK, o_BTHK, sums = output
    ctx.save_for_backward(rows, query_norm, key_norm, positions, o_BTHK if len(o_BTHK) else y_BTHK, sums)
    ctx.set_materialize_grads(False)


def _layer_gradients(ctx: Any, dy_BTHK: Tensor | None, *_: Tensor | None) -> tuple[Tensor | None, ...]:
    if dy_BTHK is None:
        return (None,) * 11
    return *attention_layer_backward(*ctx.saved_tensors, dy_BTHK, *ctx.rest), *(None,) * 8


attention_layer.register_autograd(_layer_gradients, setup_context=_save_layer)


@native_operator("attention_positions")
def attention_positions(
    rows_BTnK: Tensor, query_norm_K: Tensor, key_norm_K: Tensor, position_ids_BT: Tensor, H: int, G: int,
    rotated: int, theta: float, eps: float,
) -> Tensor:  # fmt: skip
    """Queries and keys [B, T, H + G, K] after norm and rotation, of rows that begin with them; for decoding, no gradient."""
    rows = _rows(rows_BTnK)
    turned = rows.new_empty(*rows.shape[:2], H + G, rows.shape[-1])
    q, k, to_q, to_k = rows[:, :, :H], rows[:, :, H : H + G], turned[:, :, :H], turned[:, :, H:]
    positions, tables, weights = _turn(rows, query_norm_K, key_norm_K, position_ids_BT, rotated, theta)
    problem = _problem(q, k, k, None, positions, 0, 0, False, (to_q, to_k, to_k, None), rotated=rotated)
    LIBRARY.call("attention_positions", problem, q, k, *weights, *tables, positions, eps, to_q, to_k)
    return turned


@attention_positions.register_fake
def _(
    rows_BTnK: Tensor, query_norm_K: Tensor, key_norm_K: Tensor, position_ids_BT: Tensor, H: int, G: int,
    rotated: int, theta: float, eps: float,
) -> Tensor:  # fmt: skip
    return rows_BTnK.new_empty(*rows_BTnK.shape[:2], H + G, rows_BTnK.shape[-1])


def _heads(rows_BTnK: Tensor, H: int, G: int) -> tuple[Tensor, Tensor, Tensor, Tensor | None]:
    """Queries, keys, values and gate of the projection's rows."""
    gated = rows_BTnK.shape[2] > H + 2 * G
    q, k, v, gate = rows_BTnK.split([H, G, G, H if gated else 0], dim=2)
    return q, k, v, gate if gated else None


def _rows(x: Tensor) -> Tensor:
    """The same tensor if its last dimension is contiguous, else a copy.

    Raises:
        ValueError: for a dtype or a width that the kernels do not take.
    """
    if reason := unfit(x.device, x.dtype, x.shape[-1]):
        raise ValueError(f"attention in C++: {reason}")
    return x if x.stride(-1) == 1 else x.contiguous()


def _outputs(q_BTHK: Tensor, k_BSGK: Tensor) -> tuple[Tensor, Tensor]:
    B, T, H, K = q_BTHK.shape
    G = k_BSGK.shape[2]
    return q_BTHK.new_empty(B, T, H, K), q_BTHK.new_empty(2, B, G, T * (H // G), dtype=torch.float32)


def _positions(position_ids_BT: Tensor | None, q_BTHK: Tensor) -> Tensor | None:
    if position_ids_BT is None:
        return None
    assert position_ids_BT.shape == q_BTHK.shape[:2], "every token has a position"
    return position_ids_BT.to(torch.int64)


def _turn(
    rows: Tensor, query_norm_K: Tensor, key_norm_K: Tensor, position_ids_BT: Tensor, rotated: int, theta: float
) -> tuple[Tensor, tuple[Tensor, Tensor], tuple[Tensor, Tensor]]:
    """Positions, the cosines and sines they point into, and both norms' weights, as the kernels read them."""
    positions = _positions(position_ids_BT, rows)
    assert positions is not None and query_norm_K.shape == key_norm_K.shape == rows.shape[-1:]
    tables = rotations(positions, rotated, theta)
    return positions, tables, (query_norm_K.float().contiguous(), key_norm_K.float().contiguous())


def rotations(positions: Tensor, rotated: int, theta: float) -> tuple[Tensor, Tensor]:
    """Cosines and sines that such positions point into.

    Raises:
        ValueError: for a negative position.
    """
    least, most = (int(x) for x in torch.aminmax(positions))
    if least < 0:
        raise ValueError(f"attention in C++: position {least} is negative")
    return _tables(max(256, 1 << most.bit_length()), rotated, theta)


@functools.lru_cache(maxsize=8)  # every layer of a step asks for the same
def _tables(length: int, rotated: int, theta: float) -> tuple[Tensor, Tensor]:
    """Cosines and sines of the positions below `length`, fp32 [length, rotated / 2]."""
    cosine, sine = angles(torch.arange(length, device="cpu"), rotated, theta)
    return cosine.squeeze(1).contiguous(), sine.squeeze(1).contiguous()


def _problem(
    q: Tensor, k: Tensor, v: Tensor, gate: Tensor | None, positions: Tensor | None, window: int, query_start: int,
    packed: bool, grads: tuple[Tensor | None, ...] = (None,) * 4, rotated: int = 0,
) -> Tensor:  # fmt: skip
    """The integers of the C++ structure of that name.

    Raises:
        ValueError: if shapes or dtypes do not belong together.
    """
    B, T, H, K = q.shape
    S, G = k.shape[1:3]
    others = (k, v) if gate is None else (k, v, gate)
    shapes = ((B, S, G, K), (B, S, G, K), (B, T, H, K))
    if H % G or any(x.shape != shape or x.dtype != q.dtype for x, shape in zip(others, shapes, strict=False)):
        sizes = ", ".join(f"{list(x.shape)} {x.dtype}" for x in (q, *others))
        raise ValueError(f"attention in C++: queries, keys, values, gate do not belong together: {sizes}")
    if query_start + T > S or query_start < 0 or (packed and (S != T or query_start)):
        raise ValueError(f"attention in C++: {T} queries from {query_start} on do not fit {S} keys")
    numbers = [q.dtype == torch.bfloat16, B, T, S, H, G, K, window, query_start, packed, rotated]
    numbers += (0, 0) if positions is None else positions.stride()
    for x in (q, k, v, gate, *grads):
        numbers += (0, 0, 0) if x is None else x.stride()[:3]
    return torch.tensor(numbers, dtype=torch.int64, device="cpu")


def _check() -> None:
    """Output and gradients of two packed rows with a window, fp32 and bf16, against attention written out."""
    generator = torch.Generator().manual_seed(0)
    pack = PackInfo.from_doc_ids(torch.arange(40).ge(23).int().expand(2, -1))
    for dtype, tolerance in ((torch.float32, 1e-5), (torch.bfloat16, 3e-2)):
        q, k, v, dy = (torch.randn(2, 40, h, 32, generator=generator).to(dtype) for h in (4, 2, 2, 4))
        y, sums = attention(q, k, v, pack.position_ids_BT, 9, 0)
        grads = attention_backward(q, k, v, y, sums, dy, pack.position_ids_BT, 9, 0)
        exact = [x.double().requires_grad_() for x in (q, k, v)]
        output = eager(*exact, pack=pack, window=9, query_start=0)
        wanted = (output.detach(), *torch.autograd.grad(output, exact, dy.double()))
        for name, a, b in zip(("output", "dq", "dk", "dv"), (y, *grads), wanted, strict=True):
            error = float((a - b).norm() / b.norm())
            assert math.isfinite(error) and error < tolerance, f"{name} in {dtype} is off by {error:.1e}"
    from superblock.kernels.attention import whole_layer  # which calls the library

    whole_layer.check()


LIBRARY = NativeLibrary(Path(__file__).with_name("native.cpp"), check=_check)
