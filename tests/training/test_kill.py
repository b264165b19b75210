"""A run that is killed without warning and resumed ends as one that never was."""

import json
import os
import random
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from superblock.tracking.runs import list_runs
from superblock.tracking.spool import metric_history
from superblock.training.loop import train

STEPS = 60


def steps_done(name: str) -> int:
    """The newest step in the run's spool."""
    spool = Path("runs") / name / "spool.jsonl"
    return max((step for step, _ in metric_history(spool).get("train/loss", [])), default=0) if spool.exists() else 0


def kill_at(step: int, overrides: list[str]) -> None:
    """Starts the run as a user would and kills it as soon as it has done `step` steps."""
    command = [sys.executable, "-m", "superblock.cli", "run", *overrides]
    process = subprocess.Popen(command, env={**os.environ, "OMP_NUM_THREADS": "1"}, stdout=subprocess.DEVNULL)
    deadline = time.monotonic() + 120
    while steps_done("killed") < step and process.poll() is None and time.monotonic() < deadline:
        time.sleep(0.02)
    process.send_signal(signal.SIGKILL)
    assert process.wait() == -signal.SIGKILL, "the run ended before it could be killed"


@pytest.mark.slow
@pytest.mark.skipif(sys.platform == "win32", reason="SIGKILL")
def test_killed_twice_and_resumed_is_bit_for_bit_the_same(
    compose: Callable[..., Any], small: Callable[..., list[str]]
) -> None:
    settings = small(
        f"trainer.budget={STEPS}steps", "trainer.checkpoint_every=3steps", "model.embedding_dropout=0.1",
        "stage=mvp2", "evaluation.every=25", "evaluation.samples=0", "tracking=sqlite", "tracking.flush_seconds=0.2",
    )  # fmt: skip
    train(compose("run", *settings, "name=whole"))
    moments = random.Random().sample(range(4, STEPS - 5), 2)  # any step will do: each run of this test tries others
    kill_at(min(moments), [*settings, "name=killed"])
    assert list_runs()[0].status == "INTERRUPTED"
    kill_at(max(moments), [*settings, "resume=auto"])
    summary = train(compose("run", *settings, "resume=auto"))
    assert summary is not None
    assert summary.name == "killed"
    whole, killed = metric_history(Path("runs/whole")), metric_history(Path("runs/killed"))
    assert killed["train/loss"] == whole["train/loss"], moments
    assert killed["val/bits_per_byte"] == whole["val/bits_per_byte"], moments
    results = [json.loads((Path("runs") / name / "summary.json").read_text())["splits"] for name in ("whole", "killed")]
    assert results[0] == results[1], moments
    assert json.loads(Path("runs/killed/run.json").read_text())["starts"] == 3
