"""From facts to a report: groups, curves, what records say, what is missing, and the verdict."""

import json
import random
from dataclasses import replace
from itertools import pairwise
from pathlib import Path
from statistics import fmean, geometric_mean
from typing import Any

import pytest
from synthetic_runs import BEGIN, DAY, STAGES, Synthetic, write_history, write_pipeline, write_probes, write_run

from superblock.config.report import ReportConfig
from superblock.evaluation.statistics import t_interval
from superblock.reporting.analysis import analyse
from superblock.reporting.benchmarked import ablation_rows
from superblock.reporting.collect import collect
from superblock.reporting.content import Group, Report
from superblock.reporting.facts import Facts, RecordFacts
from superblock.reporting.files import report_text
from superblock.reporting.pages import render

RUNS = Path("runs")
BITS, SPEED = "test/bits_per_byte", "final/tokens_per_second"


def facts(**select: Any) -> Facts:
    config = ReportConfig(source="spool")
    config.select = replace(config.select, **select)
    return collect(config, say=lambda line: None)


def report(baseline: Report | None = None, earlier: tuple[Report, ...] = (), **select: Any) -> Report:
    config = ReportConfig(source="spool")
    config.select = replace(config.select, **select)
    return analyse(collect(config, say=lambda line: None), config, baseline, earlier)


def group(found: Report, key: str) -> Group:
    return next(one for one in found.groups if one.key == key)


# -- groups -----------------------------------------------------------------------------------------------------------


def test_four_stages_with_three_seeds_make_a_whole_report() -> None:
    write_pipeline(RUNS, language=True)
    found = report()
    assert [one.key for one in found.groups] == [f"mini/{stage}/default" for stage in STAGES]
    assert [one.superblocks for one in found.groups] == [1, 3, 6, 12]
    for one in found.groups:
        values = [value.value for value in one.measures[BITS].values]
        interval = t_interval(values)
        assert [value.seed for value in one.measures[BITS].values] == [1, 2, 3]
        assert (one.measures[BITS].mean, one.measures[BITS].low, one.measures[BITS].high) == (
            interval.mean, interval.low, interval.high,
        )  # fmt: skip
        assert set(one.references) == {"unigram", "trigram", "xz"}
        assert {curve.metric for curve in one.curves} == {"val/bits_per_byte", "train/bits_per_byte"}
        assert [point.depth for point in one.exits] == list(range(1, (one.superblocks or 0) + 1))
        assert len(one.experts) == 2 * (one.superblocks or 0)
        assert [row.name for row in one.positions] == ["1-16", "17-64", "65-128"]
        assert sum(row.share or 0 for row in one.packages) == pytest.approx(1)
        assert len(one.statements) == 18 and one.sample and "def f1" in one.sample
    assert found.groups[1].exits[0].trained is not None
    assert found.groups[1].exits[0].trained.mean == pytest.approx(found.groups[0].measures[BITS].mean)
    assert {one.metric for one in found.groups[1].predicted} == {"bits_per_byte", "minutes", "memory_bytes"}
    assert found.groups[1].predicted[0].seeds == 3 and found.groups[0].predicted == ()
    assert {source.name for source in found.sources} >= {run for one in found.groups for run in one.runs}
    assert found.title == "MVP1 to MVP4 at scale mini"


def test_a_grown_stage_begins_where_its_parent_ended() -> None:
    write_pipeline(RUNS)
    found = report().groups
    for before, after in pairwise(found):
        ends = {curve.metric: curve.tokens[-1] for curve in before.curves}
        for curve in after.curves:
            assert ends[curve.metric] == before.training_tokens
            assert ends[curve.metric] < curve.tokens[0]
            assert curve.tokens[-1] == after.training_tokens


def test_curves_of_seeds_with_other_budgets_are_compared_where_all_have_points() -> None:
    for seed in (1, 2, 3):
        folder = write_run(RUNS, Synthetic(seed=seed, points=50 + 7 * seed))
        summary = json.loads((folder / "summary.json").read_text())
        share = 1 - 0.1 * seed
        summary["tokens"] = summary["lineage"][0]["tokens"] = round(summary["tokens"] * share)
        (folder / "summary.json").write_text(json.dumps(summary))
    [one] = report().groups
    curve = next(curve for curve in one.curves if curve.metric == "train/bits_per_byte")
    assert curve.seeds == 3
    assert curve.tokens[-1] == pytest.approx(600 * 2048 * 0.7)
    assert all(low <= mean <= high for low, mean, high in zip(curve.low, curve.mean, curve.high, strict=True))


