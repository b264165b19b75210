"""What is due, by a clock that stands where the test puts it."""

from datetime import datetime, timedelta
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from superblock.reporting.schedule.cron import parse
from superblock.reporting.schedule.due import COUNTED, Due, find, note

MONDAY = datetime(2026, 11, 23, 6, 0)
WEEKLY = parse("0 6 * * 1")


@pytest.fixture
def state(tmp_path: Path) -> Path:
    """A state whose last report was made on a Monday at six."""
    path = tmp_path / "schedule" / "weekly.json"
    note(path, MONDAY + timedelta(seconds=2), WEEKLY)
    return path


@pytest.mark.parametrize("later", [timedelta(0), timedelta(minutes=7), timedelta(days=6, hours=23, minutes=59)])
def test_nothing_is_due_before_the_next_time(state: Path, later: timedelta) -> None:
    assert find(WEEKLY, state, MONDAY + timedelta(seconds=3) + later) is None


def test_due_on_time(state: Path) -> None:
    found = find(WEEKLY, state, MONDAY + timedelta(days=7))
    assert found == Due(MONDAY + timedelta(days=7), 0)
    assert found.words() == "due since 2026-11-30 06:00"


def test_missed_times_are_one_report(state: Path) -> None:
    found = find(WEEKLY, state, MONDAY + timedelta(days=22))
    assert found == Due(MONDAY + timedelta(days=21), 2)
    assert found.words().endswith("2 earlier times were missed, this one report makes up")
    note(state, MONDAY + timedelta(days=22), WEEKLY)
    assert find(WEEKLY, state, MONDAY + timedelta(days=22)) is None


def test_years_of_minutes_are_counted_no_further_than_needed(state: Path) -> None:
    found = find(parse("* * * * *"), state, MONDAY + timedelta(days=3000, seconds=5))
    assert found == Due(MONDAY + timedelta(days=3000), COUNTED)
    assert f"{COUNTED} or more earlier times" in found.words()


@pytest.mark.parametrize("content", [None, "", "{}", '{"done": "yesterday"}', "[1]"])
def test_without_a_state_one_is_due(tmp_path: Path, content: str | None) -> None:
    state = tmp_path / "state.json"
    if content is not None:
        state.write_text(content)
    assert find(WEEKLY, state, MONDAY - timedelta(hours=1)) == Due(MONDAY - timedelta(days=7), 0)


def test_a_clock_that_ran_ahead_does_not_stop_the_schedule(tmp_path: Path) -> None:
    state = tmp_path / "state.json"
    note(state, datetime(2038, 1, 1), WEEKLY)
    assert find(WEEKLY, state, MONDAY) is None
    note(state, MONDAY, WEEKLY)
    assert find(WEEKLY, state, MONDAY + timedelta(days=8)) is not None


@given(st.lists(st.integers(1, 60 * 24 * 20), min_size=1, max_size=12))
def test_whenever_it_is_called_a_time_is_served_once(
    tmp_path_factory: pytest.TempPathFactory, waits: list[int]
) -> None:
    """Called at any moments, with pauses of minutes to weeks: reports and missed times together are all the times."""
    state = tmp_path_factory.mktemp("due") / "state.json"
    now = MONDAY + timedelta(minutes=1)
    note(state, now, WEEKLY)
    begin, served, reports = now, 0, 0
    for wait in waits:
        now += timedelta(minutes=wait)
        if (found := find(WEEKLY, state, now)) is not None:
            assert found.scheduled <= now
            served, reports = served + 1 + found.missed, reports + 1
            note(state, now, WEEKLY)
    weeks = (now - MONDAY) // timedelta(days=7) - (begin - MONDAY) // timedelta(days=7)
    assert served == weeks and reports <= len(waits)
