"""Runs of an experiment are done once, whoever does them and however often they are interrupted."""

import json
import subprocess
import sys
import threading
import time
from contextlib import nullcontext
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parent))

from experiments import Training, remembering, saved

from superblock.benchmarks.ablation.experiment import Experiment, carry_out
from superblock.benchmarks.ablation.plan import Run, common_words, name_of, select, step_flops
from superblock.benchmarks.ablation.record import Record, RecordFile, plain
from superblock.benchmarks.records import COMPLETE, PARTIAL
from superblock.cli.app import compose_run
from superblock.config.benchmark import BenchmarkConfig, GrowthExperimentConfig, SuiteConfig
from superblock.config.fields import ConfigError
from superblock.config.run import RunConfig
from superblock.config.stage import ScaleConfig
from superblock.config.tracking import TrackingConfig
from superblock.tracking.provenance import Code
from superblock.training.size import measure

COMPOSE = remembering(compose_run)
PARENTS = [Run("1", "scratch", seed, 1, 5, 5e6) for seed in (1, 2)]
CHILDREN = [
    Run("1-3", method, seed, 3, 3, 9e6, (f"growth.method={method}",), name_of("1", "scratch", seed))
    for seed in (1, 2)
    for method in ("identity", "stack")
]
RUNS = [*PARENTS, *CHILDREN]


def settings(**changes: object) -> BenchmarkConfig:
    tracking = TrackingConfig(store="none", system_metrics=False)
    config = BenchmarkConfig(suite=SuiteConfig("growth"), tracking=tracking, threads=1, name="mine", minutes=60)
    config.scale = COMPOSE(["scale=mini", "trainer.budget=1steps"]).scale
    for key, value in changes.items():
        setattr(config, key, value)
    return config


def go(training: Training, config: BenchmarkConfig | None = None, runs: list[Run] = RUNS) -> int:
    config = config or settings()
    experiment = Experiment(
        "growth", runs, common_words(config, COMPOSE), lambda record: None, lambda record: iter(()), lambda record: []
    )
    return carry_out(config, COMPOSE, experiment, training)