def test_arms_texts_and_configurations_are_groups_of_their_own() -> None:
    for seed in (1, 2, 3):
        write_run(RUNS, Synthetic(seed=seed))
        write_run(RUNS, Synthetic(seed=seed, arm="muon", started=BEGIN + 10))
        write_run(RUNS, Synthetic(seed=seed, started=BEGIN + 20, settings=(("optim.learning_rate", "0.001"),)))
    found = report()
    assert [one.key for one in found.groups] == [
        "mini/mvp1/default", "mini/mvp1/default/optim.learning_rate=0.003", "mini/mvp1/muon",
    ]  # fmt: skip
    assert any("other settings than the newest" in problem for problem in found.problems)
    assert len({one.configuration for one in found.groups}) == 2
    write_run(RUNS, Synthetic(seed=4, started=BEGIN + 30, digest="ffff000011112222"))
    found = report()
    assert "mini/mvp1/default/ffff000011112222" in {one.key for one in found.groups}
    assert any("read 2 texts" in problem for problem in found.problems)


def test_a_model_from_scratch_and_a_grown_one_are_two_configurations() -> None:
    write_pipeline(RUNS, seeds=[1], stages=["mvp1", "mvp2"])
    write_run(RUNS, Synthetic(stage="mvp2", started=BEGIN + 5000))
    assert [one.key for one in report().groups] == [
        "mini/mvp1/default", "mini/mvp2/default", "mini/mvp2/default/grown 1",
    ]  # fmt: skip


def test_the_newest_run_of_a_seed_counts_unless_all_are_asked_for() -> None:
    write_history(RUNS, times=3, seeds=[1, 2])
    one, many = report(), report(all_runs=True)
    assert len(one.groups[0].runs) == 2 and len(many.groups[0].runs) == 6
    assert all("20261116" in run for run in one.groups[0].runs)
    assert {source.name for source in one.sources} == set(many.groups[0].runs)  # the others are history


def test_runs_of_one_seed_are_no_independent_draws() -> None:
    write_history(RUNS, times=4)
    [one] = report(all_runs=True).groups
    values = one.measures[BITS].values
    seeds = [fmean(value.value for value in values if value.seed == seed) for seed in (1, 2, 3)]
    interval = t_interval(seeds)
    assert len(values) == 12 == len(one.runs)
    assert (one.measures[BITS].mean, one.measures[BITS].low, one.measures[BITS].high) == pytest.approx(
        (interval.mean, interval.low, interval.high)
    )
    assert {curve.seeds for curve in one.curves} == {3}
    text = _pages(report(all_runs=True))
    assert "12 runs" in text and all(f"{value.value:.4f}" in text for value in values)


def test_seeds_inside_a_prediction_are_counted_once() -> None:
    for day in range(3):
        write_pipeline(RUNS, stages=["mvp1", "mvp2"], started=BEGIN + day * DAY)
    assert [(one.inside, one.seeds) for one in report(all_runs=True).groups[1].predicted] == [(3, 3)] * 3


def test_no_interval_of_speed_or_memory_reaches_below_zero() -> None:
    for seed, speed in ((1, 1.0), (2, 0.3), (3, 0.05)):
        write_run(RUNS, Synthetic(seed=seed, speed=speed, memory=speed))
    [one] = report().groups
    for name in (SPEED, "final/memory_peak_mib"):
        found = one.measures[name]
        assert found.mean == pytest.approx(geometric_mean(value.value for value in found.values))
        assert found.low is not None and found.high is not None and 0 < found.low < found.mean < found.high
    exits = one.exits[0].tokens_per_second
    assert exits is not None and exits.low is not None and exits.low > 0


def test_a_sample_names_the_run_that_wrote_it() -> None:
    first, second = (write_run(RUNS, Synthetic(seed=seed)) for seed in (1, 2))
    (first / "artifacts" / "samples.md").unlink()
    [one] = report().groups
    assert one.sample is not None and "def f2" in one.sample and one.sample_run == second.name
    assert f"run {second.name}" in _pages(report()) and f"run {first.name}" not in _pages(report())


def _pages(found: Report) -> str:
    render(found, Path("page"))
    return Path("page/report.md").read_text()


def test_runs_of_several_machines_have_no_speed() -> None:
    write_run(RUNS, Synthetic(seed=1))
    write_run(RUNS, Synthetic(seed=2, machine="00000000"))
    found = report()
    [one] = found.groups
    assert one.machine is None
    assert SPEED not in one.measures and BITS in one.measures and "final/memory_peak_mib" in one.measures
    assert all(point.tokens_per_second is None for point in one.exits)
    assert any("several machines" in problem for problem in found.problems)


