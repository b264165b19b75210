"""The gated delta rule in chunks: matrix products instead of a loop over tokens, with a hand-written backward.

Within a chunk the rule is solved with the WY form (arXiv 2412.06464, section 3.3). Between chunks it is an affine map of
the state, so only `S' = M S + b` runs in sequence. With G the running sum of g inside a chunk:

    D_ij = exp(G_i - G_j), i >= j     e_i = exp(G_i)     r_i = exp(G_C - G_i)     a = exp(G_C)
    W = (I + tril(beta K K^T * D, -1))^-1 diag(beta)     u = W V     w = W diag(e) K     P = Q K^T * D
    M = a I - K^T diag(r) w     b = K^T diag(r) u     O = (diag(e) Q - P w) S + P u

Documents: D is zero between documents, e where a token does not continue the state that enters the chunk, r where it is
not in the document alive at the chunk's end, a where a document begins in the chunk. The gradients need no other change.

Legend: B sequences, T tokens, G key heads, H value heads, R = H / G, N chunks, C chunk size, M = N * B * H chunks in
all, K key width, V value width. Chunks come first (N, B, H), so that a step of the scan is one contiguous product.
"""

from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd.function import once_differentiable

from superblock.kernels.delta_rule.inverse import unit_lower_inverse
from superblock.kernels.delta_rule.reference import EPS
from superblock.kernels.packing import PackInfo
from superblock.kernels.precision import accumulation_dtype, fp32_island
from superblock.kernels.tracing import untraced


@untraced
def chunked(
    q_BTGK: Tensor,
    k_BTGK: Tensor,
    v_BTHV: Tensor,
    g_BTH: Tensor,
    beta_BTH: Tensor,
    *,
    pack: PackInfo | None = None,
    initial_state: Tensor | None = None,
    chunk_size: int = 32,
) -> tuple[Tensor, Tensor]:
    """Same as `reference.recurrent`; differentiable once, in every input and through the final state.

    fp32 throughout (float64 for float64 inputs): bf16 products cost four digits here and save no time on CPU.
    Errors against float64 are near 1e-6, and 1e-5 at worst for nearly equal keys and beta near 2. `chunk_size` is a
    power of two from 8.
    """
    assert chunk_size >= 8 and chunk_size & (chunk_size - 1) == 0, "chunk_size must be a power of two from 8"
    T = q_BTGK.shape[1]
    size = min(chunk_size, max(8, 1 << (T - 1).bit_length()))
    bounds = _boundaries(pack, T, size, accumulation_dtype(q_BTGK), q_BTGK.device)
    return _ChunkedRule.apply(q_BTGK, k_BTGK, v_BTHV, g_BTH, beta_BTH, initial_state, bounds, size)


class _Boundaries(NamedTuple):
    """Where documents end, in the shapes of the formulas; the last three are None for whole rows."""

    mask: Tensor
    """Added to the logarithm of D: 0 or -inf, [C, C] or [N, B, 1, C, C]. Adding is 15 times faster than masked_fill."""
    continues: Tensor | None
    """[N, B, 1, C]: the token is in the document that enters the chunk."""
    survives: Tensor | None
    """[N, B, 1, C]: the token is in the document alive at the chunk's end."""
    carries: Tensor | None
    """[N, B, 1]: one document reaches from the chunk before to this chunk's end."""


def _boundaries(pack: PackInfo | None, T: int, C: int, dtype: torch.dtype, device: torch.device) -> _Boundaries:
    future_CC = torch.full((C, C), float("-inf"), dtype=dtype, device=device).triu_(1)
    if pack is None or pack.whole_rows:
        return _Boundaries(future_CC, None, None, None)
    doc_BT = pack.doc_ids_BT
    doc_BT = torch.cat([doc_BT, doc_BT[:, -1:].expand(-1, -T % C)], dim=1)
    doc_NBC = doc_BT.unflatten(1, (-1, C)).transpose(0, 1)
    entering_NB = torch.cat([doc_NBC[:1, :, 0], doc_NBC[:-1, :, -1]])
    other_NBCC = doc_NBC[..., :, None] != doc_NBC[..., None, :]
    mask = future_CC.expand(other_NBCC.shape).masked_fill(other_NBCC, float("-inf"))
    continues = doc_NBC == entering_NB[..., None]
    survives = doc_NBC == doc_NBC[..., -1:]
    return _Boundaries(
        mask[:, :, None],
        continues[:, :, None].to(dtype),
        survives[:, :, None].to(dtype),
        continues[:, :, None, -1].to(dtype),
    )


class _Decays(NamedTuple):
    D_MCC: Tensor
    e_MC1: Tensor
    r_MC1: Tensor
    a_M: Tensor


