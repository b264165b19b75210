"""Adding to a run that is over: the same MLflow run, the same end."""

from collections.abc import Callable
from pathlib import Path

import pytest

from superblock.config.fields import ConfigError
from superblock.config.run import RunConfig
from superblock.tracking.files import read_json
from superblock.tracking.identity import write_status
from superblock.tracking.mlflow_sender import deliver
from superblock.tracking.run import Tracker
from superblock.tracking.spool import metric_history

Start = Callable[..., Tracker]


@pytest.mark.parametrize("status", ["FINISHED", "FAILED"])
def test_what_is_added_goes_to_the_same_run_and_its_end_stays(
    start: Start, client, config: RunConfig, workplace: Path, status: str
) -> None:
    tracker = start()
    tracker.result({"test/bits_per_byte": 1.5})
    tracker.finish(status)
    folder, before = tracker.run_folder, client.get_run(tracker.mlflow_run_id)
    noted = read_json(folder / "status.json")
    with Tracker.reopen(folder, config) as again:
        again.tags({"promotion": "promoted"})
        again.result({"test/bits_per_byte": 1.5, "gate/finite": 1.0})
        again.text("# Gates", "gates.md")
    after = client.get_run(before.info.run_id)
    assert again.mlflow_run_id == before.info.run_id
    assert len(client.search_runs([before.info.experiment_id])) == 1
    assert (after.info.status, after.info.end_time) == (status, before.info.end_time)
    assert read_json(folder / "status.json") == noted
    assert after.data.tags["promotion"] == "promoted" and after.data.metrics["gate/finite"] == 1.0
    assert len(client.get_metric_history(before.info.run_id, "test/bits_per_byte")) == 1
    assert "gates.md" in {file.path for file in client.list_artifacts(before.info.run_id)}


def test_while_the_store_is_away_the_spool_keeps_it(
    start: Start, client, config: RunConfig, workplace: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    tracker = start()
    tracker.finish("FINISHED")
    away = RunConfig()
    away.tracking.store, away.tracking.uri, away.tracking.timeout_seconds = "server", "http://127.0.0.1:9", 0.2
    with Tracker.reopen(tracker.run_folder, away) as again:
        again.result({"gate/finite": 1.0})
    assert "values not delivered yet" in capsys.readouterr().err
    none = RunConfig()
    none.tracking.store = "none"
    with Tracker.reopen(tracker.run_folder, none) as again:
        again.result({"gate/growth": 0.0})
    assert {"gate/finite", "gate/growth"} <= set(metric_history(tracker.run_folder))
    assert deliver(tracker.run_folder, config.tracking, timeout=60) == 0
    metrics = client.get_run(tracker.mlflow_run_id).data.metrics
    assert metrics["gate/finite"] == 1.0 and metrics["gate/growth"] == 0.0


def test_a_run_that_was_deleted_in_mlflow_is_not_made_anew(
    start: Start, client, config: RunConfig, capsys: pytest.CaptureFixture[str]
) -> None:
    tracker = start()
    tracker.finish("FINISHED")
    run = client.get_run(tracker.mlflow_run_id)
    client.delete_run(run.info.run_id)
    with Tracker.reopen(tracker.run_folder, config) as again:
        again.result({"gate/finite": 1.0})
    err = capsys.readouterr().err
    assert "run unit was deleted there" in err and "values wait in" in err and "training" not in err
    assert client.search_runs([run.info.experiment_id]) == []
    assert metric_history(tracker.run_folder)["gate/finite"] == [(0, 1.0)]


def test_what_is_no_finished_run_is_refused(config: RunConfig, tmp_path: Path, start: Start) -> None:
    with pytest.raises(ConfigError, match="holds no run"):
        Tracker.reopen(tmp_path / "nothing", config)
    tracker = start()
    tracker.finish("FINISHED")
    write_status(tracker.run_folder, "RUNNING")
    with pytest.raises(ConfigError, match="still running"):
        Tracker.reopen(tracker.run_folder, config)
