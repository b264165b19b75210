"""A benchmark is recorded as a run is, but belongs to no stage."""

from pathlib import Path

import yaml

from superblock.config.benchmark import BenchmarkConfig
from superblock.config.run import RunConfig
from superblock.tracking.files import read_json
from superblock.tracking.run import Tracker


def test_a_benchmark_in_mlflow(config: RunConfig, workplace: Path, client) -> None:
    benchmark = BenchmarkConfig(tracking=config.tracking)
    folder = workplace / "runs" / "benchmarks" / "unit"
    with Tracker.start(benchmark, run_folder=folder, run_name="unit", resume=False, rank=0, suite="speed") as tracker:
        tracker.result({"speed/part/moe/superblock-bf16/ms": 12.5})
    run = client.get_run(tracker.mlflow_run_id)
    [point] = client.get_metric_history(run.info.run_id, "speed/part/moe/superblock-bf16/ms")
    assert (point.step, point.value) == (0, 12.5)
    assert run.info.status == "FINISHED" and run.info.run_name == "unit"
    assert run.data.tags["suite"] == "speed" and run.data.tags["scale"] == "tiny" and "stage" not in run.data.tags
    assert "Benchmark at scale `tiny`" in run.data.tags["mlflow.note.content"]
    assert run.data.params["speed.superblocks"] == "[1,3,6,12]" and "output" not in run.data.params
    assert yaml.safe_load((folder / "artifacts" / "config.yaml").read_text())["speed"]["batch_size"] == 4
    assert "stage" not in read_json(folder / "run.json")
