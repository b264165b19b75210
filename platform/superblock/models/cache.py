"""What decoding keeps of a batch of sequences between two calls of the model.

Legend: B sequences, T new tokens, S tokens so far, C convolution channels, W taps, G kv heads, H value heads, K, V head
widths.
"""

from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor


@dataclass
class DeltaState:
    """Of one Gated DeltaNet layer; its size does not grow with the sequence."""

    conv_BWC: Tensor | None = None
    """The last W - 1 inputs of the convolution."""
    recurrent_BHKV: Tensor | None = None
    """fp32 state of the delta rule."""


@dataclass
class KeyValueState:
    """Of one attention layer: keys (rotated) and values, in buffers that double when they are full."""

    length: int = 0
    keys_BSGK: Tensor | None = None
    values_BSGK: Tensor | None = None

    def append(self, k_BTGK: Tensor, v_BTGK: Tensor) -> tuple[Tensor, Tensor]:
        """Adds the keys and values of T tokens and returns those of all tokens so far."""
        end = self.length + k_BTGK.shape[1]
        keys_BSGK, values_BSGK = self.make_room(k_BTGK)
        keys_BSGK[:, self.length : end] = k_BTGK
        values_BSGK[:, self.length : end] = v_BTGK
        self.length = end
        return keys_BSGK[:, :end], values_BSGK[:, :end]

    def make_room(self, like_BTGK: Tensor) -> tuple[Tensor, Tensor]:
        """The buffers, with room for T more tokens."""
        end = self.length + like_BTGK.shape[1]
        if self.keys_BSGK is None or self.values_BSGK is None or self.keys_BSGK.shape[1] < end:
            self.keys_BSGK = self._grown(self.keys_BSGK, like_BTGK, end)
            self.values_BSGK = self._grown(self.values_BSGK, like_BTGK, end)
        return self.keys_BSGK, self.values_BSGK

    def _grown(self, buffer: Tensor | None, like_BTGK: Tensor, end: int) -> Tensor:
        B, _, G, K = like_BTGK.shape
        larger = like_BTGK.new_empty(B, max(64, 2 * end), G, K)
        if buffer is not None:
            larger[:, : self.length] = buffer[:, : self.length]
        return larger


@dataclass
class Cache:
    """States of all mixers of a model for one batch of sequences. Starts empty; every call of the model extends it."""

    states: dict[tuple[int, int], Any] = field(default_factory=dict)
    """By index of the superblock and of the layer within it; a mixer makes its own at the first call, a dataclass of
    tensors whose first dimension is the batch."""
    length: int = 0
    """Tokens seen so far."""

    @property
    def num_bytes(self) -> int:
        """Bytes held, room for growth included."""
        tensors = [t for state in self.states.values() for t in vars(state).values() if isinstance(t, torch.Tensor)]
        return sum(t.numel() * t.element_size() for t in tensors)
