"""The growth suite from configuration to record."""

from superblock.benchmarks.ablation.experiment import Experiment, carry_out
from superblock.benchmarks.ablation.plan import Compose, common_words
from superblock.benchmarks.growth.results import conclude, panels, tables
from superblock.benchmarks.growth.runs import growth_runs
from superblock.config.benchmark import BenchmarkConfig


def run(config: BenchmarkConfig, compose: Compose) -> int:
    """Does what is left of the experiment; see `ablation.experiment.carry_out`."""
    common = common_words(config, compose)
    runs = growth_runs(config, compose, common)
    return carry_out(config, compose, Experiment("growth", runs, common, conclude, tables, panels))
