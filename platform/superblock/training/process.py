"""The process itself: settings that make training on a processor faster without changing what is computed, and its memory."""

import contextlib
import ctypes
import gc
import os
import re
import sys
from pathlib import Path

import psutil
import torch

_M_TRIM_THRESHOLD, _M_TOP_PAD, _M_MMAP_THRESHOLD = -1, -2, -3


def prepare_process(threads: int | None, processes: int) -> int:
    """Sets the number of threads, keeps freed memory, and flushes subnormal numbers.

    Args:
        threads: CPU threads of this process; `None` is one per core, or one where several processes share the machine
            (two spinning OpenMP pools on the same cores run 10 to 500 times slower).
        processes: processes of this run.

    Returns:
        The number of threads in use.
    """
    count = threads or (1 if processes > 1 else os.cpu_count() or 1)
    torch.set_num_threads(count)
    keep_freed_memory()
    # the decays of Gated DeltaNet underflow; subnormal arithmetic made a whole step 1.3 times slower
    torch.set_flush_denormal(True)
    return count


def keep_freed_memory() -> None:
    """Tells glibc to keep large freed blocks; page faults cost up to 4 times the matrix product that follows them."""
    if sys.platform != "linux":
        return
    try:
        libc = ctypes.CDLL("libc.so.6")
    except OSError:  # musl has no such knob
        return
    libc.mallopt(_M_MMAP_THRESHOLD, 1 << 30)
    libc.mallopt(_M_TRIM_THRESHOLD, (1 << 31) - 1)
    libc.mallopt(_M_TOP_PAD, 64 << 20)


def forget_peak() -> None:
    """Gives unused memory back and counts the peak from here, where the system can: a process may train one model after
    another, and each run tells its own."""
    gc.collect()
    if sys.platform != "linux":
        return
    with contextlib.suppress(OSError, AttributeError):  # musl has no malloc_trim, a container may protect the file
        ctypes.CDLL("libc.so.6").malloc_trim(0)
        Path("/proc/self/clear_refs").write_text("5")  # resets VmHWM


def resident_bytes() -> int:
    """Memory this process holds now."""
    return int(psutil.Process(os.getpid()).memory_info().rss)


def peak_bytes() -> int:
    """The most memory this process held since it began, or since `forget_peak`.

    Linux's `ru_maxrss` survives `exec`, so that a process started by a large one would report its parent's peak; VmHWM
    is the process's own.
    """
    status = Path("/proc/self/status")
    if status.exists() and (match := re.search(r"VmHWM:\s*(\d+) kB", status.read_text())):
        return int(match[1]) * 1024
    if sys.platform == "win32":
        return int(psutil.Process(os.getpid()).memory_info().peak_wset)
    import resource

    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024  # macOS counts bytes, others KiB
