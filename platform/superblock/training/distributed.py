"""The few collective operations a run needs; with one process each of them is the identity."""

import os
from collections.abc import Sequence
from datetime import timedelta
from typing import Any, TypeVar

import torch
import torch.distributed as dist

from superblock.config.fields import ConfigError

T = TypeVar("T")
TIMEOUT = timedelta(minutes=30)
"""Longest wait for another process: a first step may compile, and rank 0 may prepare a corpus alone."""


def launched_processes() -> int:
    """Processes that torchrun started; 1 without it."""
    return int(os.environ.get("WORLD_SIZE", "1"))


def start_process_group(accelerator: str = "cpu", timeout: timedelta = TIMEOUT) -> None:
    """Joins torchrun's other processes, over gloo on CPU and nccl on GPU; does nothing for a single process.

    With GPUs, numbers of the processor still travel over gloo: over nccl every one of them would wait for the device.

    Args:
        accelerator: `cpu` or `gpu`; on `gpu` each process takes the device of its local rank.

    Raises:
        ConfigError: if torchrun's variables are incomplete, or a process has no GPU of its own.
    """
    if launched_processes() == 1 or dist.is_initialized():
        return
    missing = [name for name in ("RANK", "LOCAL_RANK", "MASTER_ADDR", "MASTER_PORT") if name not in os.environ]
    if missing:
        raise ConfigError(
            f"WORLD_SIZE={launched_processes()} but {', '.join(missing)} not set: start several processes with torchrun"
        )
    # two pools of spinning threads on the same cores run 10 to 500 times slower
    torch.set_num_threads(int(os.environ.get("OMP_NUM_THREADS", "1")))
    if accelerator == "gpu":
        local_rank = int(os.environ["LOCAL_RANK"])
        if local_rank >= torch.cuda.device_count():
            raise ConfigError(
                f"trainer.accelerator=gpu: process {local_rank} of this machine has no GPU; "
                f"start at most {torch.cuda.device_count()} with torchrun --nproc-per-node"
            )
        torch.cuda.set_device(local_rank)
    dist.init_process_group("cpu:gloo,cuda:nccl" if accelerator == "gpu" else "gloo", timeout=timeout)


def stop_process_group() -> None:
    """Leaves the group, so that the other processes do not wait for this one."""
    if dist.is_initialized():
        dist.destroy_process_group()


def rank() -> int:
    """Number of this process, from 0."""
    return dist.get_rank() if dist.is_initialized() else int(os.environ.get("RANK", "0"))


def world_size() -> int:
    """Number of processes."""
    return dist.get_world_size() if dist.is_initialized() else 1


def local_world_size() -> int:
    """Processes on this machine, as torchrun started them."""
    return int(os.environ.get("LOCAL_WORLD_SIZE", "1"))


def num_nodes() -> int:
    """Machines, which torchrun gives equal numbers of processes."""
    return max(1, launched_processes() // local_world_size())


def barrier() -> None:
    """Waits for all processes."""
    if dist.is_initialized():
        dist.barrier()


def broadcast_object(value: T) -> T:
    """The value of process 0, on every process."""
    if not dist.is_initialized():
        return value
    box: list[Any] = [value]
    dist.broadcast_object_list(box, src=0)
    received: T = box[0]
    return received


def all_gather_object(value: T) -> list[T]:
    """Every process's value, in the order of ranks."""
    if not dist.is_initialized():
        return [value]
    values: list[Any] = [None] * world_size()
    dist.all_gather_object(values, value)
    return values


def all_reduce_sum(values: Sequence[float]) -> list[float]:
    """Element-wise sums over processes, in float64: counts stay exact up to 2^53."""
    return _all_reduce(values, dist.ReduceOp.SUM)


def all_reduce_max(value: float) -> float:
    """The largest of the processes' values."""
    return _all_reduce([value], dist.ReduceOp.MAX)[0]


def _all_reduce(values: Sequence[float], operation: Any) -> list[float]:
    if not dist.is_initialized():
        return [float(value) for value in values]
    total = torch.tensor(list(values), dtype=torch.float64)
    dist.all_reduce(total, op=operation)
    return list(total.tolist())
