"""Changes in words, for comparisons and histories alike."""

import math
from datetime import UTC, datetime

from superblock.reporting.metrics import Metric


def percent(relative: float, metric: Metric, *, sign: bool = True) -> str:
    """`+1.24 %` for quality, `-5.3 %` for speed and memory."""
    digits = 2 if metric.kind == "quality" else 1
    text = f"{100 * relative:{'+' if sign else ''}.{digits}f} %"
    return text if text.strip("+-0. %") else f"{0:.{digits}f} %"


def share(effect: float) -> str:
    """`5 %`, a minimum effect."""
    return f"{100 * effect:g} %"


def is_worse(relative: float, metric: Metric) -> bool:
    """Whether a change of this sign is for the worse."""
    return (relative > 0) == (metric.better == "lower")


def change_words(relative: float, low: float | None, high: float | None, metric: Metric) -> str:
    """`+1.24 % (+0.98 % to +1.50 %)`; arguments as `after / before - 1`."""
    if low is None or high is None:
        return percent(relative, metric)
    return f"{percent(relative, metric)} ({percent(low, metric)} to {percent(high, metric)})"


def percent_interval(relative: float, low: float | None, high: float | None, metric: Metric) -> str:
    """`+1.24 % [+0.98, +1.50]`; without the interval where there is none."""
    if low is None or high is None:
        return percent(relative, metric)
    ends = (percent(end, metric).removesuffix(" %") for end in (low, high))
    return f"{percent(relative, metric)} [{', '.join(ends)}]"


def p_words(p: float) -> str:
    """`p = 0.012`; below a thousandth its digits say nothing."""
    return "p < 0.001" if p < 0.001 else f"p = {p:.3f}"


def plural(number: int, noun: str) -> str:
    """`1 seed`, `3 seeds`."""
    return f"{number:,} {noun}" if number == 1 else f"{number:,} {noun}s"


def group_words(key: str) -> str:
    """A group's key as people say it: `mvp2 at mini` for `mini/mvp2/default`, what else it has in brackets."""
    scale, stage, arm, *rest = [*key.split("/", 3), "", ""][:4]
    if not stage:
        return key
    further = ", ".join(part for part in ("" if arm == "default" else arm, *rest) if part)
    return f"{stage} at {scale}" + (f" ({further})" if further else "")


def bounded(logarithm: float) -> float | None:
    """The relative change of a difference of logarithms; None for an unbounded one."""
    return math.expm1(logarithm) if math.isfinite(logarithm) else None


def date(seconds: float) -> str:
    """Day of a time since 1970, UTC."""
    return datetime.fromtimestamp(seconds, UTC).strftime("%Y-%m-%d")
