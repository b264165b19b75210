"""The library's entry of the benchmark command: each suite is a package beside this file, with a `command` of its own."""

from importlib import import_module

from superblock.benchmarks.ablation.plan import Compose
from superblock.config.benchmark import EXPERIMENTS, BenchmarkConfig


def benchmark(config: BenchmarkConfig, *, compose: Compose) -> int:
    """Runs the suite that `config.suite.name` names.

    Args:
        config: what to measure.
        compose: makes the configuration of a run from what would stand on its command line, for suites that train.

    Returns:
        Status of the process: 0, or 1 if a case failed.

    Raises:
        ConfigError: for settings that cannot work.
    """
    suite = import_module(f"superblock.benchmarks.{config.suite.name}.command")
    status: int = suite.run(config, compose) if config.suite.name in EXPERIMENTS else suite.run(config)
    return status
