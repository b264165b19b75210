"""The gated delta rule as C++ for processors: the chunked form, its backward pass, and the recurrence for a few tokens.

One task per sequence and value head, each of which runs through its chunks with the state in the cache; so a batch of one
sequence keeps at most H cores busy. Results do not depend on the number of threads: the same bits for any.

Legend: B sequences, T tokens, G key heads, H value heads (a multiple of G), N chunks, K key width, V value width.
"""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from superblock.kernels.delta_rule.native_library import LIBRARY
from superblock.kernels.delta_rule.reference import recurrent
from superblock.kernels.native import native_operator
from superblock.kernels.native.record import Filled, Record
from superblock.kernels.packing import PackInfo

_HEADER = LIBRARY.source.with_name("rule.h")
_ARGUMENTS, _TARGETS = Record(_HEADER, "RuleArguments"), Record(_HEADER, "Targets")
FEW_TOKENS = 16
"""Below this many tokens, and without gradient, the recurrence runs: its products are smaller than a chunk's."""

Quadruple = tuple[Tensor, Tensor, Tensor, Tensor]


def fused(
    q_BTGK: Tensor,
    k_BTGK: Tensor,
    v_BTHV: Tensor,
    g_BTH: Tensor,
    beta_BTH: Tensor,
    *,
    pack: PackInfo | None = None,
    initial_state: Tensor | None = None,
    chunk_size: int = 0,
) -> tuple[Tensor, Tensor]:
    """Same as `reference.recurrent`: o_BTHV and the last state, fp32; differentiable once, in every input.

    `q`, `k`, `v` are read where they lie if all are bf16 or all fp32 and their last dimension is contiguous, and their
    gradients have their dtype; everything inside is fp32. `chunk_size` is a multiple of 16, or 0 for the faster of 32
    and 64. Errors against float64 are like those of `chunked`, and smaller where decays are strong.
    """
    inputs = (q_BTGK, k_BTGK, v_BTHV, g_BTH, beta_BTH, initial_state)
    keep = torch.is_grad_enabled() and any(t is not None and t.requires_grad for t in inputs)
    dtype = q_BTGK.dtype if q_BTGK.dtype == k_BTGK.dtype == v_BTHV.dtype == torch.bfloat16 else torch.float32
    documents_BT = None if pack is None or pack.whole_rows else pack.doc_ids_BT.to(torch.int32).contiguous()
    T, K, V = q_BTGK.shape[1], q_BTGK.shape[3], v_BTHV.shape[3]
    o, state, _, _ = rule(
        *(x.to(dtype) for x in (q_BTGK, k_BTGK, v_BTHV)),
        *(x.float().contiguous() for x in (g_BTH, beta_BTH)),
        None if initial_state is None else initial_state.float().contiguous(),
        documents_BT,
        chunk_for(chunk_size, T, K, V, keep),
        keep,
    )
    return o, state


def unfit(q_BTGK: Tensor, v_BTHV: Tensor, chunk_size: int) -> str | None:
    """Why these tensors are not for the C++ form, in words; None if they are."""
    if q_BTGK.device.type != "cpu":
        return f"it has no kernel for {q_BTGK.device.type}"
    if q_BTGK.dtype not in (torch.float32, torch.bfloat16, torch.float16):
        return f"it computes in fp32, which is less than {str(q_BTGK.dtype).removeprefix('torch.')}"
    return unfit_widths(q_BTGK.shape[3], v_BTHV.shape[3], chunk_size)


def unfit_widths(K: int, V: int, chunk_size: int) -> str | None:
    """Why heads of such widths are not for the C++ form, in words; None if they are."""
    for name, width in (("key_dim", K), ("value_dim", V)):
        if width % 16 or width > 256:
            return f"{name}={width} is not a multiple of 16 up to 256"
    if chunk_size % 16 or chunk_size > 128:
        return f"chunk_size={chunk_size} is not a multiple of 16 up to 128 (0 chooses one)"
    return LIBRARY.why_not()


