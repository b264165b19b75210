"""Expressions of cron: what is refused, which times they mean, and the same times in systemd's words."""

import re
import shutil
import subprocess
from datetime import datetime, timedelta

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from superblock.config.fields import ConfigError
from superblock.reporting.schedule.cron import Cron, calendars, last_time, next_times, parse

SATURDAY = datetime(2026, 11, 21, 12, 30)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("0 6 * * 1", ["2026-11-23 06:00", "2026-11-30 06:00"]),
        ("0 6 * * MON", ["2026-11-23 06:00", "2026-11-30 06:00"]),
        ("@daily", ["2026-11-22 00:00", "2026-11-23 00:00"]),
        ("@weekly", ["2026-11-22 00:00", "2026-11-29 00:00"]),
        ("*/15 * * * *", ["2026-11-21 12:45", "2026-11-21 13:00"]),
        ("30 12 * * *", ["2026-11-22 12:30", "2026-11-23 12:30"]),
        ("0 0 29 2 *", ["2028-02-29 00:00", "2032-02-29 00:00"]),
        ("0 8 1 * 5", ["2026-11-27 08:00", "2026-12-01 08:00"]),  # either
        ("0 8 */10 * 5", ["2026-12-11 08:00", "2027-01-01 08:00"]),  # both, because one begins with *
        ("5 4 * jan,mar-apr 0", ["2027-01-03 04:05", "2027-01-10 04:05"]),
        ("0 22 * * 5-7", ["2026-11-21 22:00", "2026-11-22 22:00"]),
    ],
)
def test_times(text: str, expected: list[str]) -> None:
    assert [f"{time:%Y-%m-%d %H:%M}" for time in next_times(parse(text), SATURDAY, 2)] == expected


@pytest.mark.parametrize(
    ("text", "complaint"),
    [
        ("", "has 0 fields, must have five"),
        ("0 6 * *", "has 4 fields, must have five"),
        ("0 0 6 * * 1", "has 6 fields, must have five"),
        ("60 * * * *", "minute 60 cannot be read; must be *, 0 to 59"),
        ("* 24 * * *", "hour 24 cannot be read"),
        ("* * 0 * *", "day-of-month 0 cannot be read"),
        ("* * 32 * *", "day-of-month 32 cannot be read"),
        ("* * * 13 *", "month 13 cannot be read; must be *, 1 to 12 or jan to dec"),
        ("* * * * 8", "day-of-week 8 cannot be read"),
        ("* * * * mo", "day-of-week mo cannot be read"),
        ("* * * * mondays", "day-of-week mondays cannot be read"),
        ("5/15 * * * *", "minute 5/15 cannot be read"),
        ("*/0 * * * *", "minute */0 cannot be read"),
        ("5-1 * * * *", "minute 5-1 cannot be read"),
        ("1,,2 * * * *", "minute 1,,2 cannot be read"),
        ("-1 * * * *", "minute -1 cannot be read"),
        ("* * L * *", "day-of-month L cannot be read"),
        ("* * * * 1#2", "day-of-week 1#2 cannot be read"),
        ("* * ? * *", "day-of-month ? cannot be read"),
        ("\u0661 * * * *", "cannot be read"),
        ("0 0 30 2 *", "never comes"),
        ("0 0 31 4,6 *", "never comes"),
        ("@reboot", "must be five fields of cron or one of @hourly, @daily"),
    ],
)
def test_refusals_name_the_field_and_what_it_takes(text: str, complaint: str) -> None:
    with pytest.raises(ConfigError, match=re.escape(complaint)) as error:
        parse(text)
    assert str(error.value).startswith(f"schedule.cron={text}: ")


def field(low: int, high: int) -> st.SearchStrategy[str]:
    """A field of an expression."""
    values = st.integers(low, high)
    ranges = st.tuples(values, values).map(lambda pair: f"{min(pair)}-{max(pair)}")
    steps = st.tuples(st.just("*") | ranges, st.integers(1, high)).map(lambda pair: f"{pair[0]}/{pair[1]}")
    return st.just("*") | st.lists(values.map(str) | ranges | steps, min_size=1, max_size=3).map(",".join)


EXPRESSIONS = st.tuples(field(0, 59), field(0, 23), field(1, 31), field(1, 12), field(0, 7)).map(" ".join)