def test_what_the_runs_differ_in_is_said() -> None:
    write_run(RUNS, Synthetic(seed=1))
    write_run(RUNS, Synthetic(seed=2, commit="ab" * 20, dirty=True))
    words = "\n".join(report().problems)
    assert "2 commits" in words and "abababababab" in words
    assert "uncommitted changes: mvp1-mini-s2" in words


def test_a_single_seed_has_no_interval_and_no_verdict() -> None:
    write_pipeline(RUNS, seeds=[1])
    found = report()
    assert found.verdict == "not enough seeds"
    assert (found.groups[0].measures[BITS].low, found.groups[0].measures[BITS].high) == (None, None)
    assert any("seed=2,3" in words and "stage=all" in words for words in found.missing)


def test_a_run_without_a_test_is_shown_without_quality() -> None:
    for seed in (1, 2, 3):
        write_run(RUNS, Synthetic(seed=seed, tested=False))
    found = report()
    assert BITS not in found.groups[0].measures and SPEED in found.groups[0].measures
    assert (found.verdict, found.verdict_words) == ("missing", "No run was tested on a text.")
    assert any("no test of" in words for words in found.missing)


def test_nothing_at_all_cannot_be_reported() -> None:
    with pytest.raises(ValueError, match="nothing to report"):
        report()


# -- verdicts ---------------------------------------------------------------------------------------------------------


def test_without_a_baseline_the_stages_are_the_verdict() -> None:
    write_pipeline(RUNS)
    found = report()
    assert found.verdict == "new" and found.baseline is None and found.changes == ()
    assert found.verdict_words.startswith("4 stages, 3 seeds each: bits per byte 1.65")
    assert "all 60 gates passed; no earlier report is the baseline." in found.verdict_words


def test_stages_that_repeat_well_are_told_apart_and_others_are_not() -> None:
    write_pipeline(RUNS, noise=0.0001)
    assert "each stage better than the one before" in report().verdict_words
    write_pipeline(RUNS, noise=0.02, started=BEGIN + DAY)
    assert "not shown to be better" in report().verdict_words


def test_a_stage_that_is_worse_is_called_so() -> None:
    write_pipeline(RUNS, stages=["mvp1"], noise=0.0001)
    write_pipeline(RUNS, stages=["mvp2"], noise=0.0001, quality=1.2)
    assert "mvp2 worse than mvp1" in report().verdict_words


def test_failed_gates_are_in_the_verdict() -> None:
    write_pipeline(RUNS, failed_gates=("resume",))
    assert "12 of 60 gates failed" in report().verdict_words


@pytest.mark.parametrize(
    ("effect", "verdict"), [({"quality": 1.05}, "regressed"), ({"quality": 0.95}, "improved"), ({}, "unchanged")]
)
def test_beside_a_baseline_planted_changes_are_the_verdict(effect: dict[str, float], verdict: str) -> None:
    quiet: dict[str, Any] = {"noise": 0.0002, "speed_noise": 0.002, "seeds": range(1, 6)}
    write_pipeline(RUNS, **quiet)
    before = report()
    write_pipeline(RUNS, started=BEGIN + DAY, **quiet, **effect)
    found = report(baseline=before)
    assert found.baseline == before.name
    assert found.verdict == verdict
    quality = [change for change in found.changes if change.metric == BITS]
    assert len(quality) == 4
    for change in quality:
        assert change.relative == pytest.approx(effect.get("quality", 1.0) - 1, abs=0.002)


def test_history_is_of_one_configuration_and_of_runs_that_are_gone() -> None:
    write_history(RUNS, times=2, seeds=[1, 2, 3])
    first = report()
    RUNS.rename("gone")
    write_history(RUNS, times=1, seeds=[1, 2, 3], started=BEGIN + 14 * DAY)
    other = write_run(RUNS, Synthetic(seed=1, started=BEGIN + 13 * DAY, settings=(("optim.learning_rate", "1"),)))
    alone, found = report(), report(earlier=(first,))
    points = {len(history.points) for history in alone.histories}
    assert points == {1}
    [history] = [one for one in found.histories if one.metric == BITS]
    assert len(history.points) == 2  # of two occasions the newest had been counted in the earlier report
    named = {run for point in history.points for run in point.runs}
    assert other.name not in named and named <= {source.name for source in found.sources}


