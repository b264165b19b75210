"""The matrix product this device does fastest: the limit that training speed is compared with."""

import time
from functools import lru_cache

import torch

SIDE = {"cpu": 1024, "cuda": 8192}
"""Side of the square product: 2 GFLOP on a processor (14 ms at 150 GFLOP/s), 1.1 TFLOP on a GPU (2 ms)."""
SECONDS = 0.15
"""Shortest time of measurement."""


def matmul_limit(device: torch.device, dtype: torch.dtype) -> float:
    """FLOP/s of one process in square matrix products on `device`, measured once per process and number of threads."""
    return _remembered(device, dtype, torch.get_num_threads())


@lru_cache
def _remembered(device: torch.device, dtype: torch.dtype, threads: int) -> float:
    return measure_matmul_limit(device, dtype)


def measure_matmul_limit(device: torch.device, dtype: torch.dtype) -> float:
    """The same, measured now."""
    kind = device.type
    side = SIDE.get(kind, 1024)
    a, b = (torch.randn(side, side, device=device).to(dtype) for _ in range(2))
    out = a @ b  # the first call plans and allocates
    best, begin = float("inf"), time.perf_counter()
    while time.perf_counter() - begin < SECONDS:
        _synchronize(kind)
        start = time.perf_counter()
        torch.mm(a, b, out=out)
        _synchronize(kind)
        best = min(best, time.perf_counter() - start)
    return 2 * side**3 / best


def _synchronize(kind: str) -> None:
    if kind == "cuda":
        torch.cuda.synchronize()
