"""The runs of suite=growth: for each seed a chain of models, each grown by every method and trained from scratch.

    1                1 superblock from scratch                  parent_steps
    1-3/<method>     grown from 1                               grown_steps
    1-3/scratch      3 superblocks from scratch                 as many steps as cost what 1 and the growing cost together
    3-6/<method>     grown from 1-3/scratch                     grown_steps_6
    3-6/scratch      6 superblocks from scratch                 likewise

The parents of 3-6 are trained from scratch, not grown, so that the two transitions do not share a choice of method. From
1 superblock there is nothing to interpolate between: it is what stack does, bit for bit, and is not trained twice.
"""

from collections.abc import Callable, Sequence
from statistics import fmean

from superblock.benchmarks.ablation.comparison import values
from superblock.benchmarks.ablation.experiment import quickened
from superblock.benchmarks.ablation.plan import Compose, Entries, Run, name_of, step_flops
from superblock.config.benchmark import BenchmarkConfig
from superblock.config.growth import METHODS

SCRATCH = "scratch"
GROWN = tuple(method for method in METHODS if method != "none")
TRANSITIONS = {"1-3": (1, 3), "3-6": (3, 6)}
SAME = {("1-3", "interpolate"): "stack"}
"""Methods that are another one at a transition."""
FRESH_OPTIMIZER, LOWER_RATE = "fresh-optimizer", "lower-rate"
EXTRAS = (FRESH_OPTIMIZER, LOWER_RATE)
FULL_RATE = "growth.learning_rate=1"
"""Stated by every arm, so that a later default does not alter what an arm means."""


def growth_runs(config: BenchmarkConfig, compose: Compose, common: Sequence[str]) -> list[Run]:
    """All of them, seed after seed, so that an experiment that is cut short has whole pairs; the extra arms come last."""
    g, seeds = config.growth, config.growth.seeds
    steps: tuple[int, ...] = (g.parent_steps, g.grown_steps, g.grown_steps_6)
    if config.quick:
        seeds, steps = quickened(seeds, *steps)
    cost = {depth: step_flops(compose, common, depth) for depth in (1, 3, 6)}
    runs: list[Run] = []
    for seed in seeds:
        runs += _chain(seed, steps, cost)
    for seed in (seed for seed in g.extra_seeds if seed in seeds):
        runs += _extras(seed, seeds, steps[1], cost[3], g.learning_rate)
    return runs


def methods_of(group: str) -> tuple[str, ...]:
    """The methods that differ at a transition."""
    return tuple(method for method in GROWN if (group, method) not in SAME)


def best_method(entries: Entries, group: str, seeds: Sequence[int]) -> str:
    """The method with the lowest mean of test bits per byte over these seeds; all its runs must have finished."""
    found = {method: values(entries, group, method) for method in methods_of(group)}
    return min(found, key=lambda method: fmean(found[method][seed] for seed in seeds))


def _chain(seed: int, steps: Sequence[int], cost: dict[int, float]) -> list[Run]:
    first = Run("1", SCRATCH, seed, 1, steps[0], steps[0] * cost[1])
    runs, parent, total = [first], first, first.flops
    for (group, (_, depth)), grown_steps in zip(TRANSITIONS.items(), steps[1:], strict=True):
        flops = grown_steps * cost[depth]
        for method in methods_of(group):
            words = (f"growth.method={method}", FULL_RATE)
            runs.append(Run(group, method, seed, depth, grown_steps, flops, words, parent.name))
        control_steps = max(1, round((total + flops) / cost[depth]))
        parent = Run(group, SCRATCH, seed, depth, control_steps, control_steps * cost[depth])
        runs.append(parent)
        total = parent.flops
    return runs


def _extras(seed: int, seeds: Sequence[int], steps: int, cost: float, rate: float) -> list[Run]:
    """Two variants of whichever method is best from 1 to 3."""
    after = tuple(name_of("1-3", method, other) for other in seeds for method in methods_of("1-3"))
    words = {
        FRESH_OPTIMIZER: ("growth.optimizer=false", FULL_RATE),
        LOWER_RATE: (f"growth.learning_rate={rate:g}",),
    }
    return [
        Run(
            "1-3", arm, seed, 3, steps, steps * cost, words[arm], name_of("1", SCRATCH, seed), after, _best_words(seeds)
        )
        for arm in EXTRAS
    ]


def _best_words(seeds: Sequence[int]) -> Callable[[Entries], Sequence[str]]:
    return lambda entries: [f"growth.method={best_method(entries, '1-3', seeds)}"]
