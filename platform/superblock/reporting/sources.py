"""Where every number comes from, what is missing, and what a reader should know beside."""

from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence

from superblock.config.report import SelectConfig
from superblock.config.typed import stored
from superblock.reporting.benchmarked import record_name
from superblock.reporting.content import MINIMUM_SEEDS, Group, Source
from superblock.reporting.facts import Facts, RecordFacts, RunFacts
from superblock.reporting.selection import Chosen

STAGES = ("mvp1", "mvp2", "mvp3", "mvp4")
SUITES = {
    "speed": "speed beside transformers' Qwen3-Next",
    "probes": "architecture probes",
    "growth": "growing beside training from scratch",
    "exits": "training of the exits",
}
"""Suites whose records a report shows, in words."""


def sources(runs: Iterable[RunFacts], records: Iterable[RecordFacts], gone: Iterable[Source]) -> tuple[Source, ...]:
    """One for every run and record, runs first, oldest first.

    Args:
        gone: runs that only earlier reports know.
    """
    found = sorted((*gone, *map(_of_run, runs)), key=lambda source: (source.started, source.name))
    return (*found, *map(_of_record, records))


def _of_run(run: RunFacts) -> Source:
    path = (
        f"/#/experiments/{run.experiment_id}/runs/{run.mlflow_run_id}"
        if run.mlflow_run_id and run.experiment_id
        else None
    )
    return Source(
        run.name, "run", run.command, run.commit, run.dirty, run.fingerprint, run.hardware, run.machine, run.data_digest,
        run.started, path,
    )  # fmt: skip


def _of_record(record: RecordFacts) -> Source:
    provenance = record.content.get("provenance") or {}
    dirty = bool((provenance.get("code") or {}).get("dirty"))
    texts = {str(run["data"]) for run in _runs(record) if run.get("data")}
    return Source(
        record_name(record), "record", str(provenance.get("command", "")), record.commit, dirty,
        str(record.content.get("fingerprint", "")), record.hardware, record.machine, ", ".join(sorted(texts)), record.started,
        None,
    )  # fmt: skip


def _runs(record: RecordFacts) -> list[Mapping[str, object]]:
    known = record.content.get("runs")
    return [run for run in known.values() if isinstance(run, Mapping)] if isinstance(known, Mapping) else []


def missing(groups: Mapping[str, Group], facts: Facts, select: SelectConfig) -> Iterator[str]:
    """What nothing measured, each with the command that would.

    Args:
        groups: of the newest configurations.
        facts: what was collected.
        select: what was asked for.
    """
    scale = next((group.scale for group in groups.values()), select.scale or "mini")
    here = {group.stage for group in groups.values()}
    absent = [stage for stage in select.stages or STAGES if stage not in here]
    if absent and len(absent) == len(STAGES):
        yield f"stages: no finished run: {_run('all', scale, select.seeds or range(1, MINIMUM_SEEDS + 1))}"
    else:
        for stage in absent:
            yield f"{stage} at {scale}: no finished run: {_run(stage, scale, select.seeds or range(1, MINIMUM_SEEDS + 1))}"
    yield from _seeds_missing(groups, select)
    for group in groups.values():
        yield from _of_group(group)
    if unread := [
        key for key, group in groups.items() if "test/bits_per_byte" in group.measures and not group.positions
    ]:
        yield f"{', '.join(unread)}: quality by context and by package: {stored('benchmark suite=language')}"
    there = {record.suite for record in facts.records}
    for suite, words in SUITES.items():
        if suite not in there:
            yield f"{words}: no record: {stored(f'benchmark suite={suite}')}"


def _seeds_missing(groups: Mapping[str, Group], select: SelectConfig) -> Iterator[str]:
    """Seeds that a verdict needs, in one line for all groups that lack the same."""
    lacking: dict[tuple[int, ...], list[Group]] = defaultdict(list)
    for group in groups.values():
        seeds = _seeds(group)
        if len(seeds) < MINIMUM_SEEDS and not select.seeds:
            more = [seed for seed in range(1, MINIMUM_SEEDS + max(seeds, default=0) + 1) if seed not in seeds]
            lacking[tuple(more[: MINIMUM_SEEDS - len(seeds)])].append(group)
    for seeds_here, those in lacking.items():
        stages = [group.stage for group in those]
        names = ", ".join(group.key for group in those)
        command = _run("all" if tuple(stages) == STAGES else ",".join(stages), those[0].scale, seeds_here)
        usual = all(group.arm == "default" for group in those)
        yield f"{names}: fewer than {MINIMUM_SEEDS} seeds: {command}{'' if usual else ' with the settings of the arm'}"


def _of_group(group: Group) -> Iterator[str]:
    tested = (
        {one.run for one in group.measures["test/bits_per_byte"].values}
        if "test/bits_per_byte" in group.measures
        else set()
    )
    if untested := [run for run in group.runs if run not in tested]:
        yield f"{group.key}: no test of {_some(untested)}; it comes with a training with evaluation.test=true"
    for run in group.runs_without_statements():
        yield f"{group.key}: gates of {run}: {stored(f'run resume={run}')}"
    if group.sample is None:
        yield f"{group.key}: samples of text; they come with a training with evaluation.samples above 0"


def _seeds(group: Group) -> set[int]:
    return {one.seed for measure in group.measures.values() for one in measure.values}


def _run(stage: str, scale: str, seeds: Iterable[int]) -> str:
    many = "" if stage == "all" else "--multirun "
    return stored(f"run {many}stage={stage} scale={scale} seed={','.join(map(str, seeds))}")


def remarks(chosen: Sequence[Chosen]) -> Iterator[str]:
    """What makes runs less comparable than they look."""
    runs = [run for one in chosen for run in one.runs]
    commits = Counter(run.commit[:12] or "no commit" for run in runs)
    if len(commits) > 1:
        found = ", ".join(
            f"{commit} ({count} runs)" if count > 1 else f"{commit} (1 run)" for commit, count in commits.most_common()
        )
        yield f"The runs were made with {len(commits)} commits: {found}"
    if dirty := [run.name for run in runs if run.dirty]:
        yield f"Made with uncommitted changes: {_some(dirty)}"
    for one in chosen:
        machines = sorted({run.machine or "unknown" for run in one.runs})
        if len(machines) > 1:
            yield f"{one.key}: runs on several machines ({', '.join(machines)}), so it has no speed"
        if one.other:
            yield f"{one.key}: other settings than the newest runs of its stage ({one.other})"
    texts: dict[str, set[str]] = defaultdict(set)
    for run in runs:
        texts[run.data_digest or "unknown"].add(run.stage)
    if len(texts) > 1:
        found = "; ".join(f"{digest} ({', '.join(sorted(stages))})" for digest, stages in sorted(texts.items()))
        yield f"The runs read {len(texts)} texts, whose bits per byte do not compare: {found}"


def _some(names: Sequence[str], most: int = 6) -> str:
    return ", ".join(names[:most]) + (f" and {len(names) - most} more" if len(names) > most else "")
