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
from superblock.tracking.identity import compared_settings
from superblock.tracking.runs import RunRecord

if TYPE_CHECKING:
    from superblock.planning.regression import Array

CONFIDENCE = 0.8
OVERHEAD = (0.93, 0.07)
"""Minutes of training as a share of a budget in minutes, which becomes steps by timing a few before the first; and its spread."""
ELSEWHERE = 0.7
"""Spread of the logarithm of another machine's speed: a factor of 2."""
BESIDE = (0.2, 0.7)
"""Minutes beside training as a share of training where no run has recorded them, and the spread of its logarithm."""
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


@dataclass(frozen=True)
class Target:
    """A run that has not happened, in the terms of the laws."""

    stage: str
    scale: str
    superblocks: int
    active: float
    total: float
    flops_per_token: float
    tokens_per_step: float
    width: float
    budget: Budget | None
    parents: tuple[tuple[int, float, float], ...] = ()
    """Superblocks, tokens and FLOPs of the runs it comes from, oldest first."""
    digest: str | None = None
    """Of the text, if it is known."""
    settings: Mapping[str, str] | None = None
    """Compared settings; None compares nothing."""
    machine: Mapping[str, Any] | None = None
    """What decides the speed; None compares nothing."""


def predict(config: RunConfig, records: Sequence[RunRecord], *, parent: RunRecord | None) -> Prediction | None:
    """Predicts a run of this configuration.

    Args:
        records: every run that is known; those that say something are chosen from it.
        parent: the run its weights will begin from.

    Returns:
        None if no finished run has anything to say; `why_not` says so in words.
    """
    found = foresee(target(config, parent), past.read_finished(records))
    return found if isinstance(found, Prediction) else None


def why_not(config: RunConfig, records: Sequence[RunRecord], *, parent: RunRecord | None) -> str:
    """Why `predict` returns None; empty where it does not."""
    found = foresee(target(config, parent), past.read_finished(records))
    return found if isinstance(found, str) else ""


def target(config: RunConfig, parent: RunRecord | None) -> Target:
    """What `config` would train."""
    counts = count(config.model)
    grown = parent is not None and config.growth.method != "none"
    lineage = past.read_finished([parent]) if grown and parent is not None else []
    return Target(
        stage=config.stage.name,
        scale=config.scale.name,
        superblocks=config.model.num_superblocks,
        active=counts.active,
        total=counts.total,
        flops_per_token=counts.training_flops_per_token(config.data.sequence_length),
        tokens_per_step=config.trainer.batch_size * config.data.sequence_length,
        width=config.model.d_model,
        budget=Budget.parse(config.trainer.budget) if config.trainer.budget else None,
        parents=lineage[0].lineage if lineage else (),
        digest=lineage[0].digest if lineage else None,
        settings=compared_settings(config),
        machine=past.this_machine(config.trainer.threads),
    )


