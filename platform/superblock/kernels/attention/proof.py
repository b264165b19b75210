"""Runs xFormers' kernels once on a small problem, so that it is known what runs and that it is right.

Which kernel xFormers takes depends on the GPU, the precision, the head width, and on what is installed beside it.
"""

import functools
import importlib
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from superblock.kernels.attention import xformers
from superblock.kernels.attention.eager import eager
from superblock.kernels.packing import PackInfo
from superblock.kernels.precision import fp32_island

TOLERANCE = {torch.float32: 2e-3, torch.bfloat16: 3e-2, torch.float16: 8e-3}
"""Largest accepted distance from `eager` relative to its size; bf16 alone is off by 4e-3 per value."""
LENGTHS = (5, 64, 27, 1, 95)
"""Documents of the two rows of 96 tokens."""


@dataclass(frozen=True)
class Proof:
    """What happened."""

    operator: str = ""
    """xFormers' name of the forward kernel that ran, such as `fa2F-pt`."""
    error: float = 0.0
    """Largest relative distance from `eager`, of outputs and gradients."""
    reason: str | None = None
    """Why it must not be used."""


@functools.cache
def proof(device: torch.device, dtype: torch.dtype, head_dim: int) -> Proof:
    """Attention over packed documents, with and without a window, forward and backward, against `eager`."""
    if reason := xformers.why_not(device):
        return Proof(reason=reason)
    if dtype not in TOLERANCE:
        return Proof(reason=f"it has no {dtype} kernel")
    try:
        with torch.enable_grad(), fp32_island(device.type):
            return _compare(device, dtype, head_dim)
    except Exception as error:
        lines = str(error).strip().splitlines() or [type(error).__name__]
        return Proof(reason=f"it failed on a small problem ({lines[0][:200]})")


def _compare(device: torch.device, dtype: torch.dtype, head_dim: int) -> Proof:
    ids = torch.repeat_interleave(torch.arange(len(LENGTHS)), torch.tensor(LENGTHS)).view(2, 96)
    pack = PackInfo.from_doc_ids(ids).to(device)
    generator = torch.Generator().manual_seed(0)
    shapes = ((2, 96, 4, head_dim), (2, 96, 2, head_dim), (2, 96, 2, head_dim))
    qkv = [torch.randn(shape, generator=generator).to(device, dtype).requires_grad_() for shape in shapes]
    error = 0.0
    for window in (None, 17):
        place: dict[str, Any] = {"pack": pack, "window": window, "query_start": 0}
        found, wanted = (_with_gradients(form, qkv, place) for form in (xformers.memory_efficient, eager))
        error = max(error, *(_distance(a, b) for a, b in zip(found, wanted, strict=True)))
    operator = _operator(qkv, pack)
    if not error < TOLERANCE[dtype]:  # a NaN is no agreement either
        return Proof(operator, error, f"its {operator} differs from the reference by {error:.1e} on this GPU")
    return Proof(operator, error)


def _with_gradients(form: Any, qkv: list[Tensor], place: dict[str, Any]) -> list[Tensor]:
    o_BTHK = form(*qkv, **place)
    return [o_BTHK, *torch.autograd.grad(o_BTHK.float().sin().sum(), qkv)]


def _distance(found: Tensor, wanted: Tensor) -> float:
    found, wanted = found.detach().float(), wanted.detach().float()
    return float((found - wanted).norm() / wanted.norm())


def _operator(qkv: list[Tensor], pack: PackInfo) -> str:
    """The kernel that xFormers takes for these tensors; it asks the same function when it runs."""
    fmha = importlib.import_module("xformers.ops.fmha")
    q, k, v = (x.detach().reshape(1, -1, x.shape[2], x.shape[3]) for x in qkv)
    k, v = (x.repeat_interleave(q.shape[2] // x.shape[2], dim=2) for x in (k, v))
    inputs = fmha.Inputs(query=q, key=k, value=v, attn_bias=xformers.packed_bias(pack, None))
    return str(fmha.dispatch._dispatch_fw(inputs, needs_gradient=True).NAME)
