"""A report in MLflow: a run of its own, once."""

import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from superblock.config.tracking import TrackingConfig
from superblock.reporting.content import Report
from superblock.reporting.files import write_report
from superblock.reporting.recorded import NOTE_FILE, record
from superblock.tracking.store import open_store, store_uri

REPORT = Report("mini-1", "MVP1", 1.0, "unchanged", "nothing changed", "runs/", "mini-0")


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A report's pages."""
    home = tmp_path / "reports" / REPORT.name
    write_report(REPORT, home)
    (home / "index.html").write_text("<p>page")
    (home / "report.md").write_text("# MVP1\n" + "x" * 9000)
    return home


def recorded(config: TrackingConfig) -> list[Any]:
    uri = store_uri(config)
    assert uri
    client, experiment = open_store(uri, config.experiment)
    return [(client, run) for run in client.search_runs([experiment])]


def test_a_run_of_its_own_once(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    config, said = TrackingConfig(), list[str]()
    record(REPORT, folder, config, say=said.append)
    [line] = said
    assert re.fullmatch(r"recorded in MLflow: run mini-1 of experiment superblock  \(\d+\.\d s\)", line)
    [(client, run)] = recorded(config)
    tags = run.data.tags
    assert (tags["suite"], tags["verdict"], tags["report.name"], tags["report.baseline"]) == (
        "report",
        "unchanged",
        "mini-1",
        "mini-0",
    )
    assert tags["mlflow.runName"] == "mini-1" and tags["mlflow.note.content"].startswith("# MVP1")
    assert "mlflow.parentRunId" not in tags and run.info.status == "FINISHED" and run.data.metrics == {}
    assert {file.path for file in client.list_artifacts(run.info.run_id)} == {"index.html", "report.md", "report.json"}

    with monkeypatch.context() as patched:  # noted beside the reports: MLflow is not even asked
        patched.setattr("superblock.reporting.recorded.open_store", _refuse)
        record(REPORT, folder, config, say=said.append)
    assert len(said) == 1
    (folder.parent / NOTE_FILE).unlink()
    record(REPORT, folder, config, say=said.append)  # found by its digest
    assert len(recorded(config)) == 1

    client.update_run(run.info.run_id, status="RUNNING")  # as an interrupted process leaves it
    (folder.parent / NOTE_FILE).unlink()
    record(REPORT, folder, config, say=said.append)
    assert [run.info.status for _, run in recorded(config)] == ["FINISHED"]

    (folder / "index.html").write_text("<p>another page")
    record(REPORT, folder, config, say=said.append)
    [(client, run)] = recorded(config)  # the same report, drawn anew
    assert Path(client.download_artifacts(run.info.run_id, "index.html")).read_text() == "<p>another page"
    write_report(replace(REPORT, verdict="regressed"), folder)
    record(replace(REPORT, verdict="regressed"), folder, config, say=said.append)
    assert {run.data.tags["verdict"] for _, run in recorded(config)} == {"unchanged", "regressed"}


def test_a_store_that_was_deleted_or_replaced_is_asked_again(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    config, said = TrackingConfig(), list[str]()
    record(REPORT, folder, config, say=said.append)
    [(client, run)] = recorded(config)
    client.delete_run(run.info.run_id)  # what a person deleted stays deleted
    asked: list[str] = []

    def away(uri: str, experiment: str) -> Any:  # MLflow keeps files open: it would go on writing to a moved one
        asked.append(experiment)
        raise ConnectionError("away")

    monkeypatch.setattr("superblock.reporting.recorded.open_store", away)
    store, moved = Path("mlflow.db"), Path("moved.db")
    for content, times in ((store.read_bytes(), 0), (None, 1), (b"", 2), (b"no database" * 9, 3)):
        if store.exists():
            store.rename(moved)
        if content is not None:
            store.write_bytes(content)
        record(REPORT, folder, config, say=said.append)
        assert len(asked) == times == len(said) - 1


def _refuse(*given: Any) -> Any:
    raise AssertionError("MLflow was asked")


@pytest.mark.parametrize("error", [ConnectionError("http://me:secret@there refused"), ValueError("a newer schema")])
def test_a_store_that_does_not_answer_costs_a_line(
    folder: Path, monkeypatch: pytest.MonkeyPatch, error: Exception
) -> None:
    def fail(*given: Any) -> Any:
        raise error

    monkeypatch.setattr("superblock.reporting.recorded.open_store", fail)
    said: list[str] = []
    record(REPORT, folder, TrackingConfig(store="server", uri="http://me:secret@there"), say=said.append)
    assert (
        len(said) == 1 and said[0].startswith("not recorded in MLflow: http://***@there: ") and "secret" not in said[0]
    )
    assert not (folder.parent / NOTE_FILE).exists()


def test_without_tracking_nothing_is_said(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    said: list[str] = []
    monkeypatch.setattr("superblock.reporting.recorded.open_store", _refuse)
    record(REPORT, folder, TrackingConfig(store="none"), say=said.append)
    assert said == []