def _slower_since(added: tuple[tuple[str, str], ...]) -> None:
    """Eight quiet occasions and four at nine tenths of the speed, with these further settings."""
    write_history(RUNS, times=8, every=DAY, speed_noise=0.002)
    write_history(RUNS, times=4, every=DAY, started=BEGIN + 8 * DAY, speed=0.9, speed_noise=0.002, settings=added)


@pytest.mark.parametrize("added", [(), (("trainer.novelty", "1"),)])
def test_a_setting_that_is_new_in_the_code_ends_no_history(added: tuple[tuple[str, str], ...]) -> None:
    _slower_since(added)
    [speed] = [one for one in report().histories if one.metric == SPEED]
    assert (len(speed.points), speed.alarm, speed.change_at) == (12, True, 8)


def test_a_changed_setting_begins_a_history() -> None:
    _slower_since((("optim.learning_rate", "1"),))
    [speed] = [one for one in report().histories if one.metric == SPEED]
    assert (len(speed.points), speed.alarm) == (4, False)


@pytest.mark.parametrize(("setting", "points"), [("trainer.novelty", 2), ("optim.learning_rate", 1)])
@pytest.mark.parametrize("kept", [True, False])
def test_runs_that_are_gone_follow_the_same_rule(setting: str, points: int, kept: bool) -> None:
    write_history(RUNS, times=1)
    first = report()
    if not kept:  # a report of a version that did not keep the settings tells of equal ones alone
        first, points = replace(first, groups=tuple(replace(one, settings={}) for one in first.groups)), 1
    RUNS.rename("gone")
    write_history(RUNS, times=1, started=BEGIN + DAY, settings=((setting, "1"),))
    assert {len(one.points) for one in report(earlier=(first,)).histories} == {points}


@pytest.mark.parametrize("away", [True, False])
def test_runs_that_were_not_asked_for_do_not_come_back_from_earlier_reports(away: bool) -> None:
    write_history(RUNS, times=3, every=7 * DAY)
    first = report(all_runs=True)
    if away:
        RUNS.rename("gone")
        write_history(RUNS, times=1, started=BEGIN + 14 * DAY)

    def points(**select: Any) -> list[tuple[str, ...]]:
        return [
            p.runs for one in report(earlier=(first,), **select).histories if one.metric == BITS for p in one.points
        ]

    assert [len(runs) for runs in points()] == [3, 3, 3]
    assert [len(runs) for runs in points(days=10)] == [3, 3]
    assert [len(runs) for runs in points(seeds=[1])] == [1, 1, 1]
    assert all("-s1-" in run for runs in points(seeds=[1]) for run in runs)


# -- records ----------------------------------------------------------------------------------------------------------


@pytest.fixture
def with_records(root: Path) -> Report:
    write_probes(Path("runs/benchmarks/probes/probes.json"))
    records = [
        "runs/benchmarks",
        *(str(root / "reports" / "records" / f"2026-11-21-{name}.json") for name in ("speed", "growth", "exits")),
    ]
    config = ReportConfig(source="spool", records=records)
    return analyse(collect(config, say=lambda line: None), config, None)


def test_records_alone_make_a_report(with_records: Report) -> None:
    assert with_records.groups == () and with_records.title == "Benchmarks"
    assert with_records.name.startswith("benchmarks-2026-11-21-")
    assert [source.name for source in with_records.sources] == ["probes", "speed", "growth", "exits"]
    assert "stage=all" in with_records.missing[0]


def test_probes_are_rows_of_tasks_and_arms(with_records: Report) -> None:
    rows = {(row.task, row.arm): row for row in with_records.probes}
    assert len(rows) == 8
    row = rows[("parity", "deltanet")]
    assert row.score.mean > 0.98 and len(row.score.values) == 3 and row.chance == 0.5
    assert list(row.levels) == ["pairs=4", "pairs=8"]
    assert row.published == "1.0" and rows[("parity", "attention")].published is None


def test_the_speed_record_is_told_as_it_was_measured(with_records: Report, root: Path) -> None:
    content = json.loads((root / "reports" / "records" / "2026-11-21-speed.json").read_text())
    rows = {row.case: row for row in with_records.speed}
    assert set(rows) == set(content["cases"])
    row = rows["train/s1/b4-t512"]
    own = content["cases"]["train/s1/b4-t512"]["variants"]["superblock-bf16"]
    assert (row.milliseconds, row.ratio, row.memory_ratio) == (
        own["ms"]["median"],
        own["ratio"]["median"],
        own["memory_ratio"],
    )
    assert row.sizes["batch"] == 4 and row.sizes["beside"] == "transformers-bf16"
    assert rows["decode/s3/c512"].sizes["variant"] == "superblock-fp32"
    assert rows["part/heads"].ratio is None  # beside ourselves, not beside the peer


