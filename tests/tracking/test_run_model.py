"""The model of a run in MLflow: results ranked by data set."""

from collections.abc import Callable
from pathlib import Path

import pytest

from superblock.tracking import run_model
from superblock.tracking.mlflow_sender import deliver
from superblock.tracking.run import Tracker
from superblock.tracking.store import open_store


def train(start: Callable[..., Tracker], workplace: Path, name: str, result: float) -> Tracker:
    with start(run_folder=workplace / "runs" / name, run_name=name) as tracker:
        for context in ("training", "validation", "test"):
            tracker.dataset("embedded", "d" * 16, context, "a library")
        tracker.metrics({"train/loss": 3.0, "val/bits_per_byte": result + 0.1}, 10)
        tracker.result({"test/bits_per_byte": result, "final/tokens_per_second": 100.0})
    return tracker


def test_models_are_ranked_by_metric_and_data_set(start: Callable[..., Tracker], workplace: Path) -> None:
    for name, result in (("worse", 1.6), ("best.of-all", 1.4), ("middle", 1.5)):
        train(start, workplace, name, result)
    client, experiment = open_store(f"sqlite:///{workplace}/mlflow.db", "superblock")
    order = {"field_name": "metrics.test/bits_per_byte", "ascending": True, "dataset_name": "embedded test"}
    found = client.search_logged_models([experiment], order_by=[order])
    assert [model.name for model in found] == ["best-of-all", "middle", "worse"]
    best = found[0]
    assert {(m.key, m.dataset_name, m.dataset_digest) for m in best.metrics} == {
        ("test/bits_per_byte", "embedded test", "d" * 16), ("val/bits_per_byte", "embedded validation", "d" * 16),
    }  # fmt: skip
    assert best.status == "READY" and best.tags["stage"] == "mvp1" and best.tags["seed"] == "1"
    run = client.get_run(best.source_run_id)
    assert [output.model_id for output in run.outputs.model_outputs] == [best.model_id]


def test_delivered_again_it_is_the_same_model(start: Callable[..., Tracker], workplace: Path, config) -> None:
    tracker = train(start, workplace, "again", 1.5)
    client, experiment = open_store(f"sqlite:///{workplace}/mlflow.db", "superblock")
    [before] = client.search_logged_models([experiment])
    (tracker.run_folder / "delivered.json").unlink()
    assert deliver(tracker.run_folder, config.tracking, timeout=60) == 0
    [after] = client.search_logged_models([experiment])
    assert after.model_id == before.model_id and len(after.metrics) == len(before.metrics) == 2
    assert len(client.get_metric_history(before.source_run_id, "test/bits_per_byte")) == 1


def test_results_arrive_without_a_model_where_the_store_knows_none(
    start: Callable[..., Tracker], workplace: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from mlflow.exceptions import MlflowException
    from mlflow.protos.databricks_pb2 import ENDPOINT_NOT_FOUND

    def refuse(*_: object) -> str:
        raise MlflowException("no such endpoint", ENDPOINT_NOT_FOUND)

    monkeypatch.setattr(run_model, "find_or_make", refuse)
    lines: list[str] = []
    with start(report=lines.append) as tracker:
        tracker.dataset("embedded", "d" * 16, "test", "a library")
        tracker.result({"test/bits_per_byte": 1.5})
    client, experiment = open_store(f"sqlite:///{workplace}/mlflow.db", "superblock")
    assert client.get_run(tracker.mlflow_run_id).data.metrics["test/bits_per_byte"] == 1.5
    assert client.search_logged_models([experiment]) == []
    assert lines == ["tracking: MLflow does not take the model of this run: no such endpoint"]
