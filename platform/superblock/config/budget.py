"""How long a run trains: one value with its unit, such as `4 minutes`, `300 steps` or `2M tokens`."""

import re
from dataclasses import dataclass
from typing import Literal

from superblock.config.fields import ConfigError

Unit = Literal["steps", "tokens", "minutes"]

_PATTERN = re.compile(r"\s*([0-9]+(?:\.[0-9]+)?(?:[eE]\+?[0-9]+)?)\s*([kKMGBT]?)\s*([a-zA-Z]+)\s*")
_MULTIPLES = {"": 1.0, "k": 1e3, "K": 1e3, "M": 1e6, "G": 1e9, "B": 1e9, "T": 1e12}
_UNITS: dict[str, tuple[Unit, float]] = {
    "step": ("steps", 1), "steps": ("steps", 1),
    "token": ("tokens", 1), "tokens": ("tokens", 1),
    "s": ("minutes", 1 / 60), "sec": ("minutes", 1 / 60), "seconds": ("minutes", 1 / 60),
    "min": ("minutes", 1), "minute": ("minutes", 1), "minutes": ("minutes", 1),
    "h": ("minutes", 60), "hour": ("minutes", 60), "hours": ("minutes", 60),
}  # fmt: skip
ALLOWED = "a number with a unit: '300 steps', '2M tokens', '90 seconds', '4 minutes' or '1.5 hours'"


@dataclass(frozen=True)
class Budget:
    """An amount of training. Minutes become steps once, by timing the first steps; steps and tokens are exact."""

    amount: float
    unit: Unit

    @classmethod
    def parse(cls, text: str, key: str = "trainer.budget") -> "Budget":
        """Reads `4 minutes`, `300steps`, `2M tokens`.

        Raises:
            ConfigError: for anything else, or an amount that is not above zero.
        """
        match = _PATTERN.fullmatch(text)
        if not match or match[3] not in _UNITS:
            raise ConfigError(f"{key}={text}: must be {ALLOWED}")
        unit, factor = _UNITS[match[3]]
        amount = float(match[1]) * _MULTIPLES[match[2]] * factor
        if not 0 < amount < float("inf"):
            raise ConfigError(f"{key}={text}: must be above zero")
        return cls(amount, unit)

    def steps(self, tokens_per_step: int, seconds_per_step: float) -> int:
        """The number of optimizer steps this budget buys, at least 1."""
        if self.unit == "steps":
            return max(1, round(self.amount))
        if self.unit == "tokens":
            return max(1, round(self.amount / tokens_per_step))
        return max(1, int(self.amount * 60 / seconds_per_step))

    def __str__(self) -> str:
        return f"{self.amount:g} {self.unit}"
