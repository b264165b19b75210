"""Tracker and sender against a real local store."""

import json
import math
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest
import yaml

from superblock.config.run import RunConfig
from superblock.tracking.files import read_json
from superblock.tracking.identity import compared_settings, stage_color
from superblock.tracking.run import Tracker
from superblock.tracking.spool import metric_history, read_spool

Start = Callable[..., Tracker]


def history(client, run_id: str, key: str) -> list[tuple[int, float]]:
    return sorted((m.step, m.value) for m in client.get_metric_history(run_id, key))


def test_a_whole_run(start: Start, client, config: RunConfig, workplace: Path) -> None:
    import matplotlib

    matplotlib.use("agg")
    from matplotlib.figure import Figure

    config.stage.title, config.stage.purpose = "One superblock", "It must learn."
    config.tracking.uri = None
    figure = Figure()
    figure.subplots().plot([1, 2])
    with start() as tracker:
        assert tracker.active
        for step in range(1, 31):
            tracker.metrics({"train/loss": 5 - step / 10}, step)
        tracker.result({"test/bits_per_byte": 1.5})
        tracker.params({"tokens": 12345})
        tracker.tags({"mood": "good"})
        tracker.text("once upon a time", "samples/step-30.txt")
        tracker.figure(figure, "plots/curve.png")
        for context in ("training", "test"):
            tracker.dataset("embedded", "d" * 64, context, "stdlib of 3.11")
        (workplace / "outside.txt").write_text("x")
        tracker.artifact(workplace / "outside.txt", "extra")

    assert tracker.mlflow_run_id
    run = client.get_run(tracker.mlflow_run_id)
    assert run.info.status == "FINISHED" and run.info.run_name == "unit" and run.info.end_time >= run.info.start_time
    assert history(client, run.info.run_id, "train/loss") == [(s, 5 - s / 10) for s in range(1, 31)]
    assert history(client, run.info.run_id, "test/bits_per_byte") == [(0, 1.5)]
    tags = run.data.tags
    expected = {"stage": "mvp1", "scale": "tiny", "arm": "default", "seed": "1", "suite": "training", "mood": "good"}
    assert expected.items() <= tags.items()
    assert tags["mlflow.runColor"] == stage_color("mvp1") and "It must learn." in tags["mlflow.note.content"]
    assert tags["hardware"] and tags["version.torch"] and len(tags["fingerprint"]) == 16
    assert "mlflow.parentRunId" not in tags
    assert run.data.params["tokens"] == "12345" and run.data.params["model.gdn.num_key_heads"] == "4"
    inputs = run.inputs.dataset_inputs
    assert {(i.dataset.name, i.dataset.digest, i.tags[0].value) for i in inputs} == {
        ("embedded training", "d" * 36, "training"), ("embedded test", "d" * 36, "test"),
    }  # fmt: skip
    kept = {
        f.path for folder in ("", "samples", "plots", "extra") for f in client.list_artifacts(run.info.run_id, folder)
    }
    assert {"config.yaml", "provenance.json", "samples/step-30.txt", "plots/curve.png", "extra/outside.txt"} <= kept
    whole = yaml.safe_load((tracker.run_folder / "artifacts" / "config.yaml").read_text())
    assert whole["model"]["d_model"] == config.model.d_model and whole["tracking"]["store"] == "sqlite"
    assert not (workplace / "mlruns").exists() and "/runs/artifacts/" in run.info.artifact_uri
    experiment = client.get_experiment(run.info.experiment_id)
    assert experiment.tags["mlflow.experimentKind"] == "custom_model_development"
    assert experiment.tags["mlflow.experiment.primaryMetric.name"] == "test/bits_per_byte"


