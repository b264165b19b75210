"""The exits suite from configuration to record."""

from superblock.benchmarks.ablation.experiment import Experiment, carry_out
from superblock.benchmarks.ablation.plan import Compose, common_words
from superblock.benchmarks.exits.results import conclude, panels, tables
from superblock.benchmarks.exits.runs import exits_runs
from superblock.config.benchmark import BenchmarkConfig


def run(config: BenchmarkConfig, compose: Compose) -> int:
    """Does what is left of the experiment; see `ablation.experiment.carry_out`."""
    common = common_words(config, compose)
    runs = exits_runs(config, compose, common)
    return carry_out(config, compose, Experiment("exits", runs, common, conclude, tables, panels))
