"""A pipeline that is killed at any moment and started again ends as one that never was."""

import json
import os
import random
import signal
import sqlite3
import subprocess
import sys
import time
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest

from superblock.tracking.runs import list_runs

KILLS = 3


def start(words: tuple[str, ...]) -> subprocess.Popen[str]:
    command = [sys.executable, str(Path(__file__).with_name("pipeline_worker.py")), *words]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    return subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)


@pytest.mark.slow
@pytest.mark.skipif(sys.platform == "win32", reason="SIGKILL")
def test_killed_at_any_moment_it_goes_on(stages: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "empty").mkdir()
    monkeypatch.chdir(tmp_path / "empty")
    words = (
        *stages.words, "tracking=sqlite", "tracking.flush_seconds=0.2", "promote=true", "evaluation.samples=0",
        "trainer.budget=30steps", "trainer.checkpoint_every=5steps",
    )  # fmt: skip
    moments = [random.Random().uniform(4, 25) for _ in range(KILLS)]  # any will do: each run of this test tries others
    for seconds in moments:
        process = start(words)
        time.sleep(seconds)
        process.send_signal(signal.SIGKILL)
        process.communicate()
    process = start(words)
    said, _ = process.communicate(timeout=300)
    assert process.returncode == 0, (moments, said)
    assert sorted(run.stage for run in list_runs() if run.status == "FINISHED") == ["mvp1", "mvp2"], (moments, said)
    decided = [json.loads(path.read_text())["promoted"] for path in Path("runs").glob("*/promotion.json")]
    assert decided == [True, True], (moments, said)
    with closing(sqlite3.connect("mlflow.db")) as store:
        rows = store.execute("SELECT name, alias, version FROM registered_model_aliases").fetchall()
        states = dict(store.execute("SELECT name, status FROM runs"))
    assert {(name, alias) for name, alias, _ in rows} == {
        (f"{stage}-mini", alias) for stage in ("mvp1", "mvp2") for alias in ("promoted", "promoted-s1")
    }, (moments, said)
    finished = {run.name for run in list_runs() if run.status == "FINISHED"}
    assert all(states[name] == "FINISHED" for name in finished), (moments, states)
