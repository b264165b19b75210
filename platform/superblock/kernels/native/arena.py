"""Several results of a C++ kernel in one piece of memory: one tensor to allocate, to save and to free instead of many."""

import functools

import torch
from torch import Tensor

_LINE = 64
"""Bytes of a cache line, at which every part begins."""


class Parts:
    """Where the parts of a tensor of bytes begin. `sizes` are their bytes; a size of 0 is a part that is not there."""

    def __init__(self, **sizes: int) -> None:
        self.offsets: dict[str, int | None] = {}
        self.bytes = 0
        for name, size in sizes.items():
            self.offsets[name] = None if size == 0 else self.bytes
            self.bytes += -(-size // _LINE) * _LINE

    def new(self, like: Tensor) -> Tensor:
        """Memory for all parts, not initialised."""
        return like.new_empty(self.bytes, dtype=torch.uint8)

    def addresses(self, memory: Tensor) -> dict[str, int | None]:
        """Each part's address, None for one that is not there. The memory must outlive their use."""
        assert memory.numel() == self.bytes and memory.is_contiguous(), "memory for other parts"
        begin = memory.data_ptr()
        return {name: None if offset is None else begin + offset for name, offset in self.offsets.items()}


_remembered = functools.lru_cache(maxsize=128)(Parts)


def parts_of(**sizes: int) -> Parts:
    """The parts of these sizes, remembered unless a compiler asks with sizes that have no value."""
    return _remembered(**sizes) if all(type(size) is int for size in sizes.values()) else Parts(**sizes)