def chunk_for(wanted: int, T: int, K: int, V: int, keep: bool) -> int:
    """Tokens per chunk where the caller wants `wanted`, or 0 for any; 0, the recurrence, for few tokens without gradient.

    32 tokens are faster up to 128 x 128; larger states should be read and written less often, and 64 are.
    """
    if T < FEW_TOKENS and not keep:
        return 0
    return min(wanted or (32 if K * V <= 128 * 128 else 64), -(-T // 16) * 16)


def _last_contiguous(x: Tensor) -> Tensor:
    return x if x.stride(-1) == 1 or x.shape[-1] == 1 else x.contiguous()


def _steps(**tensors: Tensor) -> dict[str, int]:
    """How far rows, tokens and heads of each [B, T, heads, width] are apart."""
    names = [f"{name}_{axis}" for name in tensors for axis in ("row", "step", "head")]
    return dict(zip(names, (step for x in tensors.values() for step in x.stride()[:3]), strict=True))


def _belong_together(
    q: Tensor, k: Tensor, v: Tensor, g: Tensor, beta: Tensor, initial: Tensor | None, documents: Tensor | None
) -> None:
    """Raises ValueError unless the source may read all of these together."""
    (B, T, G, K), (H, V) = q.shape, v.shape[2:]
    for name, t, dtype, shape in (
        *(("keys", k, q.dtype, (B, T, G, K)), ("values", v, q.dtype, (B, T, H, V))),
        *(("decays", g, torch.float32, (B, T, H)), ("strengths", beta, torch.float32, (B, T, H))),
        ("a state", initial, torch.float32, (B, H, K, V)),
        ("documents", documents, torch.int32, (B, T)),
    ):
        if t is not None and (t.shape != shape or t.dtype != dtype):
            wrong = f"{name} {list(t.shape)} {t.dtype}"
            raise ValueError(
                f"delta rule in C++: {wrong} for queries {list(q.shape)} {q.dtype} and {H} heads of {V} values"
            )
    if H % G:
        raise ValueError(f"delta rule in C++: {H} value heads are no multiple of {G} key heads")


@native_operator("delta_rule")
def rule(
    q_BTGK: Tensor,
    k_BTGK: Tensor,
    v_BTHV: Tensor,
    g_BTH: Tensor,
    beta_BTH: Tensor,
    initial_BHKV: Tensor | None,
    documents_BT: Tensor | None,
    chunk: int,
    keep: bool,
) -> Quadruple:
    """Outputs, last state and, if `keep`, what the backward pass needs: states [B, H, N, K, V] and residuals [B, H, T, V].

    `chunk` 0 is the recurrence.
    """
    _belong_together(q_BTGK, k_BTGK, v_BTHV, g_BTH, beta_BTH, initial_BHKV, documents_BT)
    q, k, v = (_last_contiguous(x) for x in (q_BTGK, k_BTGK, v_BTHV))
    o, last, states, residuals = _outputs(q, v, chunk, keep)
    LIBRARY.call(
        "delta_rule_forward",
        _arguments(q, k, v, g_BTH, beta_BTH, documents_BT, v.shape[2:], chunk or 16),
        not chunk,
        *(initial_BHKV, o, last),
        *((states, residuals) if keep else (None, None)),
    )
    return o, last, states, residuals


def _arguments(
    q: Tensor,
    k: Tensor,
    v: Tensor | None,
    g: Tensor,
    beta: Tensor,
    documents: Tensor | None,
    values: Sequence[int],
    chunk: int,
) -> Filled:
    """What both entry points take; `values` are H and V."""
    (B, T, G, K), (H, V) = q.shape, values
    steps = _steps(q=q, k=k, v=q if v is None else v)  # without values nobody takes their steps
    return _ARGUMENTS(
        q=q, k=k, v=v, g=g, beta=beta, documents=documents, B=B, T=T, G=G, H=H, K=K, VD=V, C=chunk,
        half=q.dtype == torch.bfloat16, **steps,
    )  # fmt: skip


def _outputs(q: Tensor, v: Tensor, chunk: int, keep: bool) -> Quadruple:
    B, T, _, K = q.shape
    H, V = v.shape[2:]
    new = lambda *shape: torch.empty(shape, dtype=torch.float32, device=v.device)  # noqa: E731
    states, residuals = ((B, H, -(-T // chunk), K, V), (B, H, T, V)) if keep else ((0,), (0,))
    return new(B, T, H, V), new(B, H, K, V), new(*states), new(*residuals)


@rule.register_fake
def _(q, k, v, g, beta, initial, documents, chunk, keep):  # type: ignore[no-untyped-def]
    return _outputs(q, v, chunk, keep)


@native_operator("delta_rule_backward")
def rule_backward(
    do_BTHV: Tensor,
    dlast_BHKV: Tensor | None,
    q_BTGK: Tensor,
    k_BTGK: Tensor,
    g_BTH: Tensor,
    beta_BTH: Tensor,
    documents_BT: Tensor | None,
    states: Tensor,
    residuals: Tensor,
    chunk: int,
    continued: bool,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor, Tensor]:
    """Gradients of q, k, v, g, beta and of the initial state, which is empty unless the rows `continued` one."""
    dq, dk, dv, dg, dbeta, dinitial = _gradients(q_BTGK, do_BTHV, g_BTH, continued)
    q, k = _last_contiguous(q_BTGK), _last_contiguous(k_BTGK)
    B, T, G, K = q.shape
    H, V = do_BTHV.shape[2:]
    each = (dq, dk) if G == H else [dq.new_empty(B, T, H, K, dtype=dg.dtype) for _ in range(2)]
    LIBRARY.call(
        "delta_rule_backward",
        _arguments(q, k, None, g_BTH, beta_BTH, documents_BT, (H, V), chunk),
        not continued,
        *(do_BTHV.contiguous(), None if dlast_BHKV is None else dlast_BHKV.contiguous(), states, residuals),
        _TARGETS(
            q=each[0], k=each[1], v=dv, g=dg, beta=dbeta, initial=dinitial if continued else None,
            **_steps(key=each[0], v=dv),
        ),
    )  # fmt: skip
    if G != H:
        for shared, of_head in zip((dq, dk), each, strict=True):
            shared.copy_(of_head.view(B, T, G, H // G, K).sum(3))
    return dq, dk, dv, dg, dbeta, dinitial


def _gradients(q: Tensor, do: Tensor, g: Tensor, continued: bool) -> tuple[Tensor, ...]:
    B, _, H, V = do.shape
    shape = (B, H, q.shape[3], V) if continued else (0,)
    new = lambda x: torch.empty(x.shape, dtype=x.dtype, device=x.device)  # noqa: E731
    return new(q), new(q), do.new_empty(do.shape, dtype=q.dtype), new(g), new(g), g.new_empty(shape)


@rule_backward.register_fake
def _(do, dlast, q, k, g, beta, documents, states, residuals, chunk, continued):  # type: ignore[no-untyped-def]
    return _gradients(q, do, g, continued)


def _setup(ctx: Any, inputs: tuple[Any, ...], output: Quadruple) -> None:
    q, k, _, g, beta, initial, documents, chunk, _ = inputs
    ctx.mark_non_differentiable(*output[2:])
    ctx.set_materialize_grads(False)
    ctx.save_for_backward(q, k, g, beta, documents, *output[2:])
    ctx.chunk, ctx.continued, ctx.shape = chunk, initial is not None, output[0].shape


def _differentiate(ctx: Any, do: Tensor | None, dlast: Tensor | None, *_: None) -> tuple[Tensor | None, ...]:
    q, k, g, beta, documents, states, residuals = ctx.saved_tensors
    if do is None:
        do = g.new_zeros(ctx.shape)
    *grads, dinitial = rule_backward(do, dlast, q, k, g, beta, documents, states, residuals, ctx.chunk, ctx.continued)
    return *grads, dinitial if ctx.continued else None, None, None, None


rule.register_autograd(_differentiate, setup_context=_setup)


def check() -> None:
    """Two packed rows with shared key heads, forward and backward, against the recurrence in float64."""
    generator = torch.Generator().manual_seed(0)
    shapes = ((2, 40, 1, 16), (2, 40, 1, 16), (2, 40, 2, 32), (2, 40, 2), (2, 40, 2), (2, 2, 16, 32))
    exact = [torch.randn(s, generator=generator, dtype=torch.float64) for s in shapes]
    exact[3], exact[4] = -exact[3].abs(), 2 * exact[4].sigmoid()
    pack = PackInfo.from_doc_ids(torch.tensor([0] * 7 + [1] * 14 + [2] * 19).expand(2, -1))
    results = []
    for form, dtype in ((recurrent, torch.float64), (fused, torch.float32)):
        leaves = [x.to(dtype).requires_grad_() for x in exact]
        o, state = form(*leaves[:5], pack=pack, initial_state=leaves[5])
        grads = torch.autograd.grad(o.sin().sum() + state.cos().sum(), leaves)
        results.append([o, state, *grads])
    few = fused(*(x[:, :5].float() for x in exact[:5]), initial_state=exact[5].float())[0]
    want = recurrent(*(x[:, :5] for x in exact[:5]), initial_state=exact[5])[0]
    names = ("o", "state", "dq", "dk", "dv", "dg", "dbeta", "dinitial", "few tokens")
    for name, a, b in zip(names, [*results[0], want], [*results[1], few], strict=True):
        error = float((a - b).detach().norm() / a.detach().norm())
        assert error < 1e-4, f"relative error of {name} is {error:.1e}"
