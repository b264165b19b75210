"""The report command: collects, compares, renders, files and records one report, or arranges that it comes by itself.

Statuses of the process:
    0   the report is written, or was up to date; or nothing is due, or a schedule is arranged
    1   the training of `schedule.before` failed; the report is written, and says so. A gate that failed is no such failure
    2   a setting cannot work, or another process has been making a report in the same folder for too long
    3   something became worse, or a history raised an alarm; only with `fail_on=regression`
    4   nothing to report
130     interrupted; there is either the old report or the new one
"""

import shlex
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import replace
from datetime import datetime
from pathlib import Path

from superblock.config.fields import ConfigError
from superblock.config.report import RECORDS, ReportConfig
from superblock.config.typed import typed
from superblock.reporting.content import NoBaseline, Report
from superblock.reporting.facts import Facts
from superblock.reporting.lock import Busy, only_one
from superblock.reporting.phrases import plural
from superblock.reporting.recorded import record
from superblock.reporting.schedule import due
from superblock.reporting.schedule.arrange import arrange, folder_of, remove, state_file
from superblock.reporting.schedule.cron import next_times, parse
from superblock.reporting.shelf import Shelf, made_folder
from superblock.tracking.store import store_uri

OK, TRAINING_FAILED, CONFIGURATION, REGRESSION, NOTHING = 0, 1, 2, 3, 4
GATE_FAILED = 3
"""Status of a training whose stage was not promoted: it was trained and tested, so there is something to report."""
LONGEST_WAIT = 60.0
"""Seconds to wait for another report in the same folder; a report takes less."""
Say = Callable[[str], None]
Clock = Callable[[], datetime]


def say_line(text: str) -> None:
    """Prints a line at once."""
    print(text, flush=True)


def run(config: ReportConfig, *, say: Say = say_line, now: Clock = datetime.now) -> int:
    """Makes a report, or arranges, removes or obeys a schedule.

    Args:
        config: what to report, compare and repeat.
        say: shows a line.
        now: the clock on the wall.

    Returns:
        Status of the process, see above.

    Raises:
        ConfigError: for a setting that cannot work.
    """
    schedule = config.schedule
    if schedule.remove:
        return remove(config, say=say)
    if schedule.cron is None:
        return make(config, say=say)
    return if_due(config, say=say, now=now) if schedule.due else arrange(config, say=say, now=now)


def if_due(config: ReportConfig, *, say: Say, now: Clock) -> int:
    """Makes one report if a time of the schedule has come since the last one, however many times have.

    A report that fails counts as made, and waits for the next time; one that was killed is made again.
    """
    assert config.schedule.cron is not None
    made_folder(config.output)
    cron = parse(config.schedule.cron)
    try:
        with only_one(folder_of(config) / f".{config.schedule.name}.lock", wait=0, say=say):
            began = now()
            if (found := due.find(cron, state_file(config), began)) is None:
                say(f"nothing is due; next time {next_times(cron, began, 1)[0]:%a %Y-%m-%d %H:%M}")
                return OK
            say(found.words())
            try:
                status = make(config, say=say)
            except Exception:
                due.note(state_file(config), began, cron)
                raise
            due.note(state_file(config), began, cron)
            return status
    except Busy as busy:
        say(f"nothing to do: {busy}, and makes this report")
        return OK


def make(config: ReportConfig, *, say: Say) -> int:
    """Trains what comes before the report, if anything does, and makes the report."""
    check_sources(config)
    new = not Path(config.output).expanduser().exists()
    output = made_folder(config.output)
    ended = train_before(config.schedule.before, say=say) if config.schedule.before else OK
    problems = [in_words(ended, config.schedule.before)] if ended and config.schedule.before else []
    say(f"report: {Path.cwd()} -> {output}")
    try:
        with only_one(output / ".lock", wait=LONGEST_WAIT, say=say):
            report = write(config, Shelf(output), problems, say=say)
    except Busy as busy:
        raise ConfigError(f"output={config.output}: {busy}; wait for it, or give another folder") from None
    if report is None and new:
        with suppress(OSError):
            (output / ".lock").unlink()
            output.rmdir()
    if report is not None and config.fail_on == "regression" and became_worse(report):
        return REGRESSION
    if ended not in (OK, GATE_FAILED):
        return TRAINING_FAILED
    return OK if report is not None else NOTHING


