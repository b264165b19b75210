"""A store that is away, hangs, or is written by many at once: training does not notice, and nothing is lost."""

import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import closing
from pathlib import Path

import pytest

from superblock.config.run import RunConfig
from superblock.config.tracking import TrackingConfig
from superblock.tracking import mlflow_sender
from superblock.tracking.mlflow_sender import deliver
from superblock.tracking.run import Tracker
from superblock.tracking.runs import read_run
from superblock.tracking.spool import metric_history
from superblock.tracking.store import open_store, store_uri

Start = Callable[..., Tracker]
STEPS = 200


@pytest.fixture
def closed_port() -> int:
    with closing(socket.socket()) as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


@pytest.fixture
def hanging_port() -> Iterator[int]:
    """Takes connections and never answers."""
    with closing(socket.create_server(("127.0.0.1", 0))) as server:
        yield int(server.getsockname()[1])


def train(tracker: Tracker) -> float:
    """The longest time that a call took."""
    longest = 0.0
    for step in range(1, STEPS + 1):
        begin = time.perf_counter()
        tracker.metrics({"train/loss": 1 / step, "train/rate": step}, step)
        longest = max(longest, time.perf_counter() - begin)
        time.sleep(0.002)
    return longest


@pytest.mark.parametrize("port", ["closed_port", "hanging_port"])
def test_server_away_from_the_start(
    port: str, request: pytest.FixtureRequest, start: Start, config: RunConfig, capsys: pytest.CaptureFixture[str]
) -> None:
    config.tracking.store = "server"
    config.tracking.uri = f"http://127.0.0.1:{request.getfixturevalue(port)}"
    config.tracking.timeout_seconds = 0.5
    tracker = start()
    assert train(tracker) < 1.0
    begin = time.perf_counter()
    tracker.finish("FINISHED")
    assert time.perf_counter() - begin < 3
    assert len(metric_history(tracker.run_folder)["train/loss"]) == STEPS
    assert "values not delivered yet; they are in" in capsys.readouterr().err
    assert tracker.mlflow_run_id is None

    config.tracking.store, config.tracking.uri = "sqlite", None  # the store is there again
    assert deliver(tracker.run_folder, config.tracking, timeout=60) == 0
    client, _ = open_store(str(store_uri(config.tracking)), config.tracking.experiment)
    run_id = str(tracker.mlflow_run_id)
    assert client.get_run(run_id).info.status == "FINISHED"
    points = client.get_metric_history(run_id, "train/loss")
    assert [(m.step, m.value) for m in points] == [(s, 1 / s) for s in range(1, STEPS + 1)]


