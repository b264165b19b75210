"""Which times of a schedule have passed since its last report, kept in a small file beside the schedule."""

from dataclasses import dataclass
from datetime import datetime
from itertools import islice, takewhile
from pathlib import Path

from superblock.reporting.schedule.cron import Cron, last_time, times_after
from superblock.tracking.files import read_json, write_json

COUNTED = 1000
"""Missed times beyond these are not counted."""


@dataclass(frozen=True)
class Due:
    """A report that has to be made."""

    scheduled: datetime
    """The newest time that has come: this report is for it."""
    missed: int
    """Earlier times for which there was none."""

    def words(self) -> str:
        """One line for a person."""
        text = f"due since {self.scheduled:%Y-%m-%d %H:%M}"
        if not self.missed:
            return text
        number = f"{COUNTED} or more" if self.missed >= COUNTED else str(self.missed)
        return (
            f"{text}; {number} earlier time{'s were' if self.missed > 1 else ' was'} missed, this one report makes up"
        )


def find(cron: Cron, state: Path, now: datetime) -> Due | None:
    """What is due; None if no time has come since the last report. Where there was none yet, one is due at once."""
    noted = read_json(state).get("done")
    if not isinstance(noted, int | float):
        return Due(last_time(cron, now), 0)
    since = min(datetime.fromtimestamp(noted), now)  # a clock that was wrong may have left a time that lies ahead
    passed = sum(1 for _ in islice(takewhile(lambda time: time <= now, times_after(cron, since)), COUNTED + 1))
    return Due(last_time(cron, now), passed - 1) if passed else None


def note(state: Path, now: datetime, cron: Cron) -> None:
    """Every time up to now is done with."""
    state.parent.mkdir(parents=True, exist_ok=True)
    write_json(state, {"cron": cron.text, "done": now.timestamp()})