def check_sources(config: ReportConfig) -> None:
    """Refuses what cannot be read before anything is trained or written.

    Raises:
        ConfigError: naming the key.
    """
    store_uri(config.tracking)
    for place in config.records:
        if place != RECORDS and not Path(place).exists():
            raise ConfigError(f"records=[{place}]: there is no such file or folder")


def became_worse(report: Report) -> bool:
    """Whether a metric regressed beside the baseline, or in its history."""
    return report.verdict == "regressed" or any(history.alarm for history in report.histories)


def write(config: ReportConfig, shelf: Shelf, problems: list[str], *, say: Say) -> Report | None:
    """From runs to pages; None if there is nothing to report.

    Args:
        config: which runs, compared with what.
        shelf: where reports lie; the caller holds its lock.
        problems: what went wrong before, in words.
        say: shows a line.
    """
    from superblock.reporting.analysis import analyse
    from superblock.reporting.collect import collect

    shelf.tidy()
    baseline = baseline_of(config, shelf, problems)
    with phase("collected", say) as done:
        facts = collect(config, say=say)
        done(f"{plural(len(facts.runs), 'run')}, {plural(len(facts.records), 'record')} from {facts.source}")
    if not facts.runs and not facts.records:
        for problem in (*problems, *facts.problems):
            say(f"  {problem}")
        say(f"nothing to report: no finished run{_selected(config)}")
        say(facts.others or f"Next\n  {typed('run stage=mvp1 scale=mini')}")
        return None
    asked = (f"No finished run{_selected(config)}: {facts.others}",) if facts.others else ()
    facts = replace(facts, problems=(*problems, *asked, *facts.problems))
    with phase("compared", say) as done:
        report = compare_with(facts, config, shelf, baseline, analyse)
        done(f"with {report.baseline}" if report.baseline else "no baseline")
    keep_baseline(report, config, shelf)
    changed = file(report, config, shelf, say)
    if config.log:
        record(report, shelf.folder / report.name, config.tracking, say=say)
    conclude(report, config, shelf, changed, say)
    return report


def baseline_of(config: ReportConfig, shelf: Shelf, problems: list[str]) -> Report | None:
    """The report to compare with; a pinned one that is gone is a problem, and no reason to stop.

    Raises:
        ConfigError: if `baseline` names a report that does not exist.
    """
    if config.baseline == "none":
        return None
    if config.baseline != "auto":
        return shelf.named(config.baseline)
    if (name := shelf.baseline()) is None:
        return None
    if (report := shelf.find(name)) is None:
        problems.append(f"The pinned baseline {name} is gone or cannot be read, so nothing is compared with it.")
    return report


def compare_with(
    facts: Facts, config: ReportConfig, shelf: Shelf, baseline: Report | None, analyse: Callable[..., Report]
) -> Report:
    """The report beside its baseline and the earlier ones.

    Where the pinned baseline is about the same runs, it is this report, made before: what it was compared with serves
    again, so that a report does not change by becoming the baseline.
    """
    reports, without = shelf.all(), why_none(config, shelf)
    report = analyse(facts, config, baseline, reports, without)
    if config.baseline == "auto" and baseline is not None and same_runs(report, baseline):
        own = baseline.baseline if baseline.baseline != baseline.name else None
        baseline = shelf.find(own) if own else None
        without = "gone" if own else "none earlier"
    older = [other for other in reports if other.time < report.time]
    if older != reports or report.baseline != (baseline and baseline.name):
        report = analyse(facts, config, baseline, older, without)
    return report


