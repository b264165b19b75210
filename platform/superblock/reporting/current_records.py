"""Which records of benchmarks a report shows: smoke passes never, unfinished ones only where nothing else is there."""

from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence

from superblock.reporting.benchmarked import ABLATION, PROBES, is_complete, probed, rank, record_name
from superblock.reporting.facts import RecordFacts
from superblock.reporting.harnessed import SCHEMA as HARNESS
from superblock.reporting.harnessed import limit_of

Problem = Callable[[str], None]


def current(records: Iterable[RecordFacts], problem: Problem) -> tuple[RecordFacts, ...]:
    """The newest finished record of each suite, of ablations of each name, of the harness of each model, oldest first.

    A record of the probes holds the tasks and arms that were asked for: of those that it lacks, the next record that has
    them is there too, and `probe_rows` takes each from the first.

    Args:
        problem: is told which smoke passes are left out, which record is not finished, and what only an older one has.
    """
    suites: dict[tuple[str, str], list[RecordFacts]] = defaultdict(list)
    smoke = []
    for record in sorted(records, key=rank, reverse=True):
        if _settings(record).get("quick"):
            smoke.append(record_name(record))
        else:
            suites[record.suite, _kind(record)].append(record)
    if smoke:
        problem(f"Smoke passes (quick=true), so not shown: {', '.join(sorted(smoke))}")
    found: list[RecordFacts] = []
    for like in suites.values():
        shown = list(_probes(like, problem)) if like[0].content["schema"] == PROBES else like[:1]
        _unfinished(like, shown, problem)
        _cases(like, problem)
        found += shown
    return tuple(sorted(found, key=lambda one: (one.started, one.suite, one.name)))


def _kind(record: RecordFacts) -> str:
    """What is told apart within a suite; a part of the harness's examples never stands for all of them."""
    if record.content["schema"] == HARNESS:
        return f"{record.content['run']} {limit_of(record)}"
    return record.name if record.content["schema"] == ABLATION else ""


def _settings(record: RecordFacts) -> Mapping[str, object]:
    known = record.content.get("settings")
    return known if isinstance(known, Mapping) else {}


def _probes(records: Sequence[RecordFacts], problem: Problem) -> Iterator[RecordFacts]:
    """The first record, and of the others those that add a task or an arm."""
    seen: set[tuple[str, str]] = set()
    for record in records:
        more = [pair for pair in probed(record) if pair not in seen]
        if record is records[0] or more:
            yield record
        if seen and more:
            named = ", ".join(f"{task} ({arm})" for task, arm in more)
            problem(f"suite={record.suite}: {named} from {record_name(record)}; {record_name(records[0])} has none")
        seen.update(more)


def _unfinished(like: Sequence[RecordFacts], shown: Sequence[RecordFacts], problem: Problem) -> None:
    """Tells of those that are shown, and of one that would be if it were finished."""
    newest = max(like, key=lambda one: one.started)
    for record in like:
        if not is_complete(record) and record in shown:
            problem(f"The record {record.name} of suite={record.suite} is not finished")
        elif not is_complete(record) and record is newest:
            problem(f"The record {record.name} of suite={record.suite} is not finished; {like[0].name} is shown")


def _cases(like: Sequence[RecordFacts], problem: Problem) -> None:
    """Tells which cases only older records have."""
    here, *older = like
    left = set(here.content.get("cases") or ())
    for record in older:
        if more := [name for name in record.content.get("cases") or () if name not in left]:
            problem(f"suite={here.suite}: {', '.join(more)} only in {record_name(record)}, not in {record_name(here)}")
        left.update(more)
