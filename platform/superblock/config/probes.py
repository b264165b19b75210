"""Which probes run: tasks, arms and seeds by name."""

from collections.abc import Iterator
from dataclasses import dataclass

from superblock.config.fields import knob

REQUIRED = ("mqar", "parity", "selective_copy")
PROBES = (
    *REQUIRED, "induction_heads", "in_context_recall", "fuzzy_recall", "noisy_recall", "mad_selective_copy", "compression",
    "memorization", "modular_arithmetic", "modular_arithmetic_brackets", "s5", "needle",
)  # fmt: skip
ARMS = ("attention", "deltanet", "deltanet-positive", "hybrid", "hybrid-positive")


@dataclass
class ProbesConfig:
    """Generated tasks of recall, copying, state tracking and retrieval, learnt by small models of each architecture."""

    tasks: list[str] = knob(lambda: list(REQUIRED), "tasks, see probes.catalogue", choices=PROBES)
    arms: list[str] = knob(
        list,
        "architectures; -positive has a write strength in (0, 1). [] is those that a task is about: attention, deltanet "
        "and hybrid, and for state tracking all five",
        choices=ARMS,
    )
    seeds: list[int] = knob(lambda: [1, 2, 3], "seeds of every arm", minimum=0, maximum=2**31 - 1)

    def problems(self) -> Iterator[tuple[str, str]]:
        for name in ("tasks", "seeds"):
            if not getattr(self, name):
                yield name, "must name at least one"
        for name in ("tasks", "arms", "seeds"):
            if len(set(getattr(self, name))) < len(getattr(self, name)):
                yield name, "names one twice"