def why_none(config: ReportConfig, shelf: Shelf) -> NoBaseline:
    """Why there is no baseline, where there is none."""
    if config.baseline == "none":
        return "not asked for"
    return "none earlier" if shelf.baseline() is None else "gone"


def keep_baseline(report: Report, config: ReportConfig, shelf: Shelf) -> None:
    """Refuses a report that would take the place of the pinned one: what later reports are compared with would be gone.

    Raises:
        ConfigError: if `name` is that of the pinned report, and that is about other runs.
    """
    if config.name is None or config.name != shelf.baseline():
        return
    pinned = shelf.find(config.name)
    if pinned is None and not config.pin:
        raise ConfigError(
            f"name={config.name}: is the name of the pinned baseline, which is gone; leave name out, or add pin=true"
        )
    if pinned is not None and not same_runs(report, pinned):
        raise ConfigError(
            f"name={config.name}: is the pinned baseline, which is about other runs; leave name out, or choose another"
        )


def same_runs(one: Report, other: Report) -> bool:
    """Whether two reports are about the same runs and records; what each remembers of older ones does not count."""

    def about(report: Report) -> set[str]:
        runs = {run for group in report.groups for run in group.runs}
        return runs | {source.name for source in report.sources if source.kind == "record"}

    return about(one) == about(other)


def file(report: Report, config: ReportConfig, shelf: Shelf, say: Say) -> bool:
    """Renders a report, puts it on its shelf and brings the index up to date; whether the report became different."""
    from superblock.reporting.files import write_report
    from superblock.reporting.pages import render, render_index

    def fill(folder: Path) -> None:
        write_report(report, folder)
        render(report, folder)

    with phase("rendered", say) as done:
        changed = shelf.put(report.name, fill)
        done(report.name)
    if config.pin:
        shelf.pin(report.name)
    shelf.point_latest(report)
    render_index(shelf.folder)
    return changed


def conclude(report: Report, config: ReportConfig, shelf: Shelf, changed: bool, say: Say) -> None:
    """What came out, where it is, and what to type next."""
    for problem in report.problems:
        say(f"problem: {problem}")
    alarms = [history.words for history in report.histories if history.alarm]
    for words in alarms:
        say(f"alarm: {words}")
    say(f"\n{report.verdict}: {report.verdict_words}")
    say(f"{shelf.folder / report.name / 'index.html'}{'' if changed else '  (up to date)'}")
    if config.pin:
        say(f"pinned: later reports are compared with {report.name}")
    say(f"Next\n  {typed('ui')}")
    if not config.pin and shelf.baseline() is None:
        say(f"  {typed('report pin=true')}    # compare later reports with this one")


def train_before(text: str, *, say: Say) -> int:
    """Runs `superblock run` with these settings in a process of its own, and returns its status."""
    words = shlex.split(text)
    if not {"--multirun", "-m"} & set(words):
        words.insert(0, "--multirun")
    say(f"training first: superblock run {shlex.join(words)}")
    status = subprocess.run([sys.executable, "-m", "superblock.cli", "run", *words], check=False).returncode
    if status in (130, -2):
        raise KeyboardInterrupt
    return status


def in_words(status: int, text: str) -> str:
    """What went wrong in the training before a report, in a sentence."""
    if status == GATE_FAILED:
        return f"A stage trained before this report was not promoted, because a gate failed: superblock run {text}"
    return f"The training before this report ended with status {status}: superblock run {text}"


@contextmanager
def phase(name: str, say: Say) -> Iterator[Callable[[str], None]]:
    """A line with the time it took, when it is over."""
    began = time.monotonic()

    def done(what: str) -> None:
        say(f"{name:<10} {what}  ({time.monotonic() - began:.1f} s)")

    yield done


def _selected(config: ReportConfig) -> str:
    select = config.select
    words = [f"scale {select.scale}"] if select.scale else []
    words += [
        f"{name} {', '.join(map(str, values))}"
        for name in ("stages", "arms", "seeds")
        if (values := getattr(select, name))
    ]
    return f" of {'; '.join(words)}" if words else " in this folder"
