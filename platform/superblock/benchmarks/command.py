"""The library's entry of the benchmark command: each suite is a package beside this file, with a `command` of its own."""

from importlib import import_module

from superblock.config.benchmark import BenchmarkConfig


def benchmark(config: BenchmarkConfig) -> int:
    """Runs the suite that `config.suite.name` names.

    Returns:
        Status of the process: 0, or 1 if a case failed.

    Raises:
        ConfigError: for settings that cannot work.
    """
    status: int = import_module(f"superblock.benchmarks.{config.suite.name}.command").run(config)
    return status