def naive(text: str, low: int, high: int) -> set[int]:
    """A field read by nobody's library."""
    found: set[int] = set()
    for part in text.split(","):
        span, _, step = part.partition("/")
        first, _, last = span.partition("-")
        begin, end = (low, high) if span == "*" else (int(first), int(last or first))
        found |= set(range(begin, end + 1, int(step or 1)))
    return found


def by_hand(text: str, begin: datetime, minutes: int) -> list[datetime]:
    """Every minute of a stretch that suits, asked one by one."""
    words = text.split()
    limits = ((0, 59), (0, 23), (1, 31), (1, 12), (0, 7))
    minute, hour, day, month, week = (naive(w, *limit) for w, limit in zip(words, limits, strict=True))
    both = words[2].startswith("*") or words[4].startswith("*")
    found = []
    for number in range(1, minutes + 1):
        time = begin + timedelta(minutes=number)
        in_month, in_week = time.day in day, time.isoweekday() in week or time.isoweekday() % 7 in week
        suits = in_month and in_week if both else in_month or in_week
        if suits and time.month in month and time.hour in hour and time.minute in minute:
            found.append(time)
    return found


@settings(max_examples=40)
@given(EXPRESSIONS, st.datetimes(datetime(2024, 1, 1), datetime(2030, 1, 1)))
def test_times_are_those_found_minute_by_minute(text: str, begin: datetime) -> None:
    begin = begin.replace(second=0, microsecond=0)
    try:
        cron = parse(text)
    except ConfigError as error:
        assert "never comes" in str(error)
        assert by_hand(text, datetime(2028, 1, 31), 60 * 24 * 30) == []
        return
    expected = by_hand(text, begin, 60 * 24 * 10)
    assert next_times(cron, begin, len(expected)) == expected
    assert next_times(cron, begin, len(expected) + 1)[-1] > begin + timedelta(days=10)
    if expected:
        assert last_time(cron, begin + timedelta(days=10, seconds=30)) == expected[-1]
        assert last_time(cron, expected[0]) == expected[0]


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("0 6 * * 1", ["Mon *-*-* 06:00:00"]),
        ("*/20 0-5 * * *", ["*-*-* 00..05:00,20,40:00"]),
        ("0 6 1,15 * *", ["*-*-01,15 06:00:00"]),
        ("0 6 1 * 1", ["*-*-01 06:00:00", "Mon *-*-* 06:00:00"]),
        ("0 6 */2 * 1", [f"Mon *-*-{','.join(f'{day:02}' for day in range(1, 32, 2))} 06:00:00"]),
        ("0 6 1-31 * 1", ["*-*-* 06:00:00", "Mon *-*-* 06:00:00"]),
        ("* * * * *", ["*-*-* *:*:00"]),
        ("0 0 * 1-3,12 0,7", ["Sun *-01..03,12-* 00:00:00"]),
    ],
)
def test_calendars(text: str, expected: list[str]) -> None:
    assert calendars(parse(text)) == expected


def systemd_times(cron: Cron, begin: datetime, count: int) -> list[datetime]:
    """What systemd makes of the calendars: their first times together."""
    command = ["systemd-analyze", "calendar", f"--iterations={count}", f"--base-time={begin:%Y-%m-%d %H:%M:%S} UTC"]
    done = subprocess.run(
        [*command, *calendars(cron)],
        capture_output=True,
        text=True,
        check=True,
        env={"TZ": "UTC", "PATH": "/usr/bin:/bin"},
    )
    texts = re.findall(r"(?:Next elapse|Iter\. #\d+|Iteration #\d+): \w+ (\S+ \S+) UTC", done.stdout)
    times = {datetime.fromisoformat(text) for text in texts}
    return sorted(times)[:count]


@pytest.mark.skipif(shutil.which("systemd-analyze") is None, reason="systemd-analyze is not installed")
@settings(max_examples=40)
@given(EXPRESSIONS)
def test_systemd_understands_the_calendars_as_cron_does(text: str) -> None:
    begin = datetime(2027, 3, 13, 11, 17)
    try:
        cron = parse(text)
    except ConfigError:
        return
    expected = next_times(cron, begin, 4)
    if expected[-1].year > 2060:  # systemd looks no further
        return
    assert systemd_times(cron, begin, 4) == expected
