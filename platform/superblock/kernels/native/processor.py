"""What this processor can do, in the levels for which the C++ kernels have code.

Standard library only. The level is chosen here, at run time, and handed to the compiler as explicit flags, so that any level
that the processor has can also be asked for: `SUPERBLOCK_NATIVE=avx2` runs what an older laptop runs.
"""

import os
import platform
from functools import cache
from pathlib import Path

VARIABLE = "SUPERBLOCK_NATIVE"
"""Environment variable: a level, or `off`."""

# just what `_NEEDS` asks the processor for, in words that GCC knew before it had names for levels
_AVX2 = ["-mavx2", "-mfma", "-mbmi2", "-mf16c"]
_AVX512 = [*_AVX2, "-mavx512f", "-mavx512bw", "-mavx512cd", "-mavx512dq", "-mavx512vl"]
FLAGS = {
    "plain": [],
    "avx2": _AVX2,
    "avx512": _AVX512,
    "avx512_bf16": [*_AVX512, "-mavx512bf16"],
    "amx": [*_AVX512, "-mavx512bf16", "-mamx-tile", "-mamx-bf16"],
}
"""Compiler flags of each level, lowest first; each processor has all levels below its own."""

_NEEDS = {
    "avx2": {"avx2", "fma", "bmi2", "f16c"},
    "avx512": {"avx512f", "avx512bw", "avx512cd", "avx512dq", "avx512vl"},
    "avx512_bf16": {"avx512_bf16"},
    "amx": {"amx_tile", "amx_bf16"},
}


@cache
def flags() -> frozenset[str]:
    """Names of the processor's extensions as Linux writes them; empty where they cannot be read."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return frozenset()
    return next((frozenset(line.split(":", 1)[1].split()) for line in lines if line.startswith("flags")), frozenset())


@cache
def best_level() -> str:
    """The highest level of this processor; `plain` where that cannot be known."""
    best = "plain"
    if platform.machine().lower() not in ("x86_64", "amd64"):
        return best
    for level, needed in _NEEDS.items():
        if not needed <= flags():
            break
        best = level
    return best


def levels() -> list[str]:
    """Every level that this processor has, lowest first."""
    names = list(FLAGS)
    return names[: names.index(best_level()) + 1]


def forced() -> bool:
    """Whether `SUPERBLOCK_NATIVE` names a level, or turns everything off."""
    return os.environ.get(VARIABLE, "auto") not in ("", "auto")


def level() -> str | None:
    """The level to use: the best one, or what `SUPERBLOCK_NATIVE` says; None is off.

    Raises:
        ValueError: for a level that does not exist, or that this processor has not.
    """
    if not forced():
        return best_level()
    wanted = os.environ[VARIABLE]
    if wanted == "off":
        return None
    if wanted not in FLAGS:
        raise ValueError(f"{VARIABLE}={wanted}: unknown; choose one of auto, off, {', '.join(FLAGS)}")
    if wanted not in levels():
        raise ValueError(f"{VARIABLE}={wanted}: this processor has {best_level()} at most")
    return wanted
