"""From facts to a report: groups, comparisons, and one line that says what came out. Pure: equal facts, equal reports."""

import hashlib
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from datetime import UTC, datetime

from superblock.config.report import ReportConfig
from superblock.reporting import comparing, stages
from superblock.reporting.benchmarked import ablation_rows, probe_rows, speed_rows
from superblock.reporting.content import Group, History, NoBaseline, Report
from superblock.reporting.facts import Facts, RunFacts
from superblock.reporting.files import report_text
from superblock.reporting.groups import make_group
from superblock.reporting.harnessed import harness_rows
from superblock.reporting.history import histories
from superblock.reporting.metrics import Kind
from superblock.reporting.remembered import remembered
from superblock.reporting.selection import Chosen, conflict, grouped, is_asked, newest, place, recorded
from superblock.reporting.sources import missing, remarks, sources

Groups = Mapping[str, Group]


def analyse(
    facts: Facts,
    config: ReportConfig,
    baseline: Report | None,
    earlier: Sequence[Report] = (),
    without: NoBaseline = "none earlier",
) -> Report:
    """What a report says.

    Args:
        facts: what was collected; runs that are not the newest of their kind are history alone.
        config: which changes count, and what the report is called.
        baseline: what it is compared with.
        earlier: reports made before this one, oldest first; their runs that are gone since stay part of the history.
        without: why there is no baseline, if there is none.

    Raises:
        ValueError: without a run and without a record.
    """
    if not facts.runs and not facts.records:
        raise ValueError("there is nothing to report: neither a run nor a record")
    counted = list(facts.runs) if config.select.all_runs else newest(facts.runs)
    chosen = grouped(counted)
    groups = tuple(map(make_group, chosen))
    current = {group.key: group for group, one in zip(groups, chosen, strict=True) if not one.other}
    effects: dict[Kind, float] = {
        "quality": config.quality_effect, "speed": config.speed_effect, "memory": config.speed_effect,
    }  # fmt: skip
    gone = [
        (run, source)
        for run, source in remembered(earlier, {run.name for run in facts.runs}, current.values())
        if is_asked(run, config.select, max(run.started for run in facts.runs))
    ]
    past = histories(
        [*(run for run, _ in gone), *_of_configurations(facts.runs, chosen)], effects=effects,
        known_until=baseline.time if baseline else None,
    )  # fmt: skip
    before = _newest_of_each(baseline.groups) if baseline else {}
    changes = comparing.compare(before, current, effects=effects) if baseline else ()
    same = comparing.same_runs(before, current)
    alarmed = any(history.alarm for history in past)
    verdict, words = (
        comparing.verdict(changes, past, len(same))
        if baseline or alarmed
        else stages.verdict(list(current.values()), without)
    )
    report = Report(
        name="", title=config.title or _title(groups), time=_time(facts, counted), verdict=verdict, verdict_words=words,
        source=facts.source, baseline=baseline.name if baseline else None,
        no_baseline=None if baseline else without, changes=changes, same_runs=same, histories=past,
        groups=groups,
        probes=probe_rows(facts.records), speed=speed_rows(facts.records), ablations=ablation_rows(facts.records),
        harness=harness_rows(facts.records),
        sources=sources(_named(facts.runs, counted, past), facts.records, [source for _, source in gone]),
        missing=tuple(missing(current, facts, config.select)), problems=(*facts.problems, *remarks(chosen)),
    )  # fmt: skip
    return replace(report, name=config.name or _name(report))


def _of_configurations(runs: Iterable[RunFacts], chosen: Iterable[Chosen]) -> list[RunFacts]:
    """The runs in no conflict with the newest configuration of their place, whenever they were made."""
    wanted = {place(one.runs[0]): recorded(one.runs[0]) for one in chosen if not one.other}
    return [run for run in runs if place(run) in wanted and not conflict(wanted[place(run)], recorded(run))]


def _newest_of_each(groups: Iterable[Group]) -> Groups:
    """Of several configurations of a stage, scale, arm and text the newest, which comes first."""
    found: dict[object, Group] = {}
    for group in groups:
        found.setdefault((group.scale, group.stage, group.arm, group.data_digest), group)
    return {group.key: group for group in found.values()}


def _named(runs: Iterable[RunFacts], counted: Iterable[RunFacts], past: Iterable[History]) -> list[RunFacts]:
    """The runs that some number of the report comes from."""
    names = {run.name for run in counted} | {
        name for history in past for point in history.points for name in point.runs
    }
    return [run for run in runs if run.name in names]


def _time(facts: Facts, counted: Sequence[RunFacts]) -> float:
    runs = [run.ended or run.started for run in counted]
    return max(runs + [record.finished or record.started for record in facts.records])


def _title(groups: Sequence[Group]) -> str:
    """Such as `MVP1 to MVP4 at scale mini`."""
    if not groups:
        return "Benchmarks"
    named = [group.stage.upper() for group in sorted(groups, key=lambda group: (group.superblocks or 0, group.stage))]
    scales = sorted({group.scale for group in groups})
    span = named[0] if named[0] == named[-1] else f"{named[0]} to {named[-1]}"
    return f"{span} at scale {' and '.join(scales)}"


def _name(report: Report) -> str:
    """The scale, the day of the newest run or record, and eight digits of the content, wherever that was read from."""
    scales = "-".join(sorted({group.scale for group in report.groups})) or "benchmarks"
    content = report_text(replace(report, name="", title="", source=""))
    digest = hashlib.sha256(content.encode()).hexdigest()[:8]
    return f"{scales}-{datetime.fromtimestamp(report.time, UTC):%Y-%m-%d}-{digest}"
