"""Histories: what a point is, which changes are alarms, and how often that is wrong."""

import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import detection_rates
import numpy as np
import pytest
from made_up import BITS, DAY, LEVELS, MEMORY, SPEED, history, run_facts
from synthetic_runs import write_history

from superblock.config.report import ReportConfig
from superblock.reporting.collect import collect
from superblock.reporting.content import History
from superblock.reporting.facts import RunFacts
from superblock.reporting.history import histories
from superblock.reporting.occasions import occasions, seed_levels

QUIET = (0.001, -0.002, 0.0, 0.002, -0.001, 0.001, -0.001, 0.0, 0.002, -0.002)


def only(runs: list[RunFacts], **settings: Any) -> History:
    (found,) = histories(runs, **settings)
    return found


def speeds(*moved: float) -> list[RunFacts]:
    """A quiet history that ends with these relative changes."""
    return history(SPEED, [*QUIET, *(math.log1p(one) + 0.001 * (-1) ** i for i, one in enumerate(moved))])


def test_a_lasting_slowdown_is_an_alarm_that_names_where_it_began() -> None:
    found = only(speeds(-0.05, -0.05, -0.05))
    assert found.alarm and found.change_at == 10 and found.relative == pytest.approx(-0.05, abs=0.005)
    assert found.words.startswith("worse: -5.0 % (") and "since 1970-01-11, commit 00000000" in found.words
    assert (found.group, found.metric, found.machine) == ("mini/mvp1/default", SPEED, "562b73a2")
    assert found.points[10].commit == f"{10:040x}" and found.points[10].runs == ("mvp1-s1-10",)


@pytest.mark.parametrize(
    "moved", [(-0.5,), (-0.3, -0.3), (-0.3, -0.2, 0.0), (-0.05,) * 4 + (0.0,) * 4, (0.0, -0.4, 0.0)]
)
def test_what_did_not_last_is_none(moved: tuple[float, ...]) -> None:
    assert not only(speeds(*moved)).alarm


def test_a_state_that_ends_is_a_change_but_no_alarm_any_more() -> None:
    going = only(speeds(*(-0.1,) * 6, 0.0))
    assert not going.alarm and going.change_at == 10 and "do not all lie beyond" in going.words


def test_improvements_are_shown_and_are_no_alarms() -> None:
    found = only(speeds(*(0.1,) * 4))
    assert not found.alarm and found.change_at == 10 and found.words.startswith("better: +10.")


@pytest.mark.parametrize(("metric", "sign"), [(BITS, 1), (MEMORY, 1), (SPEED, -1)])
def test_worse_depends_on_the_metric(metric: str, sign: int) -> None:
    logs = [one / 10 for one in QUIET]
    assert only(history(metric, logs + [0.06 * sign] * 3)).alarm
    assert not only(history(metric, logs + [-0.06 * sign] * 3)).alarm


def test_small_changes_do_not_count() -> None:
    found = only(history(SPEED, [one / 10 for one in QUIET] + [-0.02] * 6))
    assert not found.alarm and found.change_at is None and "but -2.0 %, less than the 5 % that count" in found.words
    assert only(
        history(SPEED, [one / 10 for one in QUIET] + [-0.02] * 6),
        effects={"quality": 0.01, "speed": 0.01, "memory": 0.01},
    ).alarm


def test_a_slow_drift_is_an_alarm() -> None:
    noise = 0.002 * np.random.default_rng(2).standard_normal(30)
    found = only(history(SPEED, (noise - 0.006 * np.maximum(np.arange(30) - 9, 0)).tolist()))
    assert found.alarm and "steps" in found.words and found.relative is not None and found.relative < -0.05


def test_the_pinned_baseline_accepts_what_was_before() -> None:
    runs = speeds(*(-0.1,) * 5)
    assert only(runs, known_until=9.5 * DAY).alarm
    known = only(runs, known_until=13 * DAY)
    assert not known.alarm and known.change_at == 10 and "accepted since by the pinned baseline" in known.words


@pytest.mark.parametrize("count", range(1, 5))
def test_short_histories_say_so(count: int) -> None:
    found = only(history(SPEED, [0.0, -0.5, -0.5, -0.5][:count]))
    assert not found.alarm and found.change_at is None and "a change needs 5 to be told from noise" in found.words


def test_a_quiet_one_says_what_it_would_have_found() -> None:
    words = only(history(SPEED, list(QUIET) * 2)).words
    assert words == (
        "no change over 20 points that vary by 0.1 %; one of 5.0 % would be found from 3 points in four of five cases"
    )
    noisy = only(history(SPEED, [20 * one for one in QUIET] * 2)).words
    assert "vary by 2.9 %; one of 9.3 % would be found" in noisy


def test_one_machine_text_and_configuration_each() -> None:
    logs = [0.0] * 6
    here = history(SPEED, logs)
    there = [replace(run, machine="other") for run in history(SPEED, [one - 0.7 for one in logs])]
    assert [(one.machine, len(one.points), one.alarm) for one in histories(here + there)] == [
        ("562b73a2", 6, False),
        ("other", 6, False),
    ]
    text = [replace(run, data_digest="feedbeef" * 2, started=run.started + 60 * DAY) for run in here]
    assert [one.group for one in histories(here + text)] == ["mini/mvp1/default/32d35cde", "mini/mvp1/default/feedbeef"]


