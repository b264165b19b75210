"""Whether something else used the processors while a sample was taken.

Two threads that wait for each other run as slowly as the one whose processor is taken away, so a neighbour's short burst
spoils a whole sample. The system's own counters tell: what all processes used, less what this one did.
"""

import os
import time
from collections.abc import Callable
from dataclasses import dataclass

ALLOWED_SHARE = 0.08
"""Share of one processor that others may use: a quiet machine's own services."""
ALLOWED_SECONDS = 0.02
"""Two ticks of the system's counters, which count in hundredths."""
SMALLEST = 0.2
"""Own processor seconds from which counters that have not moved are taken for counters that never do."""


@dataclass(frozen=True)
class Usage:
    """Seconds so far: on the clock, of all processes, taken by other virtual machines, and of this process."""

    wall: float
    busy: float
    stolen: float
    own: float


def read_usage() -> Usage:
    """Sums over the processors that this process may use."""
    import psutil

    per_cpu = psutil.cpu_times(percpu=True)
    if hasattr(os, "sched_getaffinity"):
        mine = os.sched_getaffinity(0)
        per_cpu = [times for number, times in enumerate(per_cpu) if number in mine] or per_cpu
    working = ("user", "nice", "system", "irq", "softirq", "interrupt", "dpc")
    busy = sum(getattr(times, name, 0.0) for times in per_cpu for name in working)
    stolen = sum(getattr(times, "steal", 0.0) for times in per_cpu)
    return Usage(time.perf_counter(), busy, stolen, time.process_time())


class Watch:
    """Judges samples.

    Args:
        threads: of this process; processors beyond them may be used by others without harm.
        processors: that this process may use.
        read: the counters.
    """

    def __init__(self, threads: int, processors: int, read: Callable[[], Usage] = read_usage) -> None:
        self.spare = max(0, processors - threads)
        self._read = read
        self.blind = False
        """The counters stand still, as in some sandboxes: nothing can be told."""

    def start(self) -> Usage:
        """To be called before a sample and given to `taken` after it."""
        return self._read()

    def taken(self, before: Usage) -> float:
        """Processor seconds that others took from this process beyond what is allowed; 0 for a clean sample."""
        after = self._read()
        wall, own = after.wall - before.wall, after.own - before.own
        busy, stolen = after.busy - before.busy, after.stolen - before.stolen
        if own > SMALLEST and busy < own / 4:
            self.blind = True
        if self.blind:
            return 0.0
        free = self.spare * wall + ALLOWED_SHARE * wall + ALLOWED_SECONDS
        return max(0.0, busy - own + stolen - free)


def processors() -> int:
    """That this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else (os.cpu_count() or 1)