def plan_target(config: PlanConfig, counts: Counts, parent: Finished | None) -> Target:
    """What the stage would train with its own budget; `plan` knows neither optimizer nor text."""
    text, all_settings = config.stage.budget.get(config.scale.name), compared_settings(RunConfig(model=config.model))
    settings = {key: value for key, value in all_settings.items() if key.startswith("model.")}
    return Target(
        stage=config.stage.name,
        scale=config.scale.name,
        superblocks=config.model.num_superblocks,
        active=counts.active,
        total=counts.total,
        flops_per_token=counts.training_flops_per_token(config.scale.sequence_length),
        tokens_per_step=config.scale.batch_size * config.scale.sequence_length,
        width=config.model.d_model,
        budget=Budget.parse(text) if text else None,
        parents=parent.lineage if parent else (),
        digest=parent.digest if parent else None,
        settings=settings,
        machine=past.this_machine(None),
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
    return _Forecast(run, quality, here or known, elsewhere=not here).prediction()


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


class _Forecast:
    """Draws of everything that is predicted, from one choice of runs."""

    def __init__(self, run: Target, quality: Sequence[Finished], speed: Sequence[Finished], *, elsewhere: bool) -> None:
        import numpy as np

        self.run, self.quality, self.speed, self.elsewhere = run, quality, speed, elsewhere
        self.groups = past.by_configuration(speed)
        self.random = np.random.default_rng(0)

    def prediction(self) -> Prediction:
        run = self.run
        minutes, steps = self._training()
        tokens = steps * run.tokens_per_step
        flops = tokens * run.flops_per_token
        names = dict.fromkeys(other.name for other in (*self.quality, *self.speed))
        return Prediction(
            minutes=_estimate(minutes),
            minutes_in_all=_estimate(minutes + self._beside(minutes)),
            steps=_estimate(steps),
            tokens=_estimate(tokens),
            memory_bytes=_estimate(self._memory()),
            bits_per_byte=_estimate(self._loss(tokens)),
            flops=_estimate(flops),
            lineage_flops=_estimate(flops + sum(parent[2] for parent in run.parents)),
            confidence=CONFIDENCE,
            runs=tuple(names),
            words=self._words(),
        )

    def _training(self) -> tuple[Array, Array]:
        """Minutes and steps: a budget in minutes fixes the first, any other the second."""
        import numpy as np

        from superblock.planning import scaling

        assert self.run.budget is not None
        seconds = self._seconds_per_step()
        if self.run.budget.unit != "minutes":
            steps = np.full(scaling.DRAWS, float(self.run.budget.steps(int(self.run.tokens_per_step), 1.0)))
            return steps * seconds / 60, steps
        shares = [
            past.geometric_mean(one.minutes / one.budget.amount for one in group if one.budget)
            for group in self.groups
            if all(one.budget is not None and one.budget.unit == "minutes" for one in group)
        ]
        mean, spread = OVERHEAD
        minutes = self.run.budget.amount * scaling.ratio(shares, mean=mean, spread=spread, seed=1)
        return minutes, np.maximum(1.0, 60 * minutes / seconds)

    def _seconds_per_step(self) -> Array:
        from superblock.planning import scaling

        sizes = [group[0].flops_per_token * group[0].tokens_per_step for group in self.groups]
        seconds = [past.geometric_mean(one.seconds_per_step for one in group) for group in self.groups]
        size, offsets = self.run.flops_per_token * self.run.tokens_per_step, (0, 0.03, 0.1, 0.25, 0.5, 1.0)
        return self._moved(scaling.proportional(sizes, seconds, size, noise=0.06, offsets=offsets, seed=2))

    def _beside(self, minutes: Array) -> Array:
        """Minutes of a command that are not training."""
        import numpy as np

        from superblock.planning import scaling

        groups = [[one for one in group if one.minutes_in_all is not None] for group in self.groups]
        groups = [group for group in groups if group]
        if not groups:
            mean, spread = BESIDE
            return minutes * mean * np.exp(spread * self.random.standard_normal(len(minutes)))
        beside = [
            past.geometric_mean(max(0.01, (one.minutes_in_all or 0) - one.minutes) for one in group) for group in groups
        ]
        sizes, offsets = [group[0].flops_per_token for group in groups], (0, 0.2, 0.5, 1, 2, 5)
        size = self.run.flops_per_token
        return self._moved(scaling.proportional(sizes, beside, size, noise=0.2, offsets=offsets, seed=3))

    def _moved(self, draws: Array) -> Array:
        """What another machine took, on this one."""
        import numpy as np

        return draws * np.exp(ELSEWHERE * self.random.standard_normal(len(draws))) if self.elsewhere else draws

    def _memory(self) -> Array:
        from superblock.planning import scaling

        groups = [[one for one in group if one.memory_bytes] for group in self.groups]
        groups = [group for group in groups if group]
        width = self.run.width / int((self.run.settings or {}).get("trainer.micro_batches", 1))
        models = [(g[0].total, g[0].superblocks * g[0].tokens_per_step * width) for g in groups]
        peaks = [past.geometric_mean(one.memory_bytes or 0 for one in group) for group in groups]
        model = (self.run.total, self.run.superblocks * self.run.tokens_per_step * width)
        return scaling.memory(models, peaks, model, seed=4)

    def _loss(self, tokens: Array) -> Array:
        from superblock.planning import scaling

        law = scaling.LossLaw([past.mean_point(group) for group in past.by_configuration(self.quality)])
        return law.predict(self.run.active, [parent[1] for parent in self.run.parents], tokens, seed=5)

    def _words(self) -> str:
        groups = past.by_configuration(self.quality)
        depths = ", ".join(str(depth) for depth in sorted({run.superblocks for run in self.quality}))
        if len(groups) == 1:
            rests = (
                f"one finished configuration ({depths} superblocks): how loss changes with size is assumed, hence wide"
            )
        else:
            rests = f"{len(self.quality)} runs of {len(groups)} configurations ({depths} superblocks)"
        parts = [f"{CONFIDENCE:.0%} intervals from {rests}"]
        if odd := past.other_settings(self.run.settings or {}, self.quality[-1].settings):
            parts.append(f"trained with other settings ({', '.join(odd[:3])})")
        if self.elsewhere:
            parts.append("no run on this machine, so times are from another")
        return "; ".join(parts)


def _estimate(draws: Array) -> Estimate:
    """The median and the middle of the draws."""
    import numpy as np

    tail = (1 - CONFIDENCE) / 2
    low, value, high = np.quantile(draws, [tail, 0.5, 1 - tail])
    return Estimate(float(value), float(low), float(high))
