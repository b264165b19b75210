"""One token of a whole model in one call of C++: a step costs about what reading its weights once costs.

Legend: B sequences, D width, N vocabulary, L layers, E experts; see `weights`.
"""

import ctypes
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from superblock.kernels.attention.rope import frequencies
from superblock.kernels.decode import reference
from superblock.kernels.decode.weights import (
    Attention,
    Delta,
    DeltaState,
    Experts,
    KeyValues,
    LayerTable,
    Sizes,
    SizesTable,
    StateTable,
)
from superblock.kernels.native import NativeLibrary

MAX_BATCH = 64
"""Sequences of one call; as in experts.h."""
KEPT = (torch.float32, torch.bfloat16)
"""What keys and values may be kept in; everything is computed in fp32."""
GROUP = 16
"""Every width is a multiple of it; as in native/block_products.h."""


def why_not(sizes: Sizes) -> str | None:
    """Why the C++ form cannot serve a model of these sizes here; None if it can."""
    widths = ("width", "vocabulary", "key_width", "value_width", "head_width", "expert_width", "shared_width")
    odd = [f"{name} {getattr(sizes, name)}" for name in widths if getattr(sizes, name) % GROUP]
    if odd:
        return f"{', '.join(odd)}: not a multiple of {GROUP}"
    return LIBRARY.why_not()


class Decoder:
    """The weights of a model, ready to be stepped through. It reads them where they are, so it sees every change.

    Args:
        sizes: of the model; `why_not` has nothing against them.
        layers: mixer and experts of each layer in order; fp32, contiguous, on the CPU.
        norm_D: weight of the final norm.
        table_ND: turns hidden states into logits.
        theta: base of the rotary frequencies.

    Raises:
        ValueError: for a weight of another shape, dtype, layout or device.
    """

    def __init__(
        self,
        sizes: Sizes,
        layers: Sequence[tuple[Delta | Attention, Experts]],
        norm_D: Tensor,
        table_ND: Tensor,
        theta: float,
    ) -> None:
        _check("norm", norm_D, (sizes.width,))
        _check("table", table_ND, (sizes.vocabulary, sizes.width))
        self.sizes = sizes
        self._norm_D, self._table_ND, self._layers = norm_D, table_ND, list(layers)
        self._frequencies_R = frequencies(sizes.rotated, theta)
        self._sizes = SizesTable(layers=len(layers), **sizes._asdict())
        self._weights = (LayerTable * len(layers))()
        self._states = (StateTable * len(layers))()
        for entry, (mixer, experts) in zip(self._weights, layers, strict=True):
            entry.attends = isinstance(mixer, Attention)
            for part in (mixer, experts):
                for name, tensor, shape in zip(part._fields, part, part.shapes(sizes), strict=True):
                    if tensor is not None:
                        _check(name, tensor, shape)
                        setattr(entry, name, tensor.data_ptr())
            if (experts.shared_gate_up is None) != (sizes.shared_width == 0):
                raise ValueError("a shared expert has a width and weights, or neither")

    def step(
        self, x_BD: Tensor, states: Sequence[DeltaState | KeyValues], position: int
    ) -> tuple[Tensor, list[DeltaState], Tensor]:
        """Logits [B, N], the new states of the delta rule in order, and tokens routed to each expert [L, E].

        Args:
            x_BD: embedded tokens; overwritten.
            states: of each layer. Those of the delta rule are left as they are; keys and values, fp32 or bf16, are
                written into their buffers after the first `length`.
            position: tokens before this one.

        Raises:
            ValueError: for a tensor of another shape, dtype, layout or device.
        """
        s, B = self.sizes, len(x_BD)
        _check("x", x_BD, (B, s.width))
        if not 0 < B <= MAX_BATCH:
            raise ValueError(f"{B} sequences: 1 to {MAX_BATCH} can be decoded at once")
        count = [type(state) for state in states].count(DeltaState)
        conv = x_BD.new_empty(count, B, s.taps - 1, s.channels)
        matrix = x_BD.new_empty(count, B, s.value_heads, s.key_width, s.value_width)
        after = [DeltaState(*pair) for pair in zip(conv.unbind(), matrix.unbind(), strict=True)]
        held: list[Tensor] = []  # copies that must live until the call
        new = iter(after)
        for entry, (mixer, _), state in zip(self._states, self._layers, states, strict=True):
            if isinstance(state, DeltaState) is not isinstance(mixer, Delta):
                raise ValueError("each layer needs a state of its own kind")
            if isinstance(state, DeltaState):
                _enter_delta(entry, state, next(new), held)
            else:
                _enter_keys(entry, state, (B, s.kv_heads, s.head_width))
        logits_BN = x_BD.new_empty(B, s.vocabulary)
        counts_LE = x_BD.new_zeros(len(self._layers), s.experts)
        self._sizes.batch = B
        tables = map(ctypes.addressof, (self._sizes, self._weights, self._states))
        tensors = (x_BD, self._norm_D, self._table_ND, self._frequencies_R)
        LIBRARY.call("decode_step", *tables, *tensors, position, logits_BN, counts_LE)
        return logits_BN, after, counts_LE


