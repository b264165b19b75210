"""The ablation suite from configuration to record: arms of a sweep file at an equal budget, paired by seed."""

from collections.abc import Iterator, Sequence
from dataclasses import replace

from superblock.benchmarks.ablation.experiment import Experiment, carry_out
from superblock.benchmarks.ablation.plan import Compose, common_words
from superblock.benchmarks.ablation.sweep import Sweep, read_sweep
from superblock.benchmarks.ablation.sweep_results import concluding, panels, tables
from superblock.benchmarks.ablation.sweep_runs import Planned, plan_arms, sweep_runs
from superblock.benchmarks.screen import Screen
from superblock.config.benchmark import BenchmarkConfig
from superblock.config.fields import ConfigError

SUITE_SCALE = "mini"
"""Of conf/suite/ablation.yaml: another one was typed."""
QUICK = "3 steps of the reference"


def run(config: BenchmarkConfig, compose: Compose) -> int:
    """Does what is left of the sweep; see `experiment.carry_out`.

    Raises:
        ConfigError: naming the sweep file, the arm and the key.
    """
    sweep = read_sweep(config.ablation)
    if config.quick:
        sweep = replace(sweep, budget_words=QUICK)
    config = replace(_at_its_scale(config, sweep, compose), ablation=sweep.as_config())
    common = common_words(config, compose)
    planned = plan_arms(sweep, compose, common)
    screen = Screen()
    for line in budget_lines(sweep, planned):
        screen.line(line)
    runs = sweep_runs(planned, sweep.seeds, quick=config.quick)
    conclude = concluding(sweep, planned)
    return carry_out(config, compose, Experiment("ablation", runs, common, conclude, tables, panels, stem=sweep.stem))


def budget_lines(sweep: Sweep, planned: Sequence[Planned]) -> Iterator[str]:
    """What every arm is trained for, and how far whole steps are from the budget."""
    equal = "equal FLOPs" if sweep.budget.unit == "flops" else f"equal {sweep.budget.unit}, not equal FLOPs"
    yield f"{sweep.title or sweep.source}; {sweep.budget_words} per arm and stage: {equal}"
    width = max(len(f"{one.stage}/{one.arm.name}") for one in planned)
    for one in planned:
        before = f" after {one.parent.steps} of {one.parent.stage}" if one.parent else ""
        mark = "  (reference)" if one.arm.name == sweep.reference else ""
        yield (
            f"  {one.stage + '/' + one.arm.name:<{width}}  {one.own.steps:>5} steps{before}, {one.flops / 1e12:.3g} TFLOP, "
            f"{one.beyond:+.2%} of the budget by rounding{mark}"
        )


def _at_its_scale(config: BenchmarkConfig, sweep: Sweep, compose: Compose) -> BenchmarkConfig:
    """The sweep's own scale, where the file names one and the command line does not."""
    if sweep.scale in (None, config.scale.name):
        return config
    if config.scale.name != SUITE_SCALE:
        raise ConfigError(f"scale={config.scale.name}: {sweep.source} says scale: {sweep.scale}; leave one of them out")
    try:
        return replace(config, scale=compose([f"scale={sweep.scale}", "trainer.budget=1steps"]).scale)
    except ConfigError as error:
        raise ConfigError(f"{sweep.source}: scale: {error}") from None
