"""The runs of suite=exits: one depth trained from scratch with its exits trained in several ways, and models of the exits' own depth.

Every arm states each setting that another changes, so that a later default does not alter what an arm means.
"""

from collections.abc import Sequence

from superblock.benchmarks.ablation.experiment import quickened
from superblock.benchmarks.ablation.plan import Compose, Run, step_flops
from superblock.config.benchmark import BenchmarkConfig

OFF, FIRST, ALONE = "off", "rotate-0.1", "alone"
"""No exit learns; what the default was when this was written; a model that ends where an exit is."""


def _words(
    exits: str = "rotate", weight: float = 0.1, shape: str = "linear", start: float | None = None, tokens: float = 0.25
) -> tuple[str, ...]:
    return (
        f"model.mtp.exits={exits}", f"model.mtp.exit_weight={weight:g}", f"model.mtp.exit_shape={shape}",
        f"model.mtp.exit_start={'null' if start is None else f'{start:g}'}", f"model.mtp.token_fraction={tokens:g}",
    )  # fmt: skip


ARMS = {
    OFF: _words(weight=0),
    FIRST: _words(),
    "rotate-0.3": _words(weight=0.3),
    "rotate-1": _words(weight=1),
    "stages-0.1": _words("stages"),
    "stages-0.3-equal": _words("stages", 0.3, "equal"),
    "stages-0.3-equal-from-0": _words("stages", 0.3, "equal", start=0),
    "stages-0.3-equal-all-tokens": _words("stages", 0.3, "equal", tokens=1),
    "all-0.1": _words("all"),
    "all-0.3-equal": _words("all", 0.3, "equal"),
}


def exits_runs(config: BenchmarkConfig, compose: Compose, common: Sequence[str]) -> list[Run]:
    """All of them, seed after seed. A model of 1 superblock has no early exit, one of 3 is trained with its exits off."""
    seeds, steps = config.exits.seeds, config.exits.steps
    if config.quick:
        seeds, (steps,) = quickened(seeds, steps)
    depths = config.exits.superblocks
    kinds = [(ALONE, "1", 1, ARMS[OFF])]
    if 6 in depths and 3 not in depths:
        kinds.append(("3", OFF, 3, ARMS[OFF]))
    kinds += [(str(depth), arm, depth, words) for depth in depths for arm, words in ARMS.items()]
    cost = {(group, arm): step_flops(compose, common, depth, words) for group, arm, depth, words in kinds}
    return [
        Run(group, arm, seed, depth, steps, steps * cost[group, arm], words)
        for seed in seeds
        for group, arm, depth, words in kinds
    ]


def alone(exit_at: int) -> tuple[str, str]:
    """Group and arm of the model that ends at an exit."""
    return (ALONE, "1") if exit_at == 1 else (str(exit_at), OFF)


def exits_of(depth: int) -> list[int]:
    """The exits of a depth that are a stage's, hence compared with a model of their own."""
    return [exit_at for exit_at in (1, 3) if exit_at < depth]