def _enter_delta(entry: StateTable, before: DeltaState, after: DeltaState, held: list[Tensor]) -> None:
    conv_BWC, matrix_BHKV = before
    if conv_BWC.shape != after.conv_BWC.shape or matrix_BHKV.shape != after.matrix_BHKV.shape:
        raise ValueError(
            f"delta state {tuple(conv_BWC.shape)}, {tuple(matrix_BHKV.shape)} is of another model or batch"
        )
    if conv_BWC.dtype != torch.float32 or matrix_BHKV.dtype != torch.float32:
        raise ValueError("a delta state must be float32")
    if conv_BWC.stride()[1:] != after.conv_BWC.stride()[1:]:
        conv_BWC = conv_BWC.contiguous()
        held.append(conv_BWC)
    if not matrix_BHKV.is_contiguous():
        matrix_BHKV = matrix_BHKV.contiguous()
        held.append(matrix_BHKV)
    entry.conv_before, entry.conv_stride, entry.conv_after = (
        conv_BWC.data_ptr(),
        conv_BWC.stride(0),
        after[0].data_ptr(),
    )
    entry.matrix_before, entry.matrix_after = matrix_BHKV.data_ptr(), after[1].data_ptr()


def _enter_keys(entry: StateTable, state: KeyValues, sizes: tuple[int, int, int]) -> None:
    keys, values, length = state
    B, G, K = sizes
    if keys.shape != (B, keys.shape[1], G, K) or keys.shape != values.shape or keys.shape[1] <= length:
        raise ValueError(
            f"keys {tuple(keys.shape)} and values {tuple(values.shape)} have no room for token {length + 1}"
        )
    if keys.dtype != values.dtype or keys.dtype not in KEPT or not (keys.is_contiguous() and values.is_contiguous()):
        raise ValueError("keys and values must be contiguous and both float32, or both bfloat16")
    entry.keys, entry.values, entry.stride, entry.length = keys.data_ptr(), values.data_ptr(), keys.stride(0), length
    entry.rounded = keys.dtype == torch.bfloat16


def _check(name: str, tensor: Tensor, shape: tuple[int, ...]) -> None:
    if tensor.shape != shape:
        raise ValueError(f"{name} has shape {tuple(tensor.shape)} instead of {shape}")
    if tensor.dtype != torch.float32 or tensor.device.type != "cpu" or not tensor.is_contiguous():
        raise ValueError(f"{name} must be contiguous float32 on the CPU")


def _self_check() -> None:
    """Two layers, three tokens, two sequences, against the reference in float64."""
    generator = torch.Generator().manual_seed(0)
    sizes = Sizes(32, 64, 1, 2, 16, 32, 4, 4, 2, 32, 16, 2, True, 4, 2, 32, 16, False, 1e-6, 2.0, 1.5)
    theta = 100.0

    def draw(shape: tuple[int, ...]) -> Tensor:
        return torch.randn(shape, generator=generator) * (shape[-1] ** -0.5 if len(shape) > 1 else 1.0)

    def mixture() -> Experts:
        blank = Experts(*[torch.empty(0)] * 8)
        return Experts(*map(draw, blank.shapes(sizes)))

    def double(part: Any) -> Any:
        return type(part)(*(value.double() if isinstance(value, Tensor) else value for value in part))

    mixers = [kind(*[torch.empty(0)] * len(kind._fields)) for kind in (Delta, Attention)]
    layers = [(type(mixer)(*map(draw, mixer.shapes(sizes))), mixture()) for mixer in mixers]
    norm_D, table_ND = draw((32,)), draw((64, 32))
    keys, values = torch.zeros(2, 2, 3, 2, 32).unbind()
    exact_keys, exact_values = torch.zeros(2, 2, 3, 2, 32, dtype=torch.float64).unbind()
    state = DeltaState(torch.zeros(2, 3, sizes.channels), torch.zeros(2, 2, 16, 32))
    exact_state = double(state)
    exact_layers = [(double(mixer), double(experts)) for mixer, experts in layers]
    decoder = Decoder(sizes, layers, norm_D, table_ND, theta)
    for position in range(3):
        x_BD = draw((2, 32))
        exact_states = [exact_state, KeyValues(exact_keys, exact_values, position)]
        exact, [exact_state], exact_counts = reference.step(
            sizes, exact_layers, norm_D.double(), table_ND.double(), theta, x_BD.double(), exact_states, position
        )
        logits, [state], counts = decoder.step(x_BD, [state, KeyValues(keys, values, position)], position)
        for name, ours, true in (
            *(("logits", logits, exact), ("counts", counts, exact_counts)),
            *(("convolution", state[0], exact_state[0]), ("matrix", state[1], exact_state[1])),
            *(("keys", keys, exact_keys), ("values", values, exact_values)),
        ):
            error = ((ours - true).norm() / true.norm()).item()
            assert error < 1e-5, f"{name} are off by {error:.1e}"


LIBRARY = NativeLibrary(Path(__file__).with_name("native.cpp"), check=_self_check)
