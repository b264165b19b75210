"""Finding runs by their own files."""

import os
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest

from superblock.config.run import RunConfig, fingerprint
from superblock.tracking.files import read_json, write_json
from superblock.tracking.identity import write_identity, write_status
from superblock.tracking.runs import find_run, list_runs, newest_resumable, read_run, runs_root


@pytest.fixture
def root(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    return tmp_path / "runs"


def make(
    root: Path, name: str, status: str, *, stage: str = "mvp1", seed: int = 1, age: float = 0, **summary: float
) -> Path:
    config = RunConfig(seed=seed)
    config.stage.name = stage
    folder = root / name
    folder.mkdir(parents=True)
    write_identity(config, folder, name, "training", resume=False)
    extra = {"started": time.time() - age, "mlflow_run_id": f"{name}0123456789"}
    write_json(folder / "run.json", {**read_json(folder / "run.json"), **extra})
    write_status(folder, status)
    if summary:
        write_json(folder / "summary.json", summary)
    return folder


def test_list_and_find(root: Path) -> None:
    assert list_runs() == [] and find_run("newest") is None and runs_root() == Path("runs")
    make(root, "old", "FINISHED", age=100, loss=2.0)
    make(root, "new", "FINISHED", stage="mvp2", seed=2)
    (root / "artifacts").mkdir()
    (root / "broken").mkdir()
    (root / "broken" / "run.json").write_text("{")
    assert [run.name for run in list_runs()] == ["new", "old"]
    assert [run.name for run in list_runs(stage="mvp1")] == ["old"]
    assert [run.name for run in list_runs(fingerprint=fingerprint(RunConfig(seed=2)))] == ["new"]
    for text, name in {"newest": "new", "old": "old", "mvp1": "old", "old0123456789": "old", "new0123": "new"}.items():
        found = find_run(text)
        assert found is not None and found.name == name, text
    assert find_run("absent") is None and find_run("") is None
    assert list_runs()[1].summary == {"loss": 2.0}


def test_resume_takes_the_newest_interrupted(root: Path) -> None:
    mine = fingerprint(RunConfig())
    assert newest_resumable(mine) is None
    make(root, "first", "KILLED", age=50)
    assert newest_resumable(mine).name == "first"
    make(root, "other", "KILLED", seed=7, age=10)
    assert newest_resumable(mine).name == "first"
    make(root, "second", "FINISHED", age=5)
    assert newest_resumable(mine) is None  # what was interrupted before it is done since


def test_status_of_a_dead_process(root: Path) -> None:
    alive = make(root, "alive", "RUNNING")
    assert read_run(alive).status == "RUNNING" and not read_run(alive).resumable
    dead = make(root, "dead", "RUNNING")
    code = "import sys; from pathlib import Path; from superblock.tracking.identity import write_status as w; w(Path(sys.argv[1]), 'RUNNING')"
    subprocess.run([sys.executable, "-c", code, str(dead)], check=True)
    assert read_run(dead).status == "INTERRUPTED" and read_run(dead).resumable
    noted = read_json(alive / "status.json")
    write_json(alive / "status.json", {**noted, "process_started": noted["process_started"] - 1000})
    assert read_run(alive).status == "INTERRUPTED"  # the process number was given out again


def test_status_on_another_machine(root: Path) -> None:
    folder = make(root, "far", "RUNNING")
    write_json(folder / "status.json", {**read_json(folder / "status.json"), "host": socket.gethostname() + "x"})
    assert read_run(folder).status == "INTERRUPTED"
    (folder / "spool.jsonl").touch()
    assert read_run(folder).status == "RUNNING"
    os.utime(folder / "spool.jsonl", (0, 0))
    assert read_run(folder).status == "INTERRUPTED"


def test_resume_keeps_the_identity(root: Path) -> None:
    folder = make(root, "kept", "KILLED")
    before = read_json(folder / "run.json")
    assert write_identity(RunConfig(), folder, "kept", "training", resume=True) == 2
    after = read_json(folder / "run.json")
    assert after["uid"] == before["uid"] and after["mlflow_run_id"] == before["mlflow_run_id"]
    assert write_identity(RunConfig(), folder, "kept", "training", resume=False) == 1
    assert "mlflow_run_id" not in read_json(folder / "run.json")
