"""Verdicts of comparisons: the rule, what cannot be compared, and how often they are wrong."""

import math
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import detection_rates
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from made_up import BITS, MEMORY, SPEED, group, history

from superblock.reporting.comparing import compare, same_runs, verdict
from superblock.reporting.content import Change, Group, Measure
from superblock.reporting.history import histories

SEEDS = (0.004, -0.006, 0.001)
SMALL = (0.0003, -0.0002, -0.0001)


def groups(moved: float = 0.0, spread: Sequence[float] = SMALL, metric: str = BITS, **changes: Any) -> dict[str, Group]:
    """One group whose seeds have levels of their own, moved by a share and by a little of their own."""
    logs = [math.log1p(moved) + level + own for level, own in zip(SEEDS, spread, strict=False)]
    one = group({metric: logs}, **changes)
    return {one.key: one}


BASE = groups(spread=(0, 0, 0))


def only(before: dict[str, Group], after: dict[str, Group]) -> Change:
    (change,) = compare(before, again(after))
    return change


def again(groups: dict[str, Group]) -> dict[str, Group]:
    """The same numbers, measured by other runs."""

    def renamed(one: Measure) -> Measure:
        return replace(one, values=tuple(replace(value, run=f"{value.run}-again") for value in one.values))

    return {
        key: replace(one, measures={name: renamed(measure) for name, measure in one.measures.items()})
        for key, one in groups.items()
    }


@pytest.mark.parametrize(
    ("metric", "moved", "expected", "word"),
    [
        (BITS, 0.012, "regressed", "worse"), (BITS, -0.012, "improved", "better"), (BITS, 0.001, "unchanged", "less than the 1 %"),
        (BITS, 0.005, "unchanged", "a change, but less than the 1 %"), (SPEED, -0.06, "regressed", "worse"),
        (SPEED, 0.06, "improved", "better"), (SPEED, 0.02, "unchanged", "5 %"), (MEMORY, 0.08, "regressed", "worse"),
        (BITS, 0.0, "unchanged", "less"),
    ],
)  # fmt: skip
def test_the_rule(metric: str, moved: float, expected: str, word: str) -> None:
    change = only(groups(spread=(0, 0, 0), metric=metric), groups(moved, metric=metric))
    assert change.verdict == expected and word in change.words
    assert change.relative == pytest.approx(moved, abs=1e-6)
    assert change.low is not None and change.high is not None and change.low <= change.relative <= change.high
    assert change.p_adjusted is not None and (change.p_adjusted < 0.05) == (moved != 0.0)


def test_pairs_and_not_means_are_compared() -> None:
    """The seeds differ by ten times the change; their order in the measure does not matter."""
    one = groups(0.012)[(key := "mini/mvp1/default")]
    shuffled = replace(one.measures[BITS], values=one.measures[BITS].values[::-1])
    assert only(BASE, {key: replace(one, measures={BITS: shuffled})}).verdict == "regressed"


def test_exactly_the_minimum_effect_is_caught() -> None:
    """Half of the means would lie below it."""
    assert only(BASE, groups(0.01, (-0.0001, -0.0002, -0.0003))).verdict == "regressed"


def test_equal_numbers_of_other_runs_are_unchanged() -> None:
    change = only(BASE, BASE)
    assert (change.verdict, change.relative, change.low, change.high, change.p) == ("unchanged", 0, 0, 0, 1)


def test_the_same_runs_are_no_comparison() -> None:
    """They count neither as unchanged nor in Holm's correction, and the line says how many there are."""
    spread = (0.002, -0.0012, -0.0008)
    others = {f"mini/s{i}/default": group({BITS: SEEDS}, stage=f"s{i}") for i in range(11)}
    before, after = {**BASE, **others}, {**again(groups(0.012, spread)), **others}
    (change,) = compare(before, after)
    assert change.verdict == "regressed" and change.p == change.p_adjusted and "correction" not in change.words
    same = same_runs(before, after)
    assert same == tuple(others)
    assert verdict([change], same=len(same))[1].endswith(
        "; 11 groups of the baseline's own runs, which are not compared with themselves."
    )
    assert compare(others, others) == () and verdict([], same=1)[0] == "unchanged"
    one = others["mini/s0/default"]
    retested = replace(one, measures={**one.measures, **groups(0.012)["mini/mvp1/default"].measures})
    assert len(compare({one.key: one}, {one.key: retested})) == 1 and not same_runs({one.key: one}, {one.key: retested})
    longer = group({BITS: (*SEEDS, 0.002)}, stage="s0")
    assert len(compare({one.key: one}, {one.key: longer})) == 1


def test_p_values_have_a_floor() -> None:
    """No p of three seeds is known to thirty digits."""
    sure = only(BASE, groups(0.02, (0, 0, 0)))
    assert sure.p is not None and sure.p < 1e-4 and sure.words.endswith("; p < 0.001")


