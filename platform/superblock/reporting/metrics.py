"""The numbers a report compares: what they are called, which direction is better, and which change matters."""

import re
from dataclasses import dataclass
from typing import Literal

Kind = Literal["quality", "speed", "memory"]
MINIMUM_EFFECT: dict[Kind, float] = {"quality": 0.01, "speed": 0.05, "memory": 0.05}
"""Relative changes below which nothing is called better or worse, however sure it is."""


@dataclass(frozen=True)
class Metric:
    """One comparable number of a run."""

    name: str
    """As it is recorded."""
    label: str
    unit: str
    better: Literal["lower", "higher"]
    kind: Kind
    digits: int
    """Digits after the point, in tables."""
    scale: float = 1.0
    """Recorded value times this is what is shown."""


METRICS: dict[str, Metric] = {
    metric.name: metric
    for metric in (
        Metric("test/bits_per_byte", "bits per byte", "bits/byte", "lower", "quality", 4),
        Metric("test/perplexity", "perplexity", "", "lower", "quality", 2),
        Metric("test/accuracy_top1", "next-token accuracy", "%", "higher", "quality", 1, 100.0),
        Metric("final/tokens_per_second", "training speed", "tokens/s", "higher", "speed", 0),
        Metric("final/matmul_share", "share of the matmul limit", "%", "higher", "speed", 1, 100.0),
        Metric("final/memory_peak_mib", "peak memory", "MiB", "lower", "memory", 0),
    )
}
COMPARED = ("test/bits_per_byte", "final/tokens_per_second", "final/memory_peak_mib")
"""Those that decide a verdict; the others say the same in other words."""

CURVES = ("val/bits_per_byte", "train/bits_per_byte")
"""Of a run's histories, those that a report draws."""
RESULTS = (
    *METRICS, "final/val_bits_per_byte", "model/parameters", "model/active_parameters", "lineage/flops", "lineage/own_flops",
    "train/tokens",
)  # fmt: skip
"""Single numbers, and histories of which the last value counts."""
EXPERTS = re.compile(r"experts/layer_(\d+)/(load_entropy|min_load|dead_experts)")
"""How the experts of each layer stood at the end, single numbers too."""


def is_result(name: str) -> bool:
    """Whether a report keeps a metric's last value."""
    return name in RESULTS or EXPERTS.fullmatch(name) is not None
