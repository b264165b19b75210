"""`superblock benchmark`: measure, and record what was measured."""

import os
import sys

from superblock.cli.app import compose_run, launch
from superblock.config.benchmark import BenchmarkConfig
from superblock.config.fields import ConfigError


def main() -> None:
    launch("benchmark", run)


def run(config: BenchmarkConfig) -> None:
    """Runs the suite that `config` names.

    Raises:
        ConfigError: under torchrun, where processes would disturb each other.
        SystemExit: with status 1 if a case failed.
    """
    if int(os.environ.get("WORLD_SIZE", "1")) > 1:
        raise ConfigError("WORLD_SIZE: a benchmark runs in one process; start it without torchrun")
    from superblock.benchmarks.command import benchmark

    if status := benchmark(config, compose=compose_run):
        sys.exit(status)
