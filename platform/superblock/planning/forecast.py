"""From a run that has not happened and runs that have, draws of what it will measure."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from superblock.config.budget import Budget
from superblock.planning import finished as past
from superblock.planning.finished import Finished

if TYPE_CHECKING:
    from superblock.planning.regression import Array

OVERHEAD = (0.93, 0.07)
"""Minutes of training as a share of a budget in minutes, which becomes steps by timing a few before the first; and its spread."""
ELSEWHERE = 0.7
"""Spread of the logarithm of another machine's speed: a factor of 2."""
BESIDE = (0.2, 0.7)
"""Minutes beside training as a share of training where no run has recorded them, and the spread of its logarithm."""


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


class Forecast:
    """Draws of everything that is predicted, from one choice of runs."""

    def __init__(self, run: Target, quality: Sequence[Finished], speed: Sequence[Finished], *, elsewhere: bool) -> None:
        import numpy as np

        self.run, self.quality, self.speed, self.elsewhere = run, quality, speed, elsewhere
        self.groups = past.by_configuration(speed)
        self.random = np.random.default_rng(0)

    def draws(self) -> dict[str, Array]:
        """Draws of every quantity, by the names of a prediction."""
        minutes, steps = self._training()
        tokens = steps * self.run.tokens_per_step
        flops = tokens * self.run.flops_per_token
        return {
            "minutes": minutes,
            "minutes_in_all": minutes + self._beside(minutes),
            "steps": steps,
            "tokens": tokens,
            "memory_bytes": self._memory(),
            "bits_per_byte": self._loss(tokens),
            "flops": flops,
            "lineage_flops": flops + sum(parent[2] for parent in self.run.parents),
        }

    def runs(self) -> tuple[str, ...]:
        """The runs it rests on."""
        return tuple(dict.fromkeys(other.name for other in (*self.quality, *self.speed)))

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

    def words(self) -> str:
        """One line: what it rests on."""
        groups = past.by_configuration(self.quality)
        depths = ", ".join(str(depth) for depth in sorted({run.superblocks for run in self.quality}))
        if len(groups) == 1:
            rests = (
                f"one finished configuration ({depths} superblocks): how loss changes with size is assumed, hence wide"
            )
        else:
            rests = f"{len(self.quality)} runs of {len(groups)} configurations ({depths} superblocks)"
        parts = [rests]
        if odd := past.other_settings(self.run.settings or {}, self.quality[-1].settings):
            parts.append(f"trained with other settings ({', '.join(odd[:3])})")
        if self.elsewhere:
            parts.append("none of them on this machine with as many threads, so times are from another")
        return "; ".join(parts)
