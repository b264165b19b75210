"""Fair timing of variants of the same work: in one process, in turns, in rotated order, repeated where disturbed.

A machine's speed drifts by more than the differences worth knowing (clock, temperature, neighbours), so that a ratio is
the median of the ratios of neighbouring samples, never the ratio of two medians.
"""

import gc
import math
import statistics
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field

from superblock.benchmarks.contention import Watch

Call = Callable[[], float | None]
"""Does the work once. May return its own seconds where not all that it does is to be measured."""

MOST_CALLS = 1000
LEAST_ROUNDS = 3
LONG = 1.0
"""Seconds of a call that is warm after one."""
PAUSE = 0.1
"""Seconds to wait before a disturbed sample is repeated."""


@dataclass(frozen=True)
class Settings:
    """How long and how often."""

    repeats: int = 5
    """Samples of each variant."""
    warm_up: int = 2
    """Calls before the first sample: kernels choose their forms and memory is taken in them. One of them is enough for
    long work."""
    sample_seconds: float = 0.15
    """Shortest sample; short work is repeated within it, so that the counters of contention can tell something."""
    case_seconds: float = 60.0
    """Once a case has taken this long, rounds after the third are left out and nothing is repeated."""
    redo: float = 2.0
    """Disturbed samples that are repeated at most, as a multiple of all samples."""


@dataclass
class Timing:
    """Samples of one variant, in seconds per call, one per round."""

    seconds: list[float] = field(default_factory=list)
    calls: int = 1
    """Calls of a sample."""
    disturbed: int = 0
    """Samples thrown away because something else ran beside them."""
    kept_disturbed: int = 0
    """Samples that stayed disturbed when the limit of repetitions was reached."""

    @property
    def median(self) -> float:
        return statistics.median(self.seconds)


def measure(
    calls: Mapping[str, Call],
    settings: Settings,
    watch: Watch,
    *,
    clock: Callable[[], float] = time.perf_counter,
    pause: Callable[[float], None] = time.sleep,
) -> dict[str, Timing]:
    """Times every variant once a round, each round beginning with another one.

    Returns:
        Timings by name, all with the same number of samples, at least `LEAST_ROUNDS` (or `repeats`, if less).
    """
    timings = {name: Timing(calls=_warm_up(call, settings, clock)) for name, call in calls.items()}
    began = clock()  # torch.compile compiles in the warm-up
    late = lambda: clock() - began > settings.case_seconds  # noqa: E731
    left = math.ceil(settings.redo * settings.repeats * len(calls))

    def sample(name: str) -> None:
        """Adds a sample, repeated while it is disturbed and there is time."""
        nonlocal left
        timing = timings[name]
        while True:
            gc.collect()
            before = watch.start()
            seconds = _seconds(calls[name], timing.calls, clock)
            disturbed = watch.taken(before) > 0
            if not disturbed or not left or late():
                break
            left -= 1
            timing.disturbed += 1
            pause(PAUSE)
        timing.seconds.append(seconds)
        timing.kept_disturbed += disturbed

    with _little_garbage():
        for number in range(settings.repeats):
            if number >= LEAST_ROUNDS and late():
                break
            for name in rotated(list(calls), number):
                sample(name)
    return timings


@contextmanager
def _little_garbage() -> Iterator[None]:
    """Puts what exists out of the collector's sight: large libraries make a collection take longer than a sample."""
    gc.collect()
    gc.freeze()
    try:
        yield
    finally:
        gc.unfreeze()


def rotated(names: Sequence[str], number: int) -> list[str]:
    """The names, beginning with number modulo their count."""
    start = number % len(names)
    return [*names[start:], *names[:start]]


def paired_ratios(baseline: Sequence[float], own: Sequence[float]) -> list[float]:
    """How many times faster than the baseline, round by round."""
    return [theirs / ours for theirs, ours in zip(baseline, own, strict=True)]


def spread(values: Sequence[float]) -> dict[str, float]:
    """Median, extremes, and the median distance from the median as a share of it."""
    middle = statistics.median(values)
    deviation = statistics.median(abs(value - middle) for value in values)
    return {
        "median": middle,
        "min": min(values),
        "max": max(values),
        "deviation": deviation / middle if middle else 0.0,
    }


def _warm_up(call: Call, settings: Settings, clock: Callable[[], float]) -> int:
    """Calls that a sample needs, from the last call of the warm-up."""
    seconds = 0.0
    for _ in range(max(1, settings.warm_up)):
        start = clock()
        own = call()
        if own is not None:
            return 1
        seconds = clock() - start
        if seconds > LONG:
            break
    return min(MOST_CALLS, max(1, math.ceil(settings.sample_seconds / max(seconds, 1e-9))))


def _seconds(call: Call, count: int, clock: Callable[[], float]) -> float:
    start = clock()
    for _ in range(count):
        own = call()
        if own is not None:
            return own
    return (clock() - start) / count
