"""Decoding, one token after the other: a whole model's step as one operation over its tensors."""

from superblock.kernels.decode.native import KEPT, Decoder, why_not
from superblock.kernels.decode.weights import Attention, Delta, DeltaState, Experts, KeyValues, Sizes

__all__ = ["KEPT", "Attention", "Decoder", "Delta", "DeltaState", "Experts", "KeyValues", "Sizes", "why_not"]
