"""What every arm of a sweep may cost: FLOPs, or those of a number of steps of the reference arm; or steps or tokens."""

import re
from dataclasses import dataclass
from typing import Literal

from superblock.config.budget import Budget
from superblock.config.fields import ConfigError
from superblock.config.run import RunConfig
from superblock.models.formulas import count

Unit = Literal["flops", "steps", "tokens"]
ALLOWED = "'20 TFLOP', '120 steps of the reference', '300 steps' or '1M tokens'"

_FLOPS = re.compile(r"([0-9]+(?:\.[0-9]+)?(?:[eE]\+?[0-9]+)?)\s*([kMGTPE]?)FLOPs?")
_OF_REFERENCE = re.compile(r"([0-9]+)\s*steps of the reference")
_MULTIPLES = {"": 1.0, "k": 1e3, "M": 1e6, "G": 1e9, "T": 1e12, "P": 1e15, "E": 1e18}


@dataclass(frozen=True)
class ArmBudget:
    """An amount that every arm spends."""

    amount: float
    unit: Unit
    of_reference: bool = False
    """The amount is a number of steps of the reference, whose FLOPs every arm spends."""

    @classmethod
    def parse(cls, text: str, key: str) -> "ArmBudget":
        """Reads what a sweep file says.

        Raises:
            ConfigError: for anything else, for nothing, and for a time, which buys another number of steps in every run.
        """
        text = text.strip()
        if match := _FLOPS.fullmatch(text):
            found = cls(float(match[1]) * _MULTIPLES[match[2]], "flops")
        elif match := _OF_REFERENCE.fullmatch(text):
            found = cls(float(match[1]), "flops", of_reference=True)
        else:
            try:
                plain = Budget.parse(text, key)
            except ConfigError:
                raise ConfigError(f"{key}: {text}: must be {ALLOWED}") from None
            if plain.unit == "minutes":
                raise ConfigError(
                    f"{key}: {text}: a time buys another number of steps in every run, so that arms could not be paired; "
                    f"must be {ALLOWED}"
                )
            found = cls(plain.amount, plain.unit)
        if not 0 < found.amount < float("inf"):
            raise ConfigError(f"{key}: {text}: must be above zero")
        return found

    def of(self, reference: RunConfig) -> float:
        """The amount in its unit, where the reference arm is `reference`."""
        return self.amount * step_cost(reference, "flops") if self.of_reference else self.amount


def step_cost(config: RunConfig, unit: Unit) -> float:
    """What one optimizer step costs on average over a training, in the unit of a budget.

    FLOPs are forward and backward. The prediction heads count from when they begin (`model.mtp.start`, `exit_start`), so
    that an arm without them is not given steps for work that the others did not do; a run's own summary counts them from
    its first token, which is a few percent more.
    """
    tokens = config.data.sequence_length * config.trainer.batch_size
    if unit == "steps":
        return 1.0
    if unit == "tokens":
        return float(tokens)
    if config.model.family == "superblock":
        return tokens * count(config.model).mean_training_flops_per_token(config.data.sequence_length)
    from superblock.training.size import measure  # builds a model of a user's own on the meta device

    return tokens * measure(config.model, config.data.sequence_length).training_flops_per_token


def steps_for(amount: float, cost: float) -> int:
    """The number of steps that comes nearest, at least 1."""
    return max(1, round(amount / cost))
