"""Several results of a C++ kernel in one piece of memory: one tensor to allocate, to save and to free instead of many."""

import functools
from collections.abc import Iterator

import torch
from torch import Tensor

_LINE = 64
"""Bytes of a cache line, at which every part begins."""


class Parts:
    """Where the parts of a tensor of bytes begin. `sizes` are the parts' bytes; a size of 0 is a part that is not there."""

    def __init__(self, *sizes: int) -> None:
        self.offsets: list[int | None] = []
        self.bytes = 0
        for size in sizes:
            self.offsets.append(None if size == 0 else self.bytes)
            self.bytes += -(-size // _LINE) * _LINE

    def new(self, like: Tensor) -> Tensor:
        """Memory for all parts, not initialised."""
        return like.new_empty(self.bytes, dtype=torch.uint8)

    def addresses(self, memory: Tensor) -> Iterator[int]:
        """Each part's address, as `NativeLibrary.call` takes it; 0, a null pointer, for one that is not there."""
        assert memory.numel() == self.bytes and memory.is_contiguous(), "memory for other parts"
        begin = memory.data_ptr()
        return (0 if offset is None else begin + offset for offset in self.offsets)


_remembered = functools.lru_cache(maxsize=128)(Parts)


def parts_of(*sizes: int) -> Parts:
    """The parts of these sizes, remembered unless a compiler asks with sizes that have no value."""
    return _remembered(*sizes) if all(type(size) is int for size in sizes) else Parts(*sizes)