def _decays(g_NBHC: Tensor, bounds: _Boundaries) -> _Decays:
    """The decays of the module's formulas from the log decay of each token."""
    C = g_NBHC.shape[-1]
    sum_NBHC = g_NBHC.cumsum(-1)
    D = (sum_NBHC[..., :, None] - sum_NBHC[..., None, :]).add_(bounds.mask).exp_()
    e, r, a = sum_NBHC.exp(), (sum_NBHC[..., -1:] - sum_NBHC).exp_(), sum_NBHC[..., -1].exp()
    if bounds.continues is not None and bounds.survives is not None and bounds.carries is not None:
        e, r, a = e.mul_(bounds.continues), r.mul_(bounds.survives), a.mul_(bounds.carries)
    return _Decays(D.view(-1, C, C), e.view(-1, C, 1), r.view(-1, C, 1), a.view(-1))


class _ChunkedRule(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        q_BTGK: Tensor,
        k_BTGK: Tensor,
        v_BTHV: Tensor,
        g_BTH: Tensor,
        beta_BTH: Tensor,
        initial_state: Tensor | None,
        bounds: _Boundaries,
        C: int,
    ) -> tuple[Tensor, Tensor]:
        B, T, H, V = v_BTHV.shape
        K, R = q_BTGK.shape[3], H // q_BTGK.shape[2]
        dtype = accumulation_dtype(q_BTGK)
        with fp32_island(q_BTGK.device.type):
            q, q_length = _unit(_to_chunks(q_BTGK, C, dtype), R, scale=K**-0.5)
            k, k_length = _unit(_to_chunks(k_BTGK, C, dtype), R, scale=1.0)
            v = _to_chunks(v_BTHV, C, dtype).view(-1, C, V)
            beta = _to_chunks(beta_BTH, C, dtype).view(-1, C, 1)
            D, e, r, a = _decays(_to_chunks(g_BTH, C, dtype), bounds)
            k_t = k.transpose(1, 2)
            KK, P = torch.bmm(k, k_t).mul_(D), torch.bmm(q, k_t).mul_(D)
            inverse = unit_lower_inverse((KK * beta).tril_(-1))
            W = inverse * beta.transpose(1, 2)
            u, w = torch.bmm(W, v), torch.bmm(W, k * e)
            read = (q * e).sub_(torch.bmm(P, w))
            kr_t = (k * r).transpose(1, 2)
            M = torch.bmm(kr_t, w).neg_()
            M.diagonal(dim1=1, dim2=2).add_(a[:, None])
            S = _scan(M, torch.bmm(kr_t, u), initial_state, B * H)
            o = torch.bmm(read, S[:-1].view(-1, K, V)).add_(torch.bmm(P, u))
        ctx.save_for_backward(q, q_length, k, k_length, v, beta, D, e, r, a, KK, P, inverse, u, w, read, M, S)
        ctx.shape, ctx.dtypes = (B, T, H, R, C), [t.dtype for t in (q_BTGK, k_BTGK, v_BTHV, g_BTH, beta_BTH)]
        ctx.set_materialize_grads(False)
        return _from_chunks(o.view(-1, B, H, C, V), T), S[-1].clone().view(B, H, K, V)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, do_BTHV: Tensor | None, dstate: Tensor | None) -> tuple[Tensor | None, ...]:
        q, q_length, k, k_length, v, beta, D, e, r, a, KK, P, inverse, u, w, read, M, S = ctx.saved_tensors
        B, T, H, R, C = ctx.shape
        K, V = q.shape[2], v.shape[2]
        if do_BTHV is None:
            do_BTHV = q.new_zeros(B, T, H, V)
        with fp32_island(q.device.type):
            do = _to_chunks(do_BTHV, C, q.dtype).view(-1, C, V)
            before = S[:-1].view(-1, K, V)
            dS, dinitial = _scan_backward(M, torch.bmm(read.transpose(1, 2), do), dstate, B * H)
            dread = torch.bmm(do, before.transpose(1, 2))
            da = (dS * before).sum((1, 2))
            dM_minus = torch.bmm(dS, before.transpose(1, 2)).neg_()
            dkr = torch.bmm(u, dS.transpose(1, 2)).baddbmm_(w, dM_minus.transpose(1, 2))
            kr, ke, P_t = k * r, k * e, P.transpose(1, 2)
            du = torch.bmm(kr, dS).baddbmm_(P_t, do)
            dw = torch.bmm(kr, dM_minus).baddbmm_(P_t, dread, alpha=-1)
            dP = torch.bmm(do, u.transpose(1, 2)).baddbmm_(dread, w.transpose(1, 2), alpha=-1)
            dW = torch.bmm(du, v.transpose(1, 2)).baddbmm_(dw, ke.transpose(1, 2))
            W_t = (inverse * beta.transpose(1, 2)).transpose(1, 2)
            dv, dke = torch.bmm(W_t, du), torch.bmm(W_t, dw)
            # A = beta KK below the diagonal enters through its inverse: dA = -inverse^T (dW beta) inverse^T
            dbeta = (dW * inverse).sum(1)
            inverse_t = inverse.transpose(1, 2)
            dA = torch.bmm(torch.bmm(inverse_t, dW.mul_(beta.transpose(1, 2))), inverse_t).neg_().tril_(-1)
            dA_KK = dA * KK
            dbeta += dA_KK.sum(2)
            # every decay is an exponential of differences of G: its gradient is value times gradient
            dlog = (dP * P).addcmul_(dA_KK, beta)
            dlog_r = (dkr * kr).sum(-1)
            dG = dlog.sum(2) - dlog.sum(1) + (dread * q).sum(-1).mul_(e.squeeze(2)) + (dke * ke).sum(-1) - dlog_r
            dG[:, -1] += dlog_r.sum(-1) + da * a
            dKK, dQK = dA.mul_(D).mul_(beta), dP.mul_(D)
            dq = (dread * e).baddbmm_(dQK, k)
            dk = (dkr * r).addcmul_(dke, e).baddbmm_(dKK, k).baddbmm_(dKK.transpose(1, 2), k)
            dk.baddbmm_(dQK.transpose(1, 2), q)
            dg = dG.flip(-1).cumsum(-1).flip(-1)
            dq = _unit_backward(dq, q, q_length, R, scale=K**-0.5)
            dk = _unit_backward(dk, k, k_length, R, scale=1.0)
        chunks = (dq, dk, dv.view(-1, B, H, C, V), dg.view(-1, B, H, C), dbeta.view(-1, B, H, C))
        grads = [_from_chunks(x, T).to(t) for x, t in zip(chunks, ctx.dtypes, strict=True)]
        return *grads, dinitial.view(B, H, K, V) if ctx.needs_input_grad[5] else None, None, None