def test_noise_leaves_it_undecided_and_says_how_many_seeds_would_not() -> None:
    change = only(BASE, groups(0.012, (0.006, -0.004, -0.002)))
    assert change.verdict == "undecided" and "about 4 seeds would decide" in change.words
    small = only(BASE, groups(0.0, (0.006, -0.004, -0.002)))
    assert small.verdict == "undecided" and "seeds would decide" in small.words
    hopeless = only(BASE, groups(0.0, (0.3, -0.2, -0.1)))
    assert "more than 100 seeds" in hopeless.words


def test_equal_runs_where_every_change_counts() -> None:
    (change,) = compare(BASE, again(BASE), effects={"quality": 0.0, "speed": 0.0, "memory": 0.0})
    assert change.verdict == "undecided" and "equal on average" in change.words and "differ" not in change.words


@pytest.mark.parametrize("metric", [BITS, SPEED, MEMORY])
def test_other_settings_are_told(metric: str) -> None:
    def of(moved: float, configuration: str, **settings: str) -> dict[str, Group]:
        found = groups(moved, metric=metric)
        return {key: replace(one, configuration=configuration, settings=settings) for key, one in found.items()}

    before, same = of(0, "a", rate="1", batch="8"), of(-0.1, "a", rate="1", batch="8")
    assert "settings" not in only(before, same).words
    words = only(before, of(-0.1, "b", rate="2", batch="8")).words
    assert words.endswith("; other settings than the baseline's (rate=2)")
    assert only(of(0, "a"), of(-0.1, "b", rate="2")).words.endswith("; other settings than the baseline's")
    many = {f"section.setting{i}": "1" for i in range(20)}
    assert only(before, of(-0.1, "b", **many)).words.endswith("...)")


def test_two_seeds_give_no_verdict() -> None:
    one, two = groups(0.05, SMALL[:2]), groups(0.05, SMALL[:1])
    change = only(BASE, one)
    assert change.verdict == "not enough seeds" and change.p is None and change.low is None
    assert "+5.01 %, but 2 of 3 seeds" in change.words and "but 1 of 3" in only(BASE, two).words
    nobody = {"mini/mvp1/default": group({BITS: SEEDS}, seeds=(7, 8, 9))}
    assert only(BASE, nobody).verdict == "not enough seeds" and only(BASE, nobody).relative is None


@pytest.mark.parametrize("metric", [SPEED, MEMORY])
@pytest.mark.parametrize(("machine", "words"), [("other", "another machine: 562b73a2"), (None, "several machines")])
def test_other_machines_say_nothing_of_speed(metric: str, machine: str | None, words: str) -> None:
    change = only(groups(metric=metric), groups(-0.5, metric=metric, machine=machine))
    assert change.verdict == "not comparable" and words in change.words and change.relative is None
    assert only(BASE, groups(0.012, machine=machine)).verdict == "regressed"


def test_another_text_is_another_number() -> None:
    change = only(BASE, groups(0.5, digest="other"))
    assert change.verdict == "not comparable" and "another text" in change.words


def test_texts_match_before_keys_do() -> None:
    """With a second text the keys get the digest behind them."""
    one, two = groups(0.012)["mini/mvp1/default"], groups(0.5, digest="other")["mini/mvp1/default"]
    after = {
        "mini/mvp1/default/32d3": replace(one, key="mini/mvp1/default/32d3"),
        "mini/mvp1/default/othe": replace(two, key="mini/mvp1/default/othe"),
    }
    assert [(change.group[-4:], change.verdict) for change in compare(BASE, after)] == [
        ("32d3", "regressed"),
        ("othe", "new"),
    ]


def test_new_and_missing() -> None:
    before = {**BASE, "mini/mvp3/default": group({BITS: SEEDS}, stage="mvp3")}
    after = {
        "mini/mvp1/default": group({BITS: SEEDS, SPEED: SEEDS}),
        "mini/mvp2/default": group({BITS: SEEDS}, stage="mvp2"),
    }
    found = {(change.group, change.metric): change.verdict for change in compare(before, again(after))}
    assert found == {
        ("mini/mvp1/default", BITS): "unchanged", ("mini/mvp1/default", SPEED): "new",
        ("mini/mvp2/default", BITS): "new", ("mini/mvp3/default", BITS): "missing",
    }  # fmt: skip
    assert compare({}, {}) == ()


def test_unequal_training_is_told() -> None:
    assert "trained on +20 % tokens" in only(BASE, groups(-0.02, tokens=1.44e6)).words


def test_values_without_a_ratio() -> None:
    zero = groups(metric=SPEED)["mini/mvp1/default"]
    values = tuple(replace(one, value=0.0) for one in zero.measures[SPEED].values)
    broken = {zero.key: replace(zero, measures={SPEED: replace(zero.measures[SPEED], values=values)})}
    assert only(groups(metric=SPEED), broken).verdict == "not comparable"