def test_a_changed_setting_begins_its_own_and_a_new_one_does_not() -> None:
    old = history(SPEED, [0.0] * 6)
    later = [replace(run, started=run.started + 60 * DAY) for run in history(SPEED, [-0.5] * 6)]

    def settings(runs: list[RunFacts], **values: str) -> list[RunFacts]:
        return [replace(run, settings=values) for run in runs]

    changed = histories(settings(old, rate="1") + settings(later, rate="2"))
    assert [(one.group, one.alarm) for one in changed] == [
        ("mini/mvp1/default", False),
        ("mini/mvp1/default/rate=1", False),
    ]
    assert only(settings(old, rate="1") + settings(later, rate="1", new="3")).alarm
    assert only(old + settings(later, rate="1")).alarm


def test_only_finished_runs_with_the_metric_count() -> None:
    runs = history(SPEED, list(QUIET))
    runs[3], runs[5] = replace(runs[3], status="FAILED"), replace(runs[5], results={})
    runs[6] = replace(runs[6], results={SPEED: 0.0})
    assert len(only(runs).points) == 7 and histories([]) == ()


def test_an_occasion_is_one_commit_within_hours_each_seed_once() -> None:
    def run(number: float, seed: int, commit: str = "a", **changes: Any) -> RunFacts:
        return run_facts(0, {}, seed=seed, started=number * 3600, ended=number * 3600 + 600, commit=commit, **changes)

    runs = [
        run(0, 1),
        run(1, 2),
        run(6, 3),
        run(13, 4),
        run(14, 5, "b"),
        run(15, 5, "b"),
        run(15.5, 6, "b", dirty=True),
    ]
    assert [[one.seed for one in group] for group in occasions(runs)] == [[1, 2, 3], [4], [5], [5], [6]]


def test_seeds_are_no_change() -> None:
    """Of three seeds that differ by 3 % one fails now and then; the means would jump by 1.5 %."""
    level = {1: 0.03, 2: 0.0, 3: -0.03}
    runs = [
        run_facts(day, {BITS: LEVELS[BITS] * math.exp(own)}, seed=seed)
        for day in range(12) for seed, own in level.items() if (day, seed) not in ((3, 1), (9, 3), (10, 3), (11, 3))
    ]  # fmt: skip
    found = only(runs)
    assert found.change_at is None and np.ptp([point.value for point in found.points]) < 1e-9
    assert [len(point.runs) for point in found.points] == [3, 3, 3, 2, 3, 3, 3, 3, 3, 2, 2, 2]


def test_seed_levels() -> None:
    assert seed_levels([{1: 1.0}, {2: 5.0}])[1] == 0
    levels = seed_levels([{1: 1.0, 2: 3.0}, {2: 13.0, 3: 15.0}, {4: 99.0}])
    assert [round(levels[seed], 6) for seed in (1, 2, 3, 4)] == [-2, 0, 2, 0]


def test_one_slow_run_of_an_occasion_hardly_matters() -> None:
    runs = [
        run_facts(day, {SPEED: LEVELS[SPEED] * (0.5 if (day + seed) % 3 == 0 else 1.0)}, seed=seed)
        for day in range(9) for seed in (1, 2, 3)
    ]  # fmt: skip
    found = only(runs)
    assert not found.alarm and found.change_at is None


def test_a_hundred_histories_without_change() -> None:
    """Asked: at most five alarms, whatever the noise."""
    for noise in ("normal", "heavy_tail", "outliers", "changing"):
        for kind, spread in (("speed", 0.02), ("speed", 0.05), ("quality", 0.004)):
            assert detection_rates.alarms(kind, noise, spread, 20, count=100) <= 0.05


@pytest.mark.parametrize(("kind", "change", "spread"), [("speed", 0.05, 0.01), ("quality", 0.01, 0.002)])
def test_planted_changes_are_found(kind: str, change: float, spread: float) -> None:
    """5 % slower, 1 % more bits per byte, three points behind; noise of a fifth of that."""
    assert detection_rates.alarms(kind, "normal", spread, 20, change=change, count=200) >= 0.92


@pytest.mark.parametrize(
    ("after", "metrics"),
    [({}, []), ({"speed": 0.95}, [SPEED]), ({"quality": 1.01}, [BITS]), ({"speed": 1.1, "quality": 0.98}, []), ({"memory": 1.08}, [MEMORY])],
)  # fmt: skip
def test_through_run_folders(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, after: dict[str, float], metrics: list[str]
) -> None:
    """Twelve weekly occasions of three seeds, written as training writes them; the last four changed."""
    monkeypatch.chdir(tmp_path)
    write_history(tmp_path / "runs", times=12, change_at=8, after=after)
    facts = collect(ReportConfig(source="spool"), say=lambda line: None)
    found = histories(facts.runs)
    assert {one.metric for one in found} == {BITS, SPEED, MEMORY} and all(len(one.points) == 12 for one in found)
    assert [one.metric for one in found if one.alarm] == metrics
    assert all(one.change_at == 8 for one in found if one.alarm)
