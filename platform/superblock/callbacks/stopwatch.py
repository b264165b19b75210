"""Time spent in training alone."""

import time
from collections.abc import Callable


class Stopwatch:
    """Seconds since the last `restart`, less the time between `pause` and `go_on`."""

    def __init__(self, clock: Callable[[], float] = time.perf_counter) -> None:
        self._clock = clock
        self.restart()

    def restart(self) -> None:
        """Back to zero, and running."""
        self._start = self._clock()
        self._paused_at: float | None = None

    def pause(self) -> None:
        """Stops the watch; a second call changes nothing."""
        if self._paused_at is None:
            self._paused_at = self._clock()

    def go_on(self) -> None:
        """Lets a paused watch run again."""
        if self._paused_at is not None:
            self._start += self._clock() - self._paused_at
            self._paused_at = None

    @property
    def seconds(self) -> float:
        """Time on the watch."""
        now = self._clock() if self._paused_at is None else self._paused_at
        return now - self._start
