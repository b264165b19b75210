"""The runs of a sweep: every arm, seed after seed, each with as many steps as the budget buys it.

Groups are the stages; the models that grown arms begin from are in a group of their own, `parents`, and are shared by
arms that need the same one. A grown arm and its parent cost together what every other arm costs.
"""

from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, replace

from superblock.benchmarks.ablation.budget import ArmBudget, step_cost, steps_for
from superblock.benchmarks.ablation.experiment import quickened
from superblock.benchmarks.ablation.plan import Compose, Run
from superblock.benchmarks.ablation.sweep import Sweep
from superblock.benchmarks.ablation.sweep_file import STAGES, Arm, key_of
from superblock.config.fields import ConfigError, differences
from superblock.config.run import RunConfig

PARENTS = "parents"
SHARED_DATA = ("vocab_size", "sequence_length", "workers", "cache_dir")
"""Fields of the data that may differ between arms; all others decide which text is read and scored."""


@dataclass(frozen=True)
class Training:
    """A stretch of an arm: its parent, or its own."""

    stage: str
    words: tuple[str, ...]
    superblocks: int
    steps: int
    flops: float


@dataclass(frozen=True)
class Planned:
    """An arm at a stage with what it will be trained for."""

    stage: str
    arm: Arm
    own: Training
    parent: Training | None
    beyond: float
    """How far its steps miss the budget, as a share of it: they are whole numbers."""

    @property
    def flops(self) -> float:
        """Of the arm and its parent."""
        return self.own.flops + (self.parent.flops if self.parent else 0.0)


def plan_arms(sweep: Sweep, compose: Compose, common: Sequence[str]) -> list[Planned]:
    """Every arm at every stage with its steps.

    Args:
        compose: makes the configuration of a run.
        common: overrides of all runs.

    Raises:
        ConfigError: naming file, arm and key: for overrides that cannot work, for arms that read another text, and for two
            that are the same.
    """
    budget = sweep.budget
    found = []
    for stage in sweep.stages:
        configs = {arm.name: _compose(sweep, arm, compose, stage, common) for arm in sweep.arms}
        _compare(sweep, configs)
        amount = budget.of(configs[sweep.reference])
        for arm in sweep.arms:
            found.append(_plan(sweep, arm, compose, common, stage, configs[arm.name], amount, budget))
    return found


def sweep_runs(planned: Sequence[Planned], seeds: Sequence[int], *, quick: bool = False) -> list[Run]:
    """Seed after seed, so that a sweep that is cut short has whole pairs."""
    chosen = quickened(list(seeds))[0] if quick else list(seeds)
    names = _parent_names(planned)
    return [run for seed in chosen for run in _of_seed(planned, names, seed)]


def _of_seed(planned: Sequence[Planned], names: dict[Training, str], seed: int) -> Iterator[Run]:
    for training, name in names.items():
        yield _run(PARENTS, name, seed, training)
    for one in planned:
        run = _run(one.stage, one.arm.name, seed, one.own)
        yield replace(run, parent=_run(PARENTS, names[one.parent], seed, one.parent).name) if one.parent else run


def _run(group: str, arm: str, seed: int, training: Training) -> Run:
    return Run(
        group, arm, seed, training.superblocks, training.steps, training.flops, training.words, stage=training.stage
    )


def _parent_names(planned: Sequence[Planned]) -> dict[Training, str]:
    """Each parent that is needed, once; the second of a stage and those after it are numbered."""
    names: dict[Training, str] = {}
    for parent in dict.fromkeys(one.parent for one in planned if one.parent):
        same = sum(other.stage == parent.stage for other in names)
        names[parent] = f"{parent.stage}-{same + 1}" if same else parent.stage
    return names


# -- one arm ------------------------------------------------------------------------------------------------------


def _plan(
    sweep: Sweep, arm: Arm, compose: Compose, common: Sequence[str], stage: str, config: RunConfig, amount: float, budget: ArmBudget
) -> Planned:  # fmt: skip
    words = tuple(word for word in sweep.words(arm) if key_of(word) != "parent")
    parent, spent = None, 0.0
    if from_stage := _parent_stage(arm):
        if STAGES.index(from_stage) >= STAGES.index(stage):
            raise ConfigError(
                f"{sweep.source}: arms.{arm.name}.overrides: parent={from_stage}: must be a stage before {stage}"
            )
        parent_words = tuple(word for word in words if not key_of(word).startswith("growth."))
        parent_config = _compose(sweep, replace(arm, words=parent_words), compose, from_stage, common)
        parent = _training(from_stage, parent_words, parent_config, sweep.parent_share * amount, budget)
        spent = parent.steps * step_cost(parent_config, budget.unit)
    own = _training(stage, words, config, amount - spent, budget)
    beyond = (spent + own.steps * step_cost(config, budget.unit)) / amount - 1
    return Planned(stage, arm, own, parent, beyond)


def _training(stage: str, words: tuple[str, ...], config: RunConfig, amount: float, budget: ArmBudget) -> Training:
    steps = steps_for(amount, step_cost(config, budget.unit))
    return Training(stage, words, config.model.num_superblocks, steps, steps * step_cost(config, "flops"))


def _parent_stage(arm: Arm) -> str | None:
    return next((word.partition("=")[2] for word in arm.words if key_of(word) == "parent"), None)


def _compose(sweep: Sweep, arm: Arm, compose: Compose, stage: str, common: Sequence[str]) -> RunConfig:
    words = [word for word in sweep.words(arm) if key_of(word) != "parent"]
    try:
        return compose([f"stage={stage}", *common, *words, "trainer.budget=1steps"])
    except ConfigError as error:
        raise ConfigError(f"{sweep.source}: arms.{arm.name}.overrides: {error}") from None


def _compare(sweep: Sweep, configs: dict[str, RunConfig]) -> None:
    """Arms must read one text, and no two may be the same."""
    reference = configs[sweep.reference]
    arms = {arm.name: arm for arm in sweep.arms}
    seen: dict[str, str] = {}
    for name, config in configs.items():
        other = next(differences(asdict(reference.data), asdict(config.data), "data", SHARED_DATA), None)
        if other:
            raise ConfigError(
                f"{sweep.source}: arms.{name}.overrides: {other[0]}={other[2]}: reads another text than {sweep.reference}; "
                "write it for all arms, as overrides of the sweep"
            )
        key = repr((asdict(config), _parent_stage(arms[name])))
        if key in seen:
            raise ConfigError(f"{sweep.source}: arms.{name}: is the same configuration as arms.{seen[key]}; remove one")
        seen[key] = name
