"""How a stage begins from a trained one, and what it must show before the next may begin from it."""

from dataclasses import dataclass

from superblock.config.fields import knob

METHODS = ("identity", "stack", "interpolate", "none")


@dataclass
class GrowthConfig:
    """What becomes of a parent's weights and optimizer in a deeper model (models/growth.py)."""

    method: str = knob(
        "identity",
        "new superblocks: identity (compute nothing at first), stack (copies of the trained ones in their order), "
        "interpolate (each trained one repeated in place), or none (fresh weights: the control arm)",
        choices=METHODS,
    )
    optimizer: bool = knob(True, "the optimizer's state follows the weights; false starts it anew")
    continue_data: bool = knob(True, "read on where the parent's lineage stopped; false begins the text again")


@dataclass
class StatementConfig:
    """A gate or a claim of a stage: what is measured is its name, what would do is here."""

    because: str = knob("", "why it is asked")
    limit: float | None = knob(None, "the bound that the measured value is compared with, where there is one")
    against: str | None = knob(None, "what the value is compared with, where that is measured too")