def test_store_dies_and_returns(
    start: Start, config: RunConfig, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    from mlflow import MlflowClient

    away, real, calls = threading.Event(), MlflowClient.log_batch, []

    def flaky(self: MlflowClient, run_id: str, **data: list) -> None:
        calls.append(len(data.get("metrics", ())))
        if data.get("metrics") and len(calls) % 3 == 0:
            real(self, run_id, **data)  # stored, but the answer is lost: it will be sent again
            raise ConnectionError("connection reset")
        if away.is_set():
            raise ConnectionError("connection refused")
        real(self, run_id, **data)

    monkeypatch.setattr(MlflowClient, "log_batch", flaky)
    tracker = start()
    train(tracker)
    away.set()
    train_more = threading.Timer(0.5, away.clear)
    train_more.start()
    for step in range(STEPS + 1, STEPS + 50):
        tracker.metrics({"train/loss": 1 / step}, step)
        time.sleep(0.01)
    tracker.finish("FINISHED")
    client, _ = open_store(str(store_uri(config.tracking)), config.tracking.experiment)
    points = client.get_metric_history(str(tracker.mlflow_run_id), "train/loss")
    assert [(m.step, m.value) for m in points] == [(s, 1 / s) for s in range(1, STEPS + 50)]
    errors = capsys.readouterr().err
    assert "training goes on; values wait in" in errors and "answers again" in errors


def test_interrupted_delivery_is_continued(start: Start, config: RunConfig, monkeypatch: pytest.MonkeyPatch) -> None:
    """Killed between a delivery and the note of it: the values are sent twice and stored once."""
    monkeypatch.setattr(mlflow_sender, "EVENTS_PER_READ", 7)
    tracker = start()
    train(tracker)
    tracker.finish("KILLED")
    position = tracker.run_folder / "delivered.json"
    run_id = str(tracker.mlflow_run_id)
    position.write_text(position.read_text().replace('"sent": ', '"sent": 0, "was": '))
    assert deliver(tracker.run_folder, config.tracking, timeout=60) == 0
    client, _ = open_store(str(store_uri(config.tracking)), config.tracking.experiment)
    assert len(client.get_metric_history(run_id, "train/loss")) == STEPS
    assert client.get_run(run_id).info.status == "KILLED"


KILLED = """
import sys, time
from pathlib import Path
from superblock.config.run import RunConfig
from superblock.config.tracking import TrackingConfig
from superblock.tracking.run import Tracker

tracking = TrackingConfig(flush_seconds=0.01, system_metrics=False)
t = Tracker.start(RunConfig(tracking=tracking), run_folder=Path("runs/unit"), run_name="unit", resume=False, rank=0)
for step in range(1, 10**6):
    t.metrics({"train/loss": 1 / step}, step)
    time.sleep(0.001)
"""


@pytest.mark.slow
def test_kill_and_resume_leave_each_step_once(start: Start, config: RunConfig, workplace: Path) -> None:
    """Killed with -9 in the middle of deliveries; resumed from a checkpoint a while before."""
    folder = workplace / "runs" / "unit"
    child = subprocess.Popen([sys.executable, "-c", KILLED])
    while not (folder / "delivered.json").exists():
        time.sleep(0.01)
    time.sleep(0.3)
    child.kill()
    child.wait()
    reached = metric_history(folder)["train/loss"][-1][0]
    found = read_run(folder)
    assert found is not None and found.status == "INTERRUPTED" and found.resumable

    tracker = start(resume=True)
    tracker.rewind(reached // 2)
    for step in range(reached // 2 + 1, reached + 20):
        tracker.metrics({"train/loss": 1 / step}, step)
    tracker.finish("FINISHED")
    expected = [(s, 1 / s) for s in range(1, reached + 20)]
    assert metric_history(folder)["train/loss"] == expected
    client, experiment = open_store(str(store_uri(config.tracking)), config.tracking.experiment)
    points = client.get_metric_history(str(tracker.mlflow_run_id), "train/loss")
    assert sorted((m.step, m.value) for m in points) == expected
    assert len(client.search_runs([experiment])) == 1


def test_killed_before_the_run_id_was_noted(start: Start, config: RunConfig) -> None:
    """The run that exists already in MLflow is found again by its tag."""
    tracker = start()
    tracker.finish("KILLED")
    first = tracker.mlflow_run_id
    identity = tracker.run_folder / "run.json"
    identity.write_text(identity.read_text().replace('"mlflow_run_id"', '"forgotten"'))
    again = start(resume=True)
    again.finish("FINISHED")
    assert again.mlflow_run_id == first


def test_a_run_that_died_is_not_shown_as_running(start: Start, config: RunConfig, workplace: Path) -> None:
    """The next run in this folder corrects what a kill left behind; resuming makes it RUNNING again."""
    dead = start(run_folder=workplace / "runs" / "dead")
    client, _ = open_store(str(store_uri(config.tracking)), config.tracking.experiment)
    while dead.mlflow_run_id is None or client.get_run(dead.mlflow_run_id).data.tags.get("stage") is None:
        time.sleep(0.02)
    noted = dead.run_folder / "status.json"
    noted.write_text(noted.read_text().replace('"process_started": ', '"process_started": 1, "was": '))
    assert client.get_run(dead.mlflow_run_id).info.status == "RUNNING"
    other = start(run_folder=workplace / "runs" / "other")
    other.finish("FINISHED")
    assert client.get_run(dead.mlflow_run_id).info.status == "KILLED"
    assert client.get_run(other.mlflow_run_id).info.status == "FINISHED"
    dead.finish("KILLED")


WRITER = """
import sys
from pathlib import Path
from superblock.config.run import RunConfig
from superblock.config.tracking import TrackingConfig
from superblock.tracking.run import Tracker
from superblock.tracking.store import open_store, store_uri

tracking = TrackingConfig(flush_seconds=0.05, timeout_seconds=120, system_metrics=False)
trackers = []
for name in sys.argv[1:]:
    t = Tracker.start(RunConfig(tracking=tracking), run_folder=Path("runs") / name, run_name=name, resume=False, rank=0)
    trackers.append(t)
for step in range(300):
    for t in trackers:
        t.metrics({"train/loss": step}, step)
for t in trackers:
    t.finish("FINISHED")
"""


@pytest.mark.slow
def test_six_runs_on_one_fresh_database(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Two processes with three runs each, all making the database at the same time."""
    monkeypatch.chdir(tmp_path)
    names = [["a", "b", "c"], ["d", "e", "f"]]
    writers = [subprocess.Popen([sys.executable, "-c", WRITER, *n], stderr=subprocess.PIPE, text=True) for n in names]
    for writer in writers:
        _, errors = writer.communicate(timeout=180)
        assert writer.returncode == 0 and "tracking:" not in errors, errors
    client, experiment = open_store(str(store_uri(TrackingConfig())), "superblock")
    runs = client.search_runs([experiment])
    assert sorted(run.info.run_name for run in runs) == ["a", "b", "c", "d", "e", "f"]
    for run in runs:
        assert run.info.status == "FINISHED"
        assert len(client.get_metric_history(run.info.run_id, "train/loss")) == 300
    assert not (tmp_path / "mlruns").exists()