def test_ablations_tell_every_comparison(with_records: Report, root: Path) -> None:
    growth = json.loads((root / "reports" / "records" / "2026-11-21-growth.json").read_text())["results"]
    rows = [row for row in with_records.ablations if row.experiment == "growth"]
    assert len(rows) == 7 + len(growth["methods"]) + len(growth["extras"])
    first = rows[0]
    assert first.comparison == "1 to 3 superblocks: identity - scratch, at equal FLOPs"
    assert first.mean == growth["transitions"]["1-3"]["identity"]["to_scratch"]["mean"] and first.seeds == 5
    assert first.words == "fewer bits per byte"
    exits = {row.comparison: row for row in with_records.ablations if row.experiment == "exits"}
    assert exits["3 superblocks: stages-0.3-equal / exits off - 1"].words == "one seed shows nothing"
    assert exits["3 superblocks: rotate-0.1 / exits off - 1"].words == "undecided"


@pytest.mark.parametrize(("seeds", "words"), [(2, "2 of 3 seeds that a verdict needs"), (3, "fewer bits per byte")])
def test_two_seeds_of_an_ablation_give_no_verdict(seeds: int, words: str) -> None:
    entry = {"mean": -0.1, "low": -0.11, "high": -0.09, "p_holm": 0.01, "n": seeds}
    content = {"schema": "superblock.ablation/1", "results": {"methods": {"identity - copy": entry}}}
    record = RecordFacts(suite="growth", name="growth", started=1.0, finished=2.0, commit="", machine="", hardware="",
                         content=content)  # fmt: skip
    [row] = ablation_rows([record])
    assert row.words == words and row.decided is (seeds == 3)


@pytest.mark.parametrize(
    ("words", "unit", "budget"),
    [
        ("20 TFLOP", "flops", "20 TFLOP for each arm, equal FLOPs"),
        ("1M tokens", "tokens", "1M tokens for each arm, equal tokens, not equal FLOPs"),
    ],
)
def test_a_sweep_tells_its_budget_and_its_verdicts(words: str, unit: str, budget: str) -> None:
    """An interval without zero is undecided where Holm's correction does not agree."""
    pair = {"group": "mvp1", "reference": "a", "mean": -0.1, "low": -0.11, "high": -0.09, "n": 3}
    found = {
        "x": pair | {"arm": "b", "p_holm": 0.2, "verdict": "undecided"},
        "y": pair | {"arm": "c", "verdict": "better"},
    }
    content = {"schema": "superblock.ablation/1",
               "results": {"comparisons": found, "budget": {"words": words, "unit": unit}}}  # fmt: skip
    record = RecordFacts(suite="ablation", name="wiring", started=1.0, finished=2.0, commit="", machine="", hardware="",
                         content=content)  # fmt: skip
    rows = ablation_rows([record])
    assert [row.decided for row in rows] == [False, True] and {row.budget for row in rows} == {budget}


# -- determinism ------------------------------------------------------------------------------------------------------


def test_equal_facts_in_any_order_give_equal_reports() -> None:
    write_pipeline(RUNS, language=True)
    found = facts()
    texts = set()
    for seed in range(4):
        runs = list(found.runs)
        random.Random(seed).shuffle(runs)
        texts.add(report_text(analyse(replace(found, runs=tuple(runs)), ReportConfig(), None)))
    assert len(texts) == 1


def test_the_name_tells_scale_day_and_content() -> None:
    write_pipeline(RUNS, seeds=[1, 2, 3])
    first = report()
    assert first.name.startswith("mini-2026-11-02-") and len(first.name) == len("mini-2026-11-02-") + 8
    assert report().name == first.name
    write_run(RUNS, Synthetic(seed=1, started=BEGIN + DAY))
    assert report().name != first.name and report().name.startswith("mini-2026-11-03-")
    named = analyse(facts(), ReportConfig(name="mine", title="My runs"), None)
    assert (named.name, named.title) == ("mine", "My runs")


def test_no_number_is_without_a_run() -> None:
    write_pipeline(RUNS, language=True)
    found = report()
    known = {source.name for source in found.sources}
    for one in found.groups:
        for measure in (*one.measures.values(), *(row.bits_per_byte for row in one.positions)):
            assert {value.run for value in measure.values} <= known
            assert min(v.value for v in measure.values) <= measure.mean <= max(v.value for v in measure.values)