def test_more_comparisons_ask_for_more() -> None:
    spread = (0.002, -0.0012, -0.0008)
    assert only(BASE, groups(0.012, spread)).verdict == "regressed"
    many = {f"mini/s{i}/default": group({BITS: SEEDS}, stage=f"s{i}") for i in range(11)}
    noisy = {
        key: group({BITS: [a + b for a, b in zip(SEEDS, (0.01, -0.01, 0), strict=True)]}, stage=one.stage)
        for key, one in many.items()
    }
    changes = compare({**BASE, **many}, {**groups(0.012, spread), **noisy})
    assert changes[0].verdict == "undecided" and "12 comparisons" in changes[0].words


def test_one_line() -> None:
    regressed, improved = only(BASE, groups(0.012)), only(groups(metric=SPEED), groups(0.1, metric=SPEED))
    undecided, few = only(BASE, groups(0.012, (0.006, -0.004, -0.002))), only(BASE, groups(0.0, SMALL[:2]))

    def ends(change: Change, digits: int) -> str:
        assert change.low is not None and change.high is not None
        return f"{100 * change.low:+.{digits}f}, {100 * change.high:+.{digits}f}"

    assert verdict([improved, regressed]) == (
        "regressed", f"bits per byte of mvp1 at mini, +1.20 % [{ends(regressed, 2)}]; improved: training speed of mvp1 at mini, +10.0 % [{ends(improved, 1)}].",
    )  # fmt: skip
    assert verdict([improved, undecided])[0] == "improved" and verdict([undecided, only(BASE, BASE)])[0] == "undecided"
    assert verdict([only(BASE, BASE), few]) == ("unchanged", "1 number; 1 with not enough seeds.")
    assert verdict([few])[0] == "not enough seeds" and verdict([]) == ("new", "nothing to compare with.")
    past = histories(history(SPEED, [0.0] * 6 + [-0.1] * 4))
    assert verdict([improved], past)[0] == "regressed" and "in its history" in verdict([], past)[1]


def test_what_is_missing_is_named() -> None:
    """It is no `unchanged`: a number that cannot be looked at may be any."""
    gone = {**BASE, "mini/mvp3/wide": replace(group({BITS: SEEDS}, stage="mvp3"), arm="wide", key="mini/mvp3/wide")}
    changes = compare(gone, again(BASE))
    assert verdict(changes) == (
        "missing",
        "1 number of the baseline: bits per byte of mvp3 at mini (wide); 1 unchanged.",
    )
    word, words = verdict([only(BASE, groups(0.012)), *changes])
    assert (
        word == "regressed" and "; 1 number of the baseline is missing: bits per byte of mvp3 at mini (wide)" in words
    )


@given(
    st.lists(st.floats(-0.05, 0.05), min_size=3, max_size=6), st.lists(st.floats(-0.05, 0.05), min_size=6, max_size=6)
)
def test_exchanging_before_and_after(levels: list[float], moves: list[float]) -> None:
    here, there = group({BITS: levels}), group({BITS: [a + b for a, b in zip(levels, moves, strict=False)]})
    (forth,), (back,) = compare({"g": here}, again({"g": there})), compare({"g": there}, again({"g": here}))
    assert forth.relative is not None and back.relative is not None
    assert (1 + forth.relative) * (1 + back.relative) == pytest.approx(1)
    opposite = {"regressed": "improved", "improved": "regressed"}
    assert opposite.get(back.verdict, back.verdict) == forth.verdict or "unchanged" in (forth.verdict, back.verdict)


@pytest.mark.parametrize("seeds", [3, 5])
def test_reports_without_change_rarely_call_one(seeds: int) -> None:
    """Twelve comparisons each, noise of twice the minimum effect: 5 % of reports at most, 15 of 150 by chance."""
    assert detection_rates.report_row("normal", 2.0, seeds, 0.0, 4, count=150)["wrong"] <= 0.1


def test_planted_changes_are_caught() -> None:
    """1 % more bits per byte and 5 % less speed in all stages; pairs differ by a tenth of that (three seeds), 0.4 (five)."""
    for share, seeds in ((0.1, 3), (0.4, 5)):
        row = detection_rates.report_row("normal", share, seeds, 1.0, 4, count=100)
        assert row["caught"] >= 0.95 and row["missed"] <= 0.05, row


def test_the_interval_covers() -> None:
    rng, covered = np.random.default_rng(3), 0
    for _ in range(300):
        change = only(groups(spread=(0, 0, 0)), groups(0.02, (0.01 * rng.standard_normal(3)).tolist()))
        assert change.low is not None and change.high is not None
        covered += change.low <= 0.02 <= change.high
    assert 272 <= covered <= 297