def test_resume_continues_the_same_run(start: Start, client, config: RunConfig) -> None:
    first = start()
    for step in range(1, 9):
        first.metrics({"train/loss": step}, step)
    first.result({"reference/xz": 1.58})
    first.finish("KILLED")
    run_id = first.mlflow_run_id
    assert client.get_run(run_id).info.status == "KILLED"

    config.evaluation.batch_size = 4  # a changed setting must not stop the run
    second = start(resume=True)
    second.rewind(5)
    second.result({"reference/xz": 1.58})
    deadline = time.monotonic() + 60
    while client.get_run(run_id).info.status != "RUNNING" and time.monotonic() < deadline:
        time.sleep(0.05)
    assert client.get_run(run_id).info.status == "RUNNING"
    for step in range(6, 12):
        second.metrics({"train/loss": step}, step)
    second.finish("FINISHED")

    assert second.mlflow_run_id == run_id
    run = client.get_run(run_id)
    assert run.info.status == "FINISHED" and run.data.tags["starts"] == "2"
    assert history(client, run_id, "train/loss") == [(s, s) for s in range(1, 12)]
    assert history(client, run_id, "reference/xz") == [(0, 1.58)]
    assert run.data.params["evaluation.batch_size"] == "16"
    assert run.data.tags["changed/evaluation.batch_size"] == "4"
    assert metric_history(second.run_folder)["train/loss"] == [(s, s) for s in range(1, 12)]
    assert len(client.search_runs([run.info.experiment_id])) == 1
    assert {"config.yaml", "config-2.yaml"} <= {f.path for f in client.list_artifacts(run_id)}


def test_starting_anew_in_a_used_folder_is_another_run(start: Start, client) -> None:
    first = start()
    first.finish("FINISHED")
    first_id = first.mlflow_run_id
    second = start()
    second.finish("FINISHED")
    assert second.mlflow_run_id != first_id


def test_a_run_deleted_in_mlflow_is_recorded_anew(start: Start, client) -> None:
    first = start()
    first.metrics({"a": 1}, 1)
    first.finish("KILLED")
    client.delete_run(first.mlflow_run_id)
    deleted = first.mlflow_run_id
    second = start(resume=True)
    second.metrics({"a": 2}, 2)
    second.finish("FINISHED")
    assert second.mlflow_run_id != deleted
    assert history(client, second.mlflow_run_id, "a") == [(1, 1), (2, 2)]


@pytest.mark.parametrize(
    ("error", "status"), [(ValueError, "FAILED"), (KeyboardInterrupt, "KILLED"), (SystemExit, "KILLED")]
)
def test_status_is_what_happened(start: Start, client, error: type[BaseException], status: str) -> None:
    with pytest.raises(error), start() as tracker:
        raise error
    assert client.get_run(tracker.mlflow_run_id).info.status == status
    assert read_json(tracker.run_folder / "status.json")["status"] == status


def test_values_that_are_not_finite(start: Start, client) -> None:
    with start() as tracker:
        tracker.metrics({"train/loss": 2.0}, 1)
        tracker.metrics({"train/loss": math.inf, "train/grad": math.nan}, 2)
        tracker.metrics({"train/loss": math.nan}, 3)
    run = client.get_run(tracker.mlflow_run_id)
    assert run.data.tags["diverged"] == "true" and run.data.tags["diverged.first"] == "train/loss=inf at step 2"
    values = [v for _, v in history(client, tracker.mlflow_run_id, "train/loss")]
    assert values[0] == 2.0 and math.isnan(values[1]) and math.isnan(values[2])
    assert metric_history(tracker.run_folder)["train/loss"][1] == (2, math.inf)


