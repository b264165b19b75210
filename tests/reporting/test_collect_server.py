"""Runs that only a real MLflow server has, artifacts too."""

import shutil
import socket
from collections.abc import Iterator
from pathlib import Path

import pytest
from synthetic_runs import write_pipeline

from superblock.config.report import ReportConfig
from superblock.config.tracking import TrackingConfig
from superblock.reporting.collect import collect
from superblock.tracking.mlflow_sender import deliver
from superblock.tracking.server import running_server
from superblock.tracking.store import open_store

pytestmark = pytest.mark.slow
RUNS = Path("runs")


@pytest.fixture
def server(tmp_path: Path) -> Iterator[str]:
    """The address of a server of its own, with its artifacts behind it."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    uri = f"sqlite:///{tmp_path}/behind/store.db"
    open_store(uri, "superblock")
    with running_server(uri, port, print) as process:
        assert process is not None
        yield f"http://127.0.0.1:{port}"


def test_a_server_tells_what_the_folders_do(server: str) -> None:
    store = TrackingConfig(store="server", uri=server, flush_seconds=0.01)
    write_pipeline(RUNS, seeds=[1], stages=["mvp1", "mvp2"], language=True)
    for folder in sorted(RUNS.glob("mvp*")):
        assert deliver(folder, store, timeout=60) == 0
    here = collect(ReportConfig(source="spool"), say=lambda line: None)
    there = collect(ReportConfig(source="mlflow", tracking=store), say=lambda line: None)
    assert there.problems == () and there.source == f"MLflow at {server}"
    assert len(here.runs) == 2 and here.runs == there.runs
    shutil.rmtree(RUNS)
    assert collect(ReportConfig(tracking=store), say=lambda line: None).runs == here.runs


def test_a_server_that_is_away_is_told() -> None:
    write_pipeline(RUNS, seeds=[1], stages=["mvp1"])
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        store = TrackingConfig(store="server", uri=f"http://user:secret@127.0.0.1:{free.getsockname()[1]}")
    found = collect(ReportConfig(tracking=store), say=lambda line: None)
    assert len(found.runs) == 1
    assert "does not answer" in found.problems[0] and "secret" not in found.problems[0]
