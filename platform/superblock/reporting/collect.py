"""What was run: read from the runs' folders and from MLflow, and narrowed to what a report is about."""

from collections.abc import Callable, Iterable
from dataclasses import replace

from superblock.config.fields import closest
from superblock.config.report import ReportConfig, SelectConfig
from superblock.reporting.collect_folders import read_folders
from superblock.reporting.collect_records import read_records
from superblock.reporting.collect_store import read_store
from superblock.reporting.facts import Facts, RunFacts
from superblock.reporting.phrases import plural
from superblock.reporting.run_facts import TRAINING, Told, doubts, run_facts
from superblock.reporting.selection import is_asked
from superblock.tracking.runs import INTERRUPTED, runs_root
from superblock.tracking.store import database_path, store_uri, without_password
from superblock.tracking.versions import StoreAway

NAMED = 6
"""Runs named in one line; of more the number is given."""
UNFINISHED = {
    "RUNNING": "Still running", INTERRUPTED: "Interrupted", "FAILED": "Failed", "KILLED": "Stopped", "SCHEDULED": "Not begun",
}  # fmt: skip


def collect(config: ReportConfig, *, say: Callable[[str], None]) -> Facts:
    """Reads every finished run and the newest records that a report is about; `Facts` without runs if there is none.

    What cannot be read, and what was begun and did not finish, is told in `problems`.

    Args:
        say: shows a line.

    Raises:
        ConfigError: if `tracking.uri` is not an address.
    """
    problems: list[str] = []
    told: list[Told] = []
    sources = []
    if config.source in ("auto", "spool"):
        told += read_folders(runs_root(), problems.append)
        sources.append(f"the folders below {runs_root()}/")
        say(f"{plural(len(told), 'run')} in {runs_root()}/")
    if config.source in ("auto", "mlflow"):
        more, place = _from_store(config, told, problems)
        told += more
        if place and (more or config.source == "mlflow"):
            sources.append(f"MLflow at {place}")
            say(f"{plural(len(more), 'run')}{' more' if config.source == 'auto' else ''} in MLflow at {place}")
    runs, others = _chosen(told, config.select, problems)
    records = read_records(config.records, problems.append)
    return Facts(runs, records, " and ".join(sources), tuple(problems), others)


def _from_store(config: ReportConfig, told: Iterable[Told], problems: list[str]) -> tuple[list[Told], str]:
    """The runs that only MLflow has, and where that is; in `auto`, a store that was never made is no problem."""
    uri = store_uri(config.tracking)
    if uri is None:
        return [], ""
    database = database_path(uri)
    place = database.name if database else without_password(uri) or ""
    if config.source == "auto" and database and not database.exists():
        return [], ""
    known = {one.uid for one in told} | {one.mlflow_run_id for one in told if one.mlflow_run_id}
    try:
        stored = read_store(uri, config.tracking.experiment, known, problems.append)
        return [one for one in stored if one.tags.get("suite", TRAINING) == TRAINING], place  # reports lie there too
    except StoreAway as away:
        problems.append(f"MLflow: {away}; what only it has is missing here")
        return [], place


def _chosen(told: Iterable[Told], select: SelectConfig, problems: list[str]) -> tuple[tuple[RunFacts, ...], str]:
    """The finished runs that were asked for, oldest first, or else which there are; of the unfinished it is told that
    they are not counted."""
    found = []
    for one in told:
        try:
            found.append((run_facts(one), one))
        except (ValueError, KeyError, TypeError, AttributeError, OverflowError) as error:
            problems.append(f"{one.name} cannot be understood ({type(error).__name__}: {error})")
    found = [(run, one) for run, one in found if run.suite == TRAINING and run.stage]
    found.sort(key=lambda pair: (pair[0].started, pair[0].name))
    finished = [run for run, _ in found if run.status == "FINISHED"]
    scale = select.scale or (finished[-1].scale if finished else None)
    asked = replace(select, scale=scale)
    newest = max((run.started for run in finished if is_asked(run, asked, None)), default=None)
    found = [(run, one) for run, one in found if is_asked(run, asked, newest)]
    for status in dict.fromkeys(run.status for run, _ in found if run.status != "FINISHED"):
        names = [run.name for run, _ in found if run.status == status]
        problems.append(f"{UNFINISHED.get(status, status)}, so not counted: {_names(names)}")
    counted = [(run, one) for run, one in found if run.status == "FINISHED"]
    problems += [doubt for _, one in counted for doubt in doubts(one)]
    return tuple(run for run, _ in counted), "" if counted else _others(finished, select)


def _others(finished: list[RunFacts], select: SelectConfig) -> str:
    """Which finished runs there are, where none is what was asked for; empty if there are none at all."""
    if not finished:
        return ""
    hints, words = [], []
    for name, key, asked in (("scale", "scale", [select.scale] if select.scale else []), ("stages", "stage", select.stages),
                             ("arms", "arm", select.arms), ("seeds", "seed", select.seeds)):  # fmt: skip
        there = sorted({str(getattr(run, key)) for run in finished}, key=lambda value: (len(value), value))
        absent = [value for value in map(str, asked) if value not in there]
        hints += [close for value in absent for close in closest(value, there) if key != "seed"]
        if asked or key in ("scale", "stage"):
            words.append(f"{name} {', '.join(there)}")
    return f"there are finished runs of {'; '.join(words)}" + (
        f" (did you mean {' or '.join(hints)}?)" if hints else ""
    )


def _names(names: list[str]) -> str:
    more = f" and {len(names) - NAMED} more" if len(names) > NAMED else ""
    return ", ".join(names[:NAMED]) + more
