"""Times as the five fields of cron give them: read strictly, counted by cronsim, and put as systemd writes calendars.

Times are wall-clock times of this machine without a zone; what a change to or from summer time does to them is up to
the program that keeps the schedule.
"""

import re
from collections.abc import Collection, Iterator
from dataclasses import dataclass
from datetime import datetime
from itertools import islice

from cronsim import CronSim, CronSimError

from superblock.config.fields import ConfigError

NICKNAMES = {
    "@hourly": "0 * * * *",
    "@daily": "0 0 * * *",
    "@midnight": "0 0 * * *",
    "@weekly": "0 0 * * 0",
    "@monthly": "0 0 1 * *",
    "@yearly": "0 0 1 1 *",
    "@annually": "0 0 1 1 *",
}
MONTHS = ("jan", "feb", "mar", "apr", "may", "jun", "jul", "aug", "sep", "oct", "nov", "dec")
WEEKDAYS = ("sun", "mon", "tue", "wed", "thu", "fri", "sat")
FIELDS = {
    "minute": ("0 to 59", ()),
    "hour": ("0 to 23", ()),
    "day-of-month": ("1 to 31", ()),
    "month": ("1 to 12 or jan to dec", MONTHS),
    "day-of-week": ("0 to 7 (0 and 7 are Sunday) or sun to sat", WEEKDAYS),
}
FIRST_NUMBER = {"month": 1, "day-of-week": 0}
"""What the first name of a field counts as."""
ORIGIN = datetime(2000, 1, 1)
"""From where it is asked whether an expression has any time at all."""


@dataclass(frozen=True)
class Cron:
    """An expression that has been read."""

    text: str
    """Five fields of numbers: what every cron understands."""
    minutes: frozenset[int]
    hours: frozenset[int]
    days: frozenset[int]
    months: frozenset[int]
    weekdays: frozenset[int]
    """0 is Sunday."""
    both: bool
    """A day must suit day-of-month and day-of-week. Otherwise one is enough: cron's rule where neither starts with *."""


def parse(text: str, key: str = "schedule.cron") -> Cron:
    """Reads an expression: five fields of numbers, names, lists, ranges and steps, or a nickname such as @daily.

    Args:
        text: the expression.
        key: what it is called in an error.

    Raises:
        ConfigError: naming the field that cannot be read, and what it takes.
    """
    words = NICKNAMES.get(text.strip().lower(), text).split()
    if len(words) == 1 and words[0].startswith("@"):
        raise ConfigError(f"{key}={text}: must be five fields of cron or one of {', '.join(NICKNAMES)}")
    if len(words) != 5:
        raise ConfigError(
            f"{key}={text}: has {len(words)} fields, must have five: minute hour day-of-month month day-of-week, "
            f"as in '0 6 * * 1' for Mondays at six"
        )
    numbers = " ".join(_field(name, word, f"{key}={text}") for name, word in zip(FIELDS, words, strict=True))
    try:
        times = CronSim(numbers, ORIGIN)
        next(times)
    except (CronSimError, StopIteration):
        raise ConfigError(f"{key}={text}: never comes; no month it names has such a day") from None
    days, weekdays = (frozenset(day for day in field if isinstance(day, int)) for field in (times.days, times.weekdays))
    return Cron(
        numbers,
        frozenset(times.minutes),
        frozenset(times.hours),
        days,
        frozenset(times.months),
        frozenset(day % 7 for day in weekdays),
        times.day_and,
    )


def times_after(cron: Cron, moment: datetime) -> Iterator[datetime]:
    """The times after a moment, in order, without end."""
    yield from CronSim(cron.text, moment)


def next_times(cron: Cron, moment: datetime, count: int) -> list[datetime]:
    """The first `count` times after a moment."""
    return list(islice(times_after(cron, moment), count))


def last_time(cron: Cron, moment: datetime) -> datetime:
    """The newest time that is not after a moment."""
    exact = moment.replace(second=0, microsecond=0)
    newest: datetime = next(CronSim(cron.text, exact.replace(second=1), reverse=True))
    return newest


def calendars(cron: Cron) -> list[str]:
    """The same times for systemd's OnCalendar; two where cron is content with a day of the month or of the week."""
    clock = f"{_numbers(cron.hours, range(24))}:{_numbers(cron.minutes, range(60))}:00"
    month = _numbers(cron.months, range(1, 13))
    every_day, on_days = f"*-{month}-*", f"*-{month}-{_numbers(cron.days, range(1, 32))}"
    week = "" if len(cron.weekdays) == 7 else ",".join(WEEKDAYS[day].title() for day in sorted(cron.weekdays)) + " "
    if cron.both:
        return [f"{week}{on_days} {clock}"]
    return list(dict.fromkeys((f"{on_days} {clock}", f"{week}{every_day} {clock}")))


def _field(name: str, word: str, shown: str) -> str:
    """The field with its names as numbers.

    Raises:
        ConfigError: if it cannot be read.
    """
    allowed, names = FIELDS[name]
    refusal = ConfigError(
        f"{shown}: {name} {word} cannot be read; must be *, {allowed}; lists such as 1,3, ranges such as 1-5, and steps "
        f"of * or a range such as */2"
    )
    numbers = word.lower()
    for number, known in enumerate(names, FIRST_NUMBER.get(name, 0)):
        numbers = re.sub(rf"\b{known}\b", str(number), numbers)
    numbers = re.sub(r"\b(\d+)-\1/\d+", r"\1", numbers)  # cronsim would take 5-5/2 for 5-59/2
    term = r"(\*|\d{1,2}-\d{1,2})(/\d{1,2})?|\d{1,2}"  # cronsim knows more, which no other cron does
    if not all(re.fullmatch(term, part, re.ASCII) for part in numbers.split(",")):
        raise refusal
    try:
        CronSim(" ".join(numbers if field == name else "*" for field in FIELDS), ORIGIN)
    except CronSimError:
        raise refusal from None
    return numbers


def _numbers(chosen: Collection[int], every: range) -> str:
    """`*`, or the numbers with two digits, three or more in a row as a range."""
    if set(chosen) >= set(every):
        return "*"
    parts: list[str] = []
    left = sorted(chosen)
    while left:
        length = next((n for n, value in enumerate(left) if value != left[0] + n), len(left))
        run = left[:length]
        parts += [f"{run[0]:02}..{run[-1]:02}"] if length > 2 else [f"{value:02}" for value in run]
        left = left[length:]
    return ",".join(parts)
