"""`superblock run`: train, evaluate and track one stage."""

import os
from pathlib import Path

from superblock.cli.app import launch, say
from superblock.config.fields import ConfigError
from superblock.config.run import RunConfig


def main() -> None:
    launch("run", run)


def run(config: RunConfig) -> None:
    """Trains what `config` describes.

    Raises:
        ConfigError: for a strategy that does not fit the number of processes.
    """
    check_processes(config.trainer.strategy, int(os.environ.get("WORLD_SIZE", "1")))
    superblocks = f"{config.stage.superblocks} superblock{'s' if config.stage.superblocks > 1 else ''}"
    say(f"{config.stage.name}: {superblocks}, scale {config.scale.name}, {config.trainer.budget}; in {Path.cwd()}")
    from superblock.training.loop import train

    train(config)


def check_processes(strategy: str, processes: int) -> None:
    """More than one process is torchrun's business: Lightning's own launcher would start this command line again."""
    if strategy in ("ddp", "fsdp") and "WORLD_SIZE" not in os.environ:
        raise ConfigError(
            f"trainer.strategy={strategy}: needs processes to work with; start them with\n"
            f"torchrun --nproc-per-node=2 -m superblock.cli run trainer.strategy={strategy}"
        )
    if strategy == "single" and processes > 1:
        raise ConfigError(f"trainer.strategy=single: torchrun started {processes} processes; must be ddp, fsdp or auto")
