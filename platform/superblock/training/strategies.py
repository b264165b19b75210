"""Lightning strategies by name. More than one process is torchrun's business, never Lightning's.

`fsdp` is torch's FSDP2 (`fully_shard`) under Lightning's ModelParallelStrategy, on GPU and on CPU. Lightning's own
FSDPStrategy is the older FSDP1: it refuses CPUs, cannot clip by norm, and flattens the matrices that Muon needs.
"""

import lightning.pytorch as pl
import torch
from lightning.pytorch.strategies import DDPStrategy, ModelParallelStrategy, SingleDeviceStrategy, Strategy
from lightning.pytorch.strategies.parallel import ParallelStrategy
from torch.distributed.tensor import DTensor

from superblock.config.fields import ConfigError
from superblock.training.distributed import TIMEOUT, launched_processes


class _TorchrunOnly(ParallelStrategy):
    """Lightning's launcher starts processes by running `sys.argv` again, which other commands and sweeps break."""

    def _configure_launcher(self) -> None:
        assert self.cluster_environment is not None
        if self.cluster_environment.creates_processes_externally:
            return
        if self.parallel_devices is not None and len(self.parallel_devices) > 1:
            count = len(self.parallel_devices)
            raise ConfigError(
                f"{count} processes are started with: torchrun --nproc-per-node {count} -m superblock.cli run ..."
            )


class FSDP2Strategy(_TorchrunOnly, ModelParallelStrategy):
    """Shards over all processes; the module cuts its model in `configure_model` (training.sharding).

    Lightning's defaults are a data-parallel size of the number of machines and tensor parallelism within each: on one
    machine, no sharding and no averaging of gradients, without an error.
    """

    def __init__(self) -> None:
        super().__init__(data_parallel_size=launched_processes(), tensor_parallel_size=1, timeout=TIMEOUT)

    def setup(self, trainer: pl.Trainer) -> None:
        """Lightning's set-up, then a check: an unsharded model would train on each process's own gradients, unnoticed."""
        super().setup(trainer)
        assert self.model is not None
        plain = [name for name, parameter in self.model.named_parameters() if not isinstance(parameter, DTensor)]
        if plain:
            raise RuntimeError(
                f"strategy fsdp: configure_model left {len(plain)} parameters unsharded, {plain[0]} first"
            )


class DDPByTorchrun(_TorchrunOnly, DDPStrategy):
    """Every process holds the whole model.

    Which heads have a gradient changes from step to step, so unused parameters are looked for. Buffers are not sent:
    every process moves the routers' biases by the same counts.
    """

    def __init__(self) -> None:
        super().__init__(
            find_unused_parameters=True, broadcast_buffers=False, gradient_as_bucket_view=True, timeout=TIMEOUT
        )


def resolve_strategy(name: str) -> str:
    """`auto` is `single`, or `fsdp` under torchrun.

    Raises:
        ConfigError: for `single` with several processes.
    """
    processes = launched_processes()
    if name == "auto":
        return "single" if processes == 1 else "fsdp"
    if name == "single" and processes > 1:
        raise ConfigError(f"trainer.strategy=single: torchrun started {processes} processes; use ddp, fsdp or auto")
    return name


def resolve_accelerator(name: str) -> str:
    """`auto` is `gpu` if there is one, else `cpu`.

    Raises:
        ConfigError: for `gpu` without a GPU that torch can use.
    """
    if name == "gpu" and not torch.cuda.is_available():
        raise ConfigError(
            "trainer.accelerator=gpu: torch sees no GPU here; use cpu, or install a build of torch with CUDA"
        )
    return ("gpu" if torch.cuda.is_available() else "cpu") if name == "auto" else name


def build_strategy(name: str, accelerator: str = "cpu", precision: str = "fp32") -> Strategy:
    """A Lightning strategy.

    Args:
        name: single, ddp, fsdp or auto.
        accelerator: cpu, gpu or auto.
        precision: fp32, bf16 or fp16.

    Raises:
        ConfigError: for a combination that cannot run.
    """
    name, accelerator = resolve_strategy(name), resolve_accelerator(accelerator)
    if precision == "fp16" and (accelerator == "cpu" or name == "fsdp"):
        raise ConfigError(
            "trainer.precision=fp16: needs a GPU and trainer.strategy=single or ddp; bf16 works everywhere"
        )
    if name == "single":
        return SingleDeviceStrategy(device=torch.device("cuda", 0) if accelerator == "gpu" else torch.device("cpu"))
    return FSDP2Strategy() if name == "fsdp" else DDPByTorchrun()