def _to_chunks(x_BTH: Tensor, C: int, dtype: torch.dtype) -> Tensor:
    """[B, T, H, ...] of any strides to a contiguous copy [N, B, H, C, ...], zeros behind the last token (they change nothing)."""
    T = x_BTH.shape[1]
    if T % C:
        x_BTH = F.pad(x_BTH, (0, 0) * (x_BTH.dim() - 2) + (0, -T % C))
    x_NBHC = x_BTH.unflatten(1, (-1, C)).movedim((1, 2), (0, 3))
    return torch.empty(x_NBHC.shape, dtype=dtype, device=x_BTH.device).copy_(x_NBHC)


def _from_chunks(x_NBHC: Tensor, T: int) -> Tensor:
    """[N, B, H, C, ...] back to contiguous [B, T, H, ...]."""
    return x_NBHC.movedim((0, 3), (1, 2)).flatten(1, 2)[:, :T].contiguous()


def _unit(x_NBGCK: Tensor, R: int, *, scale: float) -> tuple[Tensor, Tensor]:
    """Keys or queries of length `scale`, repeated for their value heads, [M, C, K]; and the factor that did it."""
    N, B, G, C, K = x_NBGCK.shape
    factor_NBGC1 = torch.rsqrt(x_NBGCK.square().sum(-1, keepdim=True).add_(EPS)).mul_(scale)
    x_NBGCK.mul_(factor_NBGC1)
    return x_NBGCK[:, :, :, None].expand(N, B, G, R, C, K).reshape(-1, C, K), factor_NBGC1


def _unit_backward(dy_MCK: Tensor, y_MCK: Tensor, factor_NBGC1: Tensor, R: int, *, scale: float) -> Tensor:
    """Gradient of `_unit` in its input [N, B, G, C, K]: the part of dy along y does not change a unit vector."""
    N, B, G, C, _ = factor_NBGC1.shape
    dy = dy_MCK.view(N, B, G, R, C, -1).sum(3) if R > 1 else dy_MCK.view(N, B, G, C, -1)
    y = y_MCK.view(N, B, G, R, C, -1)[:, :, :, 0]
    along = (dy * y).sum(-1, keepdim=True).div_(scale**2)
    return dy.addcmul(y, along, value=-1).mul_(factor_NBGC1)


def _scan(M_MKK: Tensor, b_MKV: Tensor, initial_state: Tensor | None, rows: int) -> Tensor:
    """States before each chunk and after the last, [N + 1, B * H, K, V], of S' = M S + b."""
    M, b = M_MKK.view(-1, rows, *M_MKK.shape[1:]), b_MKV.view(-1, rows, *b_MKV.shape[1:])
    S = b.new_empty(len(b) + 1, *b.shape[1:])
    if initial_state is None:
        S[0].zero_()
    else:
        S[0].copy_(initial_state.reshape(S[0].shape))
    for n in range(len(b)):
        torch.baddbmm(b[n], M[n], S[n], out=S[n + 1])
    return S


def _scan_backward(M_MKK: Tensor, dS_MKV: Tensor, dlast: Tensor | None, rows: int) -> tuple[Tensor, Tensor]:
    """Gradients in the state after each chunk [M, K, V] and in the initial state [B * H, K, V].

    `dS_MKV` is what each chunk's own outputs ask of the state before it.
    """
    M_t, own = M_MKK.view(-1, rows, *M_MKK.shape[1:]).transpose(2, 3), dS_MKV.view(-1, rows, *dS_MKV.shape[1:])
    after = torch.empty_like(own)
    if dlast is None:
        after[-1].zero_()
    else:
        after[-1].copy_(dlast.reshape(after[-1].shape))
    for n in range(len(own) - 1, 0, -1):
        torch.baddbmm(own[n], M_t[n], after[n], out=after[n - 1])
    return after.view_as(dS_MKV), torch.baddbmm(own[0], M_t[0], after[0])
