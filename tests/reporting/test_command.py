"""The report command from runs to pages, its statuses, and what it does when it is called again."""

import shutil
import subprocess
import sys
from collections.abc import Callable
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
from synthetic_runs import BEGIN, DAY, write_pipeline, write_probes

from superblock.config.fields import ConfigError
from superblock.reporting import command, pages
from superblock.reporting.content import Report
from superblock.reporting.lock import only_one
from superblock.reporting.pages.blocks import Missing
from superblock.reporting.pages.changes import changes
from superblock.reporting.schedule import due
from superblock.reporting.schedule.arrange import state_file
from superblock.reporting.shelf import Shelf
from superblock.staging.pipeline import REFUSED

MONDAY = datetime(2026, 11, 23, 6, 0)
Reporting = Callable[..., tuple[int, list[str]]]


@pytest.fixture
def runs(tmp_path: Path) -> Path:
    """Two stages with three seeds, one week."""
    write_pipeline(tmp_path / "runs", stages=("mvp1", "mvp2"), points=20)
    return tmp_path / "runs"


@pytest.fixture
def plain(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Pages of one line instead of pictures; the names of what was rendered."""
    rendered: list[str] = []

    def render(report: Report, folder: Path) -> None:
        rendered.append(report.name)
        (folder / "index.html").write_text(f"{report.verdict}: {report.verdict_words}")
        (folder / "report.md").write_text(report.title)

    monkeypatch.setattr(pages, "render", render)
    return rendered


@pytest.fixture
def reporting(compose: Callable[..., Any]) -> Reporting:
    """Types `report <words>` without MLflow; the status and what was said."""

    def make(*words: str, now: datetime = MONDAY) -> tuple[int, list[str]]:
        said: list[str] = []
        log = () if any(word.startswith("log=") for word in words) else ("log=false",)
        status = command.run(compose("report", *log, *words), say=said.append, now=lambda: now)
        return status, said

    return make


def contents(folder: Path) -> dict[str, tuple[int, bytes]]:
    """Every file that a reader sees, with its number on the disk."""
    files = (path for path in folder.rglob("*") if path.is_file() and not path.name.startswith("."))
    return {path.relative_to(folder).as_posix(): (path.stat().st_ino, path.read_bytes()) for path in files}


def newest() -> Report:
    return Shelf(Path("reports")).all()[-1]


def test_from_runs_to_pages_and_again(reporting: Reporting, runs: Path) -> None:
    write_probes(Path("runs/benchmarks/probes/probes.json"))
    status, said = reporting()
    assert status == 0
    name = newest().name
    assert {path.name for path in (Path("reports") / name).iterdir()} >= {"index.html", "report.md", "report.json"}
    assert "<svg" in (Path("reports") / name / "index.html").read_text()
    assert name in Path("reports/index.html").read_text() and Path("reports/latest/index.html").exists()
    assert said[0].startswith("report: ") and said[0].endswith("-> reports")
    assert any(line.startswith("collected  6 runs, 1 record from") for line in said)
    assert f"reports/{name}/index.html" in said
    assert any(line.lstrip().startswith(f"{newest().verdict}: ") for line in said)
    before = contents(Path("reports") / name)
    status, said = reporting()
    assert status == 0 and f"reports/{name}/index.html  (up to date)" in said
    assert contents(Path("reports") / name) == before  # not even written
    assert [path.name for path in Path("reports").iterdir() if path.is_dir() and not path.is_symlink()] == [name]


def test_the_latest_report_is_the_one_just_made(reporting: Reporting, runs: Path, plain: list[str]) -> None:
    reporting()
    first = newest().name
    write_probes(Path("runs/benchmarks/probes/probes.json"), started=BEGIN + 7 * DAY)
    reporting()
    second = newest()  # of the same runs, and of a record that is newer
    assert second.name != first and second.time > BEGIN + 7 * DAY
    assert Path("reports/latest").readlink().name == second.name
    for words in (("title=a",), ("title=b",), ("name=weekly",)):  # nothing is newer in these
        reporting(*words)
        assert Path("reports/latest").readlink().name == plain[-1]
    reporting("records=[]")  # of the runs alone, which are older
    assert Path("reports/latest").readlink().name == "weekly" and plain[-1] == first


def test_becoming_the_baseline_changes_nothing_but_the_index(
    reporting: Reporting, runs: Path, plain: list[str]
) -> None:
    reporting()
    before = contents(Path("reports/latest"))
    for _ in range(2):
        assert reporting("pin=true")[0] == 0
        assert contents(Path("reports/latest")) == before
    assert len(Shelf(Path("reports")).all()) == 1 and newest().baseline is None
    assert newest().no_baseline == "none earlier"  # which is true of a report that is the baseline itself


def test_why_nothing_is_compared(reporting: Reporting, runs: Path, plain: list[str]) -> None:
    def made(*words: str) -> Report:
        reporting(*words)
        report = Shelf(Path("reports")).find(plain[-1])
        assert report
        return report

    def told(report: Report) -> str:
        [block] = changes(report).blocks
        assert isinstance(block, Missing) and "is pinned" not in block.text  # it may be this very report
        return f"{block.text} {block.command}"

    first = made("pin=true")
    assert "No earlier report is the baseline" in told(first) and told(first).endswith("pin=true")
    write_pipeline(runs, stages=("mvp1", "mvp2"), points=20, started=BEGIN + 7 * DAY)
    found = made("baseline=none")
    assert (found.no_baseline, found.baseline) == ("not asked for", None)
    assert found.verdict_words.endswith("; compared with no baseline, as asked for.")
    assert "not asked for (baseline=none)" in told(found) and told(found).endswith(" report")
    found = made("pin=true")
    assert (found.no_baseline, found.baseline) == (None, first.name)
    shutil.rmtree(Path("reports") / first.name)
    found = made()  # of the runs of the pinned report, whose own baseline is gone
    assert (found.no_baseline, found.baseline) == ("gone", None)
    assert "The baseline is gone or cannot be read" in told(found) and told(found).endswith("pin=true")
    Shelf(Path("reports")).pin("lost")
    found = made()
    assert found.no_baseline == "gone" and found.verdict_words.endswith("; the baseline is gone.")


def test_a_regression_is_a_status_where_asked_for(reporting: Reporting, runs: Path, plain: list[str]) -> None:
    reporting("pin=true")
    baseline = newest().name
    write_pipeline(runs, stages=("mvp1", "mvp2"), points=20, started=BEGIN + 7 * DAY, quality=1.03)
    assert reporting()[0] == 0
    status, said = reporting("fail_on=regression")
    assert status == command.REGRESSION
    assert newest().verdict == "regressed" and newest().baseline == baseline
    assert any(line.startswith("\nregressed: ") for line in said)
    assert reporting("fail_on=regression", "baseline=none")[0] == 0
    assert reporting("fail_on=regression", f"baseline={newest().name}", "name=itself")[0] == 0
    before = contents(Path("reports") / newest().name)
    assert (
        reporting("pin=true", "fail_on=regression")[0] == command.REGRESSION
    )  # what it was compared with serves again
    assert contents(Path("reports") / newest().name) == before


def test_an_alarm_of_a_history_is_one_too(
    compose: Callable[..., Any], monkeypatch: pytest.MonkeyPatch, runs: Path, plain: list[str]
) -> None:
    from dataclasses import replace

    from superblock.reporting import analysis
    from superblock.reporting.content import History

    analyse = analysis.analyse

    def alarmed(*given: Any, **named: Any) -> Report:
        alarm = History("g", "m", "x", (), None, None, True, "slower three times in a row")
        return replace(analyse(*given, **named), verdict="unchanged", histories=(alarm,))

    monkeypatch.setattr(analysis, "analyse", alarmed)
    said: list[str] = []
    config = compose("report", "log=false", "fail_on=regression")
    assert command.run(config, say=said.append) == command.REGRESSION
    assert "alarm: slower three times in a row" in said


def test_a_pinned_report_that_is_gone_is_a_problem(reporting: Reporting, runs: Path, plain: list[str]) -> None:
    Path("reports").mkdir()
    Shelf(Path("reports")).pin("lost")
    status, said = reporting()
    assert status == 0 and newest().baseline is None
    assert any(line.startswith("problem: The pinned baseline lost is gone") for line in said)
    with pytest.raises(ConfigError, match="baseline=lost: "):
        reporting("baseline=lost")


def test_nothing_to_report(reporting: Reporting, tmp_path: Path) -> None:
    status, said = reporting("select.scale=tiny", "select.stages=[mvp1]")
    assert status == command.NOTHING
    assert "nothing to report: no finished run of scale tiny; stages mvp1" in said
    assert said[-1] == "Next\n  superblock run stage=mvp1 scale=mini"
    assert not (tmp_path / "reports").exists()


def test_a_selection_of_nothing_names_what_there_is(reporting: Reporting, runs: Path, plain: list[str]) -> None:
    status, said = reporting("select.scale=mni")
    assert status == command.NOTHING and "stages mvp1, mvp2 (did you mean mini?)" in said[-1]
    assert not any("stage=mvp1" in line for line in said)
    write_probes(Path("runs/benchmarks/probes/probes.json"))
    status, said = reporting("select.scale=mni")
    assert status == command.OK
    assert any(line.startswith("problem: No finished run of scale mni: there are finished runs") for line in said)


@pytest.mark.parametrize(
    ("words", "error"),
    [
        (("records=[nope]",), r"records=\[nope\]: there is no such file or folder"),
        (("source=mlflow", "tracking=none"), "source=mlflow: needs a store to read"),
        (
            ("tracking.uri=sqlite:///nowhere/x.db",),
            "tracking.uri=sqlite:///nowhere/x.db: there is no folder .*/nowhere",
        ),
    ],
)
def test_what_cannot_be_read_is_refused_before_anything_is_written(
    reporting: Reporting, runs: Path, plain: list[str], words: tuple[str, ...], error: str
) -> None:
    before = sorted(Path().rglob("*"))
    with pytest.raises(ConfigError, match=error):
        reporting("log=true", *words)
    assert sorted(Path().rglob("*")) == before and plain == []


def test_a_name_that_holds_something_else(reporting: Reporting, runs: Path, plain: list[str]) -> None:
    Path("reports/records").mkdir(parents=True)
    with pytest.raises(ConfigError, match="name=records: "):
        reporting("name=records")
    assert reporting("name=weekly")[0] == 0 and Path("reports/weekly/report.json").exists()


@pytest.mark.parametrize("name", ["index.html", "index.md", "baseline.json", "latest", "schedule"])
def test_a_name_that_means_something_else(reporting: Reporting, runs: Path, plain: list[str], name: str) -> None:
    with pytest.raises(ConfigError, match=f"name={name}: is taken"):
        reporting(f"name={name}")
    assert not Path("reports").exists()


@pytest.mark.parametrize("words", [(), ("schedule.cron=@daily",), ("schedule.cron=@daily", "schedule.due=true")])
@pytest.mark.parametrize("output", ["mine", "mine/below"])
def test_a_file_where_the_reports_should_go(
    reporting: Reporting, runs: Path, plain: list[str], words: tuple[str, ...], output: str
) -> None:
    Path("mine").write_text("notes")
    with pytest.raises(ConfigError, match=f"output={output}: cannot be a folder"):
        reporting(f"output={output}", *words)
    assert Path("mine").read_text() == "notes" and plain == []


def test_a_fixed_name_never_replaces_the_baseline(reporting: Reporting, runs: Path, plain: list[str]) -> None:
    reporting("name=weekly", "pin=true")
    assert reporting("name=weekly")[0] == 0  # of the same runs
    pinned = contents(Path("reports/weekly"))
    write_pipeline(runs, stages=("mvp1", "mvp2"), points=20, started=BEGIN + 7 * DAY, quality=1.05)
    for words in ((), ("pin=true",), ("baseline=none",)):
        with pytest.raises(ConfigError, match="name=weekly: is the pinned baseline, which is about other runs"):
            reporting("name=weekly", "fail_on=regression", *words)
        assert contents(Path("reports/weekly")) == pinned
    for _ in range(2):
        assert reporting("name=second", "fail_on=regression")[0] == command.REGRESSION
    with pytest.raises(ConfigError, match="baseline=second: is what this report is called itself"):
        reporting("name=second", "baseline=second")


def test_a_fixed_name_becomes_a_lost_baseline_only_by_pinning(
    reporting: Reporting, runs: Path, plain: list[str]
) -> None:
    Path("reports").mkdir()
    Shelf(Path("reports")).pin("weekly")
    with pytest.raises(ConfigError, match="name=weekly: is the name of the pinned baseline, which is gone"):
        reporting("name=weekly")
    assert reporting("name=weekly", "pin=true")[0] == 0 and newest().baseline is None


def test_while_another_process_reports(
    reporting: Reporting, runs: Path, plain: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(command, "LONGEST_WAIT", 0.1)
    with (
        only_one(Path("reports/.lock"), wait=0, say=print),
        pytest.raises(ConfigError, match=r"output=reports: process \d+ on"),
    ):
        reporting()
    assert plain == [] and reporting()[0] == 0


def test_killed_while_it_renders(
    reporting: Reporting, runs: Path, plain: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    reporting("name=weekly")
    before = contents(Path("reports/weekly"))
    write_pipeline(runs, stages=("mvp1",), points=20, started=BEGIN + 7 * DAY)

    def interrupt(report: Report, folder: Path) -> None:
        (folder / "index.html").write_text("half")
        raise KeyboardInterrupt

    with monkeypatch.context() as patched, pytest.raises(KeyboardInterrupt):
        patched.setattr(pages, "render", interrupt)
        reporting("name=weekly")
    assert contents(Path("reports/weekly")) == before
    assert reporting("name=weekly")[0] == 0
    assert not list(Path("reports").glob(".new-*")) and contents(Path("reports/weekly")) != before


@pytest.mark.parametrize(("ended", "status"), [(0, 0), (1, 1), (2, 1), (3, 0)])
def test_training_first(
    reporting: Reporting, runs: Path, plain: list[str], monkeypatch: pytest.MonkeyPatch, ended: int, status: int
) -> None:
    started: list[list[str]] = []

    def start(words: list[str], check: bool) -> "subprocess.CompletedProcess[bytes]":
        started.append(words)
        return subprocess.CompletedProcess(words, ended)

    monkeypatch.setattr(command.subprocess, "run", start)
    got, _ = reporting("schedule.before=stage=mvp1 seed=1,2 'tracking.arm=my arm'", "fail_on=regression")
    own = [sys.executable, "-m", "superblock.cli", "run", "--multirun", "stage=mvp1", "seed=1,2", "tracking.arm=my arm"]
    assert (got, started) == (status, [own])
    told = [problem for problem in newest().problems if problem.endswith("tracking.arm=my arm'")]
    words = "because a gate failed" if ended == REFUSED else f"status {ended}"
    assert [words in problem for problem in told] == ([True] if ended else [])


@pytest.mark.parametrize("ended", [0, 1, 3])
def test_a_regression_is_told_whatever_the_training_said(
    reporting: Reporting, runs: Path, plain: list[str], monkeypatch: pytest.MonkeyPatch, ended: int
) -> None:
    reporting("pin=true")
    write_pipeline(runs, stages=("mvp1", "mvp2"), points=20, started=BEGIN + 7 * DAY, quality=1.03)
    monkeypatch.setattr(command, "train_before", lambda text, say: ended)
    words = ("schedule.before=stage=mvp1",)
    assert reporting("fail_on=regression", *words)[0] == command.REGRESSION
    assert reporting(*words)[0] == (command.TRAINING_FAILED if ended == 1 else 0)
    assert reporting("select.scale=tiny", *words)[0] == (command.TRAINING_FAILED if ended == 1 else command.NOTHING)


def test_a_training_that_is_refused(
    reporting: Reporting, runs: Path, plain: list[str], capfd: pytest.CaptureFixture[str]
) -> None:
    assert reporting("schedule.before=stage=mvp9")[0] == command.TRAINING_FAILED
    assert "stage=mvp9: must be one of" in capfd.readouterr().err


def test_only_when_due_and_once(reporting: Reporting, runs: Path, plain: list[str]) -> None:
    words = ("schedule.cron=0 6 * * 1", "schedule.due=true")
    assert reporting(*words, now=MONDAY)[1][0] == "due since 2026-11-23 06:00"
    assert len(plain) == 1
    for later in (timedelta(minutes=7), timedelta(days=6, hours=23)):
        assert reporting(*words, now=MONDAY + later) == (0, ["nothing is due; next time Mon 2026-11-30 06:00"])
    status, said = reporting(*words, now=MONDAY + timedelta(days=15))
    assert status == 0 and said[0] == "due since 2026-12-07 06:00; 1 earlier time was missed, this one report makes up"
    assert len(plain) == 2
    assert reporting(*words, now=MONDAY + timedelta(days=15, hours=1))[1][0].startswith("nothing is due")


@pytest.mark.parametrize(
    ("error", "again"), [(ConfigError("no"), False), (OSError("full"), False), (KeyboardInterrupt(), True)]
)
def test_a_failure_waits_for_the_next_time_and_a_killed_one_is_made_again(
    reporting: Reporting, runs: Path, monkeypatch: pytest.MonkeyPatch, error: BaseException, again: bool
) -> None:
    def fail(*given: Any, **named: Any) -> int:
        raise error

    words = ("schedule.cron=@daily", "schedule.due=true", "schedule.name=mine")
    with monkeypatch.context() as patched, pytest.raises(type(error)):
        patched.setattr(command, "make", fail)
        reporting(*words)
    monkeypatch.setattr(command, "make", lambda config, say: 4)
    assert reporting(*words, now=MONDAY + timedelta(hours=1))[0] == (4 if again else 0)


def test_a_schedule_does_not_overtake_itself(reporting: Reporting, compose: Callable[..., Any], runs: Path) -> None:
    words = ("schedule.cron=@daily", "schedule.due=true")
    state = state_file(compose("report", *words))
    with only_one(state.with_name(".superblock-report.lock"), wait=0, say=print):
        status, said = reporting(*words)
    assert (
        status == 0
        and said[0].startswith("nothing to do: process ")
        and due.find(due_cron(), state, MONDAY) is not None
    )


def due_cron() -> Any:
    from superblock.reporting.schedule.cron import parse

    return parse("@daily")
