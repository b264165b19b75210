"""The C++ library of Gated DeltaNet: convolution, gates, rule and whole layers, built and checked together."""

from pathlib import Path

from superblock.kernels.native import NativeLibrary


def _check() -> None:
    from superblock.kernels.delta_rule import (  # which call the library
        native,
        native_convolution,
        native_gates,
        whole_layer,
    )

    for module in (native, native_convolution, native_gates, whole_layer):
        module.check()


LIBRARY = NativeLibrary(Path(__file__).with_name("native.cpp"), check=_check)
