"""How a stage begins from a trained one, and what it must show before the next may begin from it."""

from collections.abc import Mapping
from dataclasses import dataclass

from superblock.config.fields import ConfigError, closest, knob

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
    learning_rate: float = knob(
        0.5, "peak rate of a grown run as a share of the optimizer's; trained weights want less", above=0, maximum=10
    )
    continue_data: bool = knob(True, "read on where the parent's lineage stopped; false begins the text again")


@dataclass(frozen=True)
class Known:
    """What this version can measure under a name (staging/gates.py, staging/claims.py), and what it must be told."""

    meaning: str
    limit: bool = False
    """Whether it needs one."""
    against: tuple[str, ...] = ()
    """What it may be compared with; empty if there is no choice."""


GATES = {
    "finite_loss": Known("every recorded loss of training and validation is a finite number"),
    "gradients": Known("every parameter that is trained receives a finite gradient that is not zero"),
    "no_dead_experts": Known("at most `limit` experts get no token of the test split", limit=True),
    "bits_per_byte": Known("the test text needs fewer bits than by `against`", against=("trigram", "parent")),
    "growth_exact": Known("what the growth method promises holds, up to a difference of `limit`", limit=True),
    "resume": Known("40 steps at once and 20 with 20 resumed end in the same weights, bit for bit"),
    "distinct_4grams": Known("samples vary at least `limit` times as much as the test text", limit=True),
    "plan_closes": Known(
        "the full scale has 235B parameters within a share of `limit`, as its formulas say", limit=True
    ),
}
CLAIMS = {
    "beats_scratch": Known("grown runs need fewer bits per byte than those from scratch with equal FLOPs"),
    "cost_predicted": Known("time and memory are within a share of `limit` of what was predicted", limit=True),
    "exit_cost": Known("the exit at the parent's depth needs at most a share of `limit` more bits than it", limit=True),
}


@dataclass
class StatementConfig:
    """A gate or a claim of a stage: what is measured is its name, what would do is here."""

    because: str = knob("", "why it is asked")
    limit: float | None = knob(None, "the bound that the measured value is compared with, where there is one")
    against: str | None = knob(None, "what the value is compared with, where that is measured too")


def check_statements(statements: Mapping[str, StatementConfig], known: Mapping[str, Known], key: str) -> None:
    """Refuses what cannot be measured.

    Args:
        key: where they stand, such as `stage.gates`.

    Raises:
        ConfigError: for a name that is not known, or a statement that lacks its reason or its bound.
    """
    for name, statement in statements.items():
        if name not in known:
            hint = f"; did you mean {close[0]}?" if (close := closest(name, known)) else ""
            raise ConfigError(f"{key}.{name}: there is no such statement{hint} There are {', '.join(known)}")
        if not statement.because:
            raise ConfigError(f"{key}.{name}.because='': must say why it is asked")
        if known[name].limit == (statement.limit is None):
            limit = "null" if statement.limit is None else f"{statement.limit:g}"
            wanted = "must be a number" if known[name].limit else "must be null, it is not compared with a number"
            raise ConfigError(f"{key}.{name}.limit={limit}: {wanted}")
        if statement.against not in (known[name].against or (None,)):
            against, wanted = statement.against or "null", " or ".join(known[name].against) or "null"
            raise ConfigError(f"{key}.{name}.against={against}: must be {wanted}")
