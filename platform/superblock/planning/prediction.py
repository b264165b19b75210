"""What a run will reach and cost, predicted before it is trained from the runs that are finished.

Every value is the median of draws from the laws in `planning.scaling`, with the interval that holds the middle 80 % of
them: of many such intervals about one in five does not contain what is measured later. That share is checked against
known truths in the tests. Quality rests on runs of the same scale and text, wherever they ran; time and memory on runs
on the same machine with the same number of threads, and only where there is none on others, with a factor of 2 to spare.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

from superblock.config.budget import Budget
from superblock.config.run import PlanConfig, RunConfig
from superblock.models.formulas import Counts, count
from superblock.planning import finished as past
from superblock.planning.finished import Finished
from superblock.planning.forecast import Forecast, Target
from superblock.tracking.identity import compared_settings
from superblock.tracking.runs import RunRecord

if TYPE_CHECKING:
    from superblock.planning.regression import Array

CONFIDENCE = 0.8
QUANTITIES = (
    "minutes", "minutes_in_all", "steps", "tokens", "memory_bytes", "bits_per_byte", "flops", "lineage_flops",
)  # fmt: skip


@dataclass(frozen=True)
class Estimate:
    """A value and the interval that contains it with the prediction's confidence."""

    value: float
    low: float
    high: float

    def contains(self, measured: float) -> bool:
        return self.low <= measured <= self.high


@dataclass(frozen=True)
class Prediction:
    """What a run is expected to measure."""

    minutes: Estimate
    """Of training steps."""
    minutes_in_all: Estimate
    """Of the command from start to summary: preparation, evaluation and samples included."""
    steps: Estimate
    tokens: Estimate
    memory_bytes: Estimate
    """Peak of the process."""
    bits_per_byte: Estimate
    """On the test split."""
    flops: Estimate
    """Of this training, forward and backward."""
    lineage_flops: Estimate
    """Of this training and those its weights come from."""
    confidence: float
    runs: tuple[str, ...]
    """Runs it rests on."""
    words: str
    """One line: what it rests on."""

    def to_dict(self) -> dict[str, Any]:
        """The prediction as JSON."""
        return asdict(self) | {"runs": list(self.runs)}

    @classmethod
    def from_dict(cls, plain: Mapping[str, Any]) -> Prediction:
        """A prediction from what `to_dict` made of it."""
        estimates = {name: Estimate(**plain[name]) for name in QUANTITIES}
        return cls(
            **estimates,
            confidence=float(plain["confidence"]),
            runs=tuple(plain.get("runs", ())),
            words=str(plain.get("words", "")),
        )


def predict(config: RunConfig, records: Sequence[RunRecord], *, parent: RunRecord | None) -> Prediction | str:
    """Predicts a run of this configuration.

    Args:
        config: what is to be trained.
        records: every run that is known; those that say something are chosen from it.
        parent: the run its weights will begin from.

    Returns:
        The prediction, or in words why there is none.
    """
    return foresee(target(config, parent), past.read_finished(records))


def target(config: RunConfig, parent: RunRecord | None) -> Target:
    """What `config` would train."""
    grown = parent is not None and config.growth.method != "none"
    lineage = past.read_finished([parent]) if grown and parent is not None else []
    return _target(
        config,
        count(config.model),
        lineage[0] if lineage else None,
        tokens=(config.trainer.batch_size, config.data.sequence_length),
        budget=config.trainer.budget,
        settings=compared_settings(config),
        threads=config.trainer.threads,
    )


def plan_target(config: PlanConfig, counts: Counts, parent: Finished | None, threads: int | None) -> Target:
    """What the stage would train with its own budget; `plan` knows neither optimizer nor text."""
    settings = compared_settings(RunConfig(model=config.model))
    return _target(
        config,
        counts,
        parent,
        tokens=(config.scale.batch_size, config.scale.sequence_length),
        budget=config.stage.budget.get(config.scale.name),
        settings={key: value for key, value in settings.items() if key.startswith("model.")},
        threads=threads,
    )


def _target(
    config: RunConfig | PlanConfig,
    counts: Counts,
    parent: Finished | None,
    *,
    tokens: tuple[int, int],
    budget: str | None,
    settings: dict[str, str],
    threads: int | None,
) -> Target:
    """`tokens` are the sequences of a step and the tokens of each."""
    sequences, length = tokens
    return Target(
        stage=config.stage.name,
        scale=config.scale.name,
        superblocks=config.model.num_superblocks,
        active=counts.active,
        total=counts.total,
        flops_per_token=counts.training_flops_per_token(length),
        tokens_per_step=sequences * length,
        width=config.model.d_model,
        budget=Budget.parse(budget) if budget else None,
        parents=parent.lineage if parent else (),
        digest=parent.digest if parent else None,
        settings=settings,
        machine=past.this_machine(threads),
    )


def afterwards(run: Finished, runs: Sequence[Finished]) -> Prediction | None:
    """What would have been predicted of a finished run from those that were over when it began."""
    of_run = Target(
        run.stage, run.scale, run.superblocks, run.active, run.total, run.flops_per_token, run.tokens_per_step,
        float(run.settings.get("model.d_model", 256)), run.budget or Budget(run.steps, "steps"), run.lineage[:-1],
        run.digest, run.settings, run.machine or None,
    )  # fmt: skip
    found = foresee(of_run, [other for other in runs if other.ended <= run.started])
    return found if isinstance(found, Prediction) else None


def foresee(run: Target, runs: Sequence[Finished]) -> Prediction | str:
    """The prediction, or why there is none."""
    if (run.settings or {}).get("model.family", "superblock") != "superblock":
        return "there is no closed form for the cost of a model family of your own"
    if run.budget is None:
        return f"stage {run.stage} has no training budget at scale={run.scale}"
    known = [other for other in runs if other.scale == run.scale]
    quality = _quality(run, known)
    if not quality:
        return f"no finished and tested run on this text at scale={run.scale}"
    here = [other for other in known if past.same_speed(run.machine or {}, run.settings or {}, other)]
    forecast = Forecast(run, quality, here or known, elsewhere=not here)
    return Prediction(
        **{name: _estimate(draws) for name, draws in forecast.draws().items()},
        confidence=CONFIDENCE,
        runs=forecast.runs(),
        words=f"{CONFIDENCE:.0%} intervals from {forecast.words()}",
    )


def _quality(run: Target, known: Sequence[Finished]) -> list[Finished]:
    """Runs on the same text, of the same recipe if there are any, else of the newest one."""
    settings = run.settings or {}
    measured = [other for other in known if other.loss is not None and past.same_data(settings, other.settings)]
    digest = run.digest or (measured[-1].digest if measured else None)
    measured = [other for other in measured if other.digest == digest]
    for recipe in (settings, *(other.settings for other in measured[-1:])):
        if chosen := [other for other in measured if past.same_recipe(recipe, other.settings)]:
            return chosen
    return []


def _estimate(draws: Array) -> Estimate:
    """The median and the middle of the draws."""
    import numpy as np

    tail = (1 - CONFIDENCE) / 2
    low, value, high = np.quantile(draws, [tail, 0.5, 1 - tail])
    return Estimate(float(value), float(low), float(high))
