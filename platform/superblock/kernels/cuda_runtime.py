"""Puts CUDA 12's runtime library beside torch's own, for extensions that were built for it.

The xFormers wheel on PyPI asks for `libcudart.so.12`, while torch 2.13 comes with CUDA 13. Both runtimes may live in one
process: their symbols carry versions, and both work on the driver's primary context, so that streams and memory of one
are those of the other. `nvidia-cuda-runtime-cu12` (in the `gpu` extra) brings the library where no loader looks for it.
"""

import ctypes
import sys
from pathlib import Path

SONAME = "libcudart.so.12"


def load_cuda_12() -> Path | None:
    """Loads the library, unless the process has it already; None if it is not installed.

    The loader then finds it by its name for whatever is opened afterwards. It is loaded for itself alone: other
    libraries keep the runtime that they were linked with.
    """
    if sys.platform != "linux":
        return None
    if loaded := _loaded():
        return loaded
    for folder in dict.fromkeys(sys.path):
        for path in sorted(Path(folder or ".").glob(f"nvidia/*/lib/{SONAME}")):
            try:
                ctypes.CDLL(str(path), mode=ctypes.RTLD_LOCAL)
            except OSError:
                continue
            return path
    return None


def _loaded() -> Path | None:
    try:
        lines = Path("/proc/self/maps").read_text().splitlines()
    except OSError:
        return None
    return next((Path(line.split(maxsplit=5)[-1]) for line in lines if line.endswith(SONAME)), None)