def test_limits(start: Start, client, capsys: pytest.CaptureFixture[str]) -> None:
    with start() as tracker:
        tracker.params({"long": "x" * 7000, "odd@key": 1, **{f"p{i}": i for i in range(250)}})
        tracker.tags({"long": "y" * 9000})
        tracker.metrics({f"many/m{i}": i for i in range(2500)}, 1)
        tracker.artifact(tracker.run_folder / "absent.txt")
        tracker.metrics({"after": 1}, 2)
    run = client.get_run(tracker.mlflow_run_id)
    assert len(run.data.params["long"]) == 6000 and run.data.params["odd_key"] == "1"
    assert run.data.params["p249"] == "249" and len(run.data.tags["long"]) == 8000
    assert sum(key.startswith("many/") for key in run.data.metrics) == 2500
    assert run.data.metrics["after"] == 1 and run.info.status == "FINISHED"
    assert "does not take artifact absent.txt" in capsys.readouterr().err


def test_compared_settings(config: RunConfig) -> None:
    settings = compared_settings(config)
    assert len(settings) <= 120
    assert settings["optim.learning_rate"] == "0.003" and settings["model.pattern"] == "[gdn,gqa]"
    assert settings["model.init_std"] == "null" and settings["stage"] == "mvp1" and settings["seed"] == "1"
    assert not any(key.startswith(("tracking", "data.cache_dir", "scale.")) for key in settings)


def test_password_is_not_recorded(start: Start, config: RunConfig, capsys: pytest.CaptureFixture[str]) -> None:
    config.tracking.store, config.tracking.uri = "server", "http://me:hunter2@127.0.0.1:9"
    config.tracking.timeout_seconds = 0
    tracker = start()
    shown = ""
    while "cannot deliver" not in shown:
        time.sleep(0.05)
        shown += capsys.readouterr().err
    tracker.finish("FINISHED")
    assert "hunter2" not in shown + capsys.readouterr().err
    for path in tracker.run_folder.rglob("*.*"):
        assert "hunter2" not in path.read_text(errors="replace"), path


def test_other_ranks_do_nothing(start: Start, workplace: Path) -> None:
    tracker = start(rank=1)
    assert not tracker.active
    tracker.metrics({"a": 1}, 1)
    tracker.result({"a": 1})
    tracker.params({"a": 1})
    tracker.tags({"a": 1})
    tracker.text("a", "a.txt")
    tracker.figure(None, "a.png")
    tracker.artifact(workplace)
    tracker.dataset("a", "b", "c", "d")
    tracker.rewind(1)
    tracker.finish("FINISHED")
    assert not (workplace / "runs").exists()


def test_store_none_never_imports_mlflow(tmp_path: Path) -> None:
    code = (
        "import sys; from pathlib import Path; from superblock.config.run import RunConfig\n"
        "from superblock.config.tracking import TrackingConfig; from superblock.tracking.run import Tracker\n"
        "config = RunConfig(tracking=TrackingConfig(store='none', system_metrics=False))\n"
        "with Tracker.start(config, run_folder=Path('runs/a'), run_name='a', resume=False, rank=0) as t:\n"
        "    t.metrics({'a': 1}, 1)\n"
        "assert not {'mlflow', 'torch', 'lightning'} & set(sys.modules)\n"
    )
    subprocess.run([sys.executable, "-c", code], cwd=tmp_path, check=True, timeout=60)
    assert [e.data["status"] for e in read_spool(tmp_path / "runs/a") if e.kind == "status"] == ["RUNNING", "FINISHED"]
    assert {p.name for p in tmp_path.iterdir()} == {"runs"}


def test_provenance_is_kept(start: Start) -> None:
    tracker = start()
    tracker.finish("FINISHED")
    record = json.loads((tracker.run_folder / "provenance.json").read_text())
    assert record["hardware"]["cores"] >= 1 and record["versions"]["torch"] and record["command"]


def test_a_call_costs_little(start: Start, config: RunConfig) -> None:
    config.tracking.store = "none"
    tracker = start()
    values = {f"train/metric_{i}": i / 7 for i in range(10)}
    times = []
    for step in range(300):
        begin = time.perf_counter()
        tracker.metrics(values, step)
        times.append(time.perf_counter() - begin)
    tracker.finish("FINISHED")
    assert sorted(times)[150] < 0.001  # measured 0.03 ms; a step takes 200
