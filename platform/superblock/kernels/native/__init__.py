"""C++ kernels for processors: built at first use in seconds, checked against the reference, called without torch's headers."""

from superblock.kernels.native.library import NativeLibrary
from superblock.kernels.native.operator import native_operator

__all__ = ["NativeLibrary", "native_operator"]
