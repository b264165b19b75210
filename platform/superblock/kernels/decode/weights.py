"""What a decoding step is told: sizes, weights and states, as Python holds them and as C++ reads them (`tables.h`).

Legend: B sequences, S keys, D width, N vocabulary; Gated DeltaNet: G key heads, H value heads, K and V their widths, W taps,
C = 2GK + HV convolved channels; attention: Q query heads, G kv heads, K head width; E experts, k chosen, F hidden width.
"""

import ctypes
from ctypes import c_double, c_int64, c_void_p
from typing import NamedTuple

from torch import Tensor


class Sizes(NamedTuple):
    """Of a whole model, without the batch. What a model has no layer of may have any size from 16 on."""

    width: int
    vocabulary: int
    key_heads: int
    value_heads: int
    key_width: int
    value_width: int
    taps: int
    query_heads: int
    kv_heads: int
    head_width: int
    rotated: int
    """Leading dimensions of an attention head that turn with the position."""
    window: int
    """Keys that a query sees; 0 is all."""
    gated: bool
    """Attention has an output gate."""
    experts: int
    chosen: int
    expert_width: int
    shared_width: int
    softmax: bool
    """The router's scores; else sigmoid."""
    epsilon: float
    write_scale: float
    """2 allows negative eigenvalues, 1 does not."""
    route_scale: float

    @property
    def channels(self) -> int:
        """C"""
        return 2 * self.key_heads * self.key_width + self.value_heads * self.value_width


class Delta(NamedTuple):
    """Weights of a Gated DeltaNet."""

    norm: Tensor
    """[D]"""
    project: Tensor
    """[C + HV, D], rows q, k, v, z"""
    out: Tensor
    """[D, HV]"""
    gates: Tensor
    """[2H, D], rows b, a"""
    conv: Tensor
    """[C, W]"""
    decay: Tensor
    """[H]; logarithm"""
    bias: Tensor
    """[H]"""
    head_norm: Tensor
    """[V]"""

    def shapes(self, s: Sizes) -> tuple[tuple[int, ...], ...]:
        """What each field must have."""
        inner = s.value_heads * s.value_width
        rows = s.channels + inner
        return (
            *((s.width,), (rows, s.width), (s.width, inner), (2 * s.value_heads, s.width)),
            *((s.channels, s.taps), (s.value_heads,), (s.value_heads,), (s.value_width,)),
        )


class Attention(NamedTuple):
    """Weights of grouped-query attention."""

    norm: Tensor
    """[D]"""
    project: Tensor
    """[(Q + 2G + Q) K, D], rows q, k, v, gate; without the gate if there is none"""
    out: Tensor
    """[D, QK]"""
    query_norm: Tensor
    """[K]"""
    key_norm: Tensor
    """[K]"""

    def shapes(self, s: Sizes) -> tuple[tuple[int, ...], ...]:
        """What each field must have."""
        rows = ((2 if s.gated else 1) * s.query_heads + 2 * s.kv_heads) * s.head_width
        inner = s.query_heads * s.head_width
        return (s.width,), (rows, s.width), (s.width, inner), (s.head_width,), (s.head_width,)


class Experts(NamedTuple):
    """Weights of a mixture of SwiGLU experts; `gate_up` has the gate's rows first."""

    moe_norm: Tensor | None
    """[D]; None reads the residual stream as it is"""
    router: Tensor
    """[E, D]"""
    balance: Tensor
    """[E]; moves the choice only"""
    gate_up: Tensor
    """[E, 2F, D]"""
    down: Tensor
    """[E, D, F]"""
    shared_gate_up: Tensor | None
    """[2F, D]"""
    shared_down: Tensor | None
    """[D, F]"""
    shared_gate: Tensor | None
    """[D]"""

    def shapes(self, s: Sizes) -> tuple[tuple[int, ...], ...]:
        """What each field must have if it is not None."""
        D, E, F, R = s.width, s.experts, s.expert_width, s.shared_width
        return (D,), (E, D), (E,), (E, 2 * F, D), (E, D, F), (2 * R, D), (D, R), (D,)


class DeltaState(NamedTuple):
    """Of one Gated DeltaNet."""

    conv_BWC: Tensor
    """The last W - 1 inputs of the convolution."""
    matrix_BHKV: Tensor


class KeyValues(NamedTuple):
    """Of one attention: buffers of which the first `length` tokens are filled, with room for one more; fp32 or bf16."""

    keys_BSGK: Tensor
    values_BSGK: Tensor
    length: int


class SizesTable(ctypes.Structure):
    """`Sizes` of tables.h."""

    _integers = (
        "batch width vocabulary layers key_heads value_heads key_width value_width taps query_heads kv_heads head_width "
        "rotated window gated experts chosen expert_width shared_width softmax"
    )
    _fields_ = [
        *((name, c_int64) for name in _integers.split()),
        *((name, c_double) for name in ("epsilon", "write_scale", "route_scale")),
    ]


class LayerTable(ctypes.Structure):
    """`Layer` of tables.h."""

    _fields_ = [
        ("attends", c_int64),
        *((name, c_void_p) for name in dict.fromkeys([*Delta._fields, *Attention._fields, *Experts._fields])),
    ]


class StateTable(ctypes.Structure):
    """`State` of tables.h."""

    _fields_ = [
        *(("conv_before", c_void_p), ("conv_stride", c_int64), ("conv_after", c_void_p)),
        *(("matrix_before", c_void_p), ("matrix_after", c_void_p)),
        *(("keys", c_void_p), ("values", c_void_p), ("stride", c_int64), ("length", c_int64), ("rounded", c_int64)),
    ]
