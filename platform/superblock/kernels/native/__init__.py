"""C++ kernels for processors: built at first use in seconds, checked against the reference, called without torch's headers."""

from superblock.kernels.native.library import NativeLibrary

__all__ = ["NativeLibrary"]
