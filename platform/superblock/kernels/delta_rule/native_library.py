"""The C++ library of Gated DeltaNet: convolution, gates and rule, built and checked together."""

from pathlib import Path

from superblock.kernels.native import NativeLibrary


def _check() -> None:
    from superblock.kernels.delta_rule import native, native_convolution, native_gates  # which call the library

    for module in (native, native_convolution, native_gates):
        module.check()


LIBRARY = NativeLibrary(Path(__file__).with_name("native.cpp"), check=_check)