@pytest.fixture(autouse=True)
def _no_measuring(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("superblock.benchmarks.ablation.experiment._matmul_limit", lambda threads: 1e9)
    # somebody may commit while a test runs
    monkeypatch.setattr("superblock.tracking.provenance.code_state", lambda: Code("c" * 40, "main"))


def test_every_run_is_trained_once_and_recorded(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    training = Training(lambda config: 1.5 + config.seed / 10)
    assert go(training) == 0
    assert [config.name for config in training.asked] == [run.folder("mine") for run in RUNS]
    child = training.asked[2]
    assert child.parent == "mine-1-scratch-s1" and child.growth.method == "identity" and child.seed == 1
    assert child.model.num_superblocks == 3 and child.trainer.budget == "3steps" and child.trainer.threads == 1
    assert child.tracking.arm == "identity" and child.tracking.store == "none" and child.promote is False
    assert training.tags[2] == {"suite": "growth", "arm": "identity", "group": "1-3", "experiment": "mine"}

    record = saved(tmp_path / "runs/benchmarks/mine", "growth")
    assert record.status == COMPLETE and list(record.runs) == [run.name for run in RUNS] and not record.failed
    one = record.runs["1-3/stack/s2"]
    assert (
        one["test"] == 1.7
        and one["parent"] == "mine-1-scratch-s2"
        and one["commit"] == record.provenance["code"]["commit"]
    )
    assert compose_run(one["overrides"]).name == one["run"]  # whoever types these trains the same run

    out = capsys.readouterr().out
    lines = [line for line in out.splitlines() if "[" in line]
    assert len(lines) == 6 and "[1/6]" in lines[0] and "test 1.6000 bits per byte, 5 steps" in lines[0]
    assert "5 runs, about" in lines[0] and lines[-1].endswith("all done") and "training mine" not in out
    assert "training mine-1-scratch-s1" in (tmp_path / "runs/benchmarks/mine/logs/1-scratch-s1.txt").read_text()
    assert out.index("6 of 6 runs to do") < out.index("[1/6]")

    assert (
        go(Training(lambda config: 1 / 0)) == 0 and "every run is done" in capsys.readouterr().out
    )  # nothing is asked again


def test_only_parents_keep_their_checkpoints(tmp_path: Path) -> None:
    go(Training(lambda config: 1.0))
    kept = {path.parent.name for path in tmp_path.glob("runs/mine-*/checkpoints")}
    assert kept == {run.folder("mine") for run in PARENTS}


@pytest.mark.parametrize("error", [KeyboardInterrupt, SystemExit(130)])
def test_an_interrupted_run_begins_again_and_finished_ones_do_not(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], error: BaseException
) -> None:
    def stop(config: RunConfig) -> None:
        if config.name == "mine-1-3-identity-s1":
            raise error

    first = Training(lambda config: 1.0, stop)
    with pytest.raises((KeyboardInterrupt, SystemExit)):
        go(first)
    assert "To go on: the same command" in capsys.readouterr().out
    folder = tmp_path / "runs/mine-1-3-identity-s1"
    (folder / "left_behind").touch()
    assert saved(tmp_path / "runs/benchmarks/mine", "growth").status == PARTIAL

    second = Training(lambda config: 1.0)
    assert go(second) == 0
    assert [config.name for config in second.asked] == [run.folder("mine") for run in CHILDREN]
    assert not (folder / "left_behind").exists()


def test_a_failure_stops_neither_the_others_nor_the_next_start(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    def fail(config: RunConfig) -> None:
        if config.name == "mine-1-scratch-s1":
            raise ValueError("no\nroom")

    training = Training(lambda config: 1.0, fail)
    assert go(training) == 1
    assert {config.seed for config in training.asked[1:]} == {2}  # what grows from it is not tried
    record = saved(tmp_path / "runs/benchmarks/mine", "growth")
    assert list(record.failed) == ["1/scratch/s1"] and len(record.runs) == 3 and record.status == PARTIAL
    out = capsys.readouterr().out
    assert (
        "failed: 1/scratch/s1: ValueError: no room" in out and "3 of 6 runs are left; to go on: the same command" in out
    )

    again = Training(lambda config: 1.0)
    assert go(again) == 0 and [config.seed for config in again.asked] == [1, 1, 1]
    record = saved(tmp_path / "runs/benchmarks/mine", "growth")
    assert not record.failed and record.status == COMPLETE


def test_two_workers_share_the_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each run is trained by one of them, a child only after its parent, and both see the end."""
    monkeypatch.setattr("superblock.benchmarks.ablation.work.redirect_stdout", nullcontext)  # threads share stdout
    trainings = [Training(lambda config: 1.0, lambda config: time.sleep(0.02)) for _ in range(2)]
    threads = [threading.Thread(target=go, args=(training,)) for training in trainings]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    asked = [str(config.name) for training in trainings for config in training.asked]
    assert sorted(asked) == sorted(run.folder("mine") for run in RUNS)
    record = saved(tmp_path / "runs/benchmarks/mine", "growth")
    assert record.status == COMPLETE
    times = {name: entry["time"] for name, entry in record.runs.items()}
    assert all(times[str(child.parent)] < times[child.name] for child in CHILDREN)


def test_a_killed_process_gives_its_claim_back(tmp_path: Path) -> None:
    file = RecordFile(tmp_path, "growth")
    program = (
        "import sys, time; from pathlib import Path; from superblock.benchmarks.ablation.record import RecordFile\n"
        "with RecordFile(Path(sys.argv[1]), 'growth').claimed('a/b/s1') as mine: print(mine, flush=True); time.sleep(60)"
    )
    with subprocess.Popen([sys.executable, "-c", program, str(tmp_path)], stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None and process.stdout.readline() == "True\n"
        with file.claimed("a/b/s1") as mine, file.claimed("a/b/s2") as another:
            assert not mine and another
        process.kill()
    with file.claimed("a/b/s1") as mine:
        assert mine


def test_no_run_begins_after_the_time(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert go(Training(lambda config: 1.0), settings(minutes=1e-9)) == 0
    assert "6 of 6 runs are left" in capsys.readouterr().out


def test_cases_bring_what_they_need() -> None:
    assert [run.name for run in select(RUNS, "1-3/stack/s2")] == ["1/scratch/s2", "1-3/stack/s2"]
    assert select(RUNS, "*") == RUNS
    with pytest.raises(ConfigError, match=r"cases=3-6/\*: 3-6/\* is none of 1/scratch/\*, 1-3/identity/\*"):
        select(RUNS, "3-6/*")


def test_a_name_holds_one_experiment(tmp_path: Path) -> None:
    go(Training(lambda config: 1.0))
    other = settings(growth=GrowthExperimentConfig(parent_steps=7))
    steps = GrowthExperimentConfig().parent_steps
    with pytest.raises(ConfigError, match=f"an experiment with other settings .growth.parent_steps={steps} there"):
        go(Training(lambda config: 1.0), other)
    path = tmp_path / "runs/benchmarks/mine/growth.json"
    path.write_text(json.dumps({"schema": "superblock.ablation/0"}))
    with pytest.raises(ConfigError, match="no record of this version"):
        go(Training(lambda config: 1.0))


def test_the_name_follows_from_settings_and_commit(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for _ in range(2):
        go(Training(lambda config: 1.0), settings(name=None), PARENTS)
    go(Training(lambda config: 1.0), settings(name=None, growth=GrowthExperimentConfig(parent_steps=7)), PARENTS)
    monkeypatch.setattr("superblock.tracking.provenance.code_state", lambda: Code("d" * 40, "main"))
    go(Training(lambda config: 1.0), settings(name=None), PARENTS)
    folders = sorted(path.name for path in tmp_path.glob("runs/benchmarks/*"))
    assert len(folders) == 3 and all(name.startswith("growth-mini-") and len(name) == 20 for name in folders)


def test_a_folder_of_something_else_is_left_alone(tmp_path: Path) -> None:
    mine = tmp_path / "runs" / PARENTS[0].folder("mine")
    mine.mkdir(parents=True)
    (mine / "thesis.txt").write_text("x")
    assert go(Training(lambda config: 1.0), runs=PARENTS[:1]) == 1
    assert (mine / "thesis.txt").exists()


def test_changed_scales_reach_every_run() -> None:
    config = settings()
    assert common_words(config, COMPOSE)[:2] == ["scale=mini", "promote=false"]
    config.scale = ScaleConfig(**{**vars(config.scale), "d_model": 64, "mtp_last": "block"})
    words = common_words(config, COMPOSE)
    assert words[1:3] == ["scale.d_model=64", "scale.mtp_last=block"]
    assert COMPOSE(["stage=mvp2", *words, "trainer.budget=1steps"]).model.d_model == 64


def test_the_plans_flops_are_the_summarys() -> None:
    words = ["scale=mini"]
    config = COMPOSE(["stage=mvp2", *words, "trainer.budget=1steps"])
    size = measure(config.model, config.data.sequence_length)
    assert step_flops(COMPOSE, words, 3) == size.training_flops_per_token * 16 * 128


def test_records_are_strict_json(tmp_path: Path) -> None:
    record = Record("growth", "x", "f", {}, results={"low": float("-inf"), "seeds": {1: (1.0, float("nan"))}})
    file = RecordFile(tmp_path, "growth")
    file.begin(record)
    found = json.loads(file.path.read_text(), parse_constant=lambda name: pytest.fail(name))
    assert found["results"] == {"low": None, "seeds": {"1": [1.0, None]}} and plain(1.5) == 1.5
