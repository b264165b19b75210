"""What `plan` says about the training of a stage: from finished runs, and without any."""

import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

from superblock.planning.finished import read_finished
from superblock.planning.plan import WIDTH
from superblock.planning.prediction import afterwards
from superblock.tracking.runs import list_runs

Command = Callable[..., Any]


def rows(text: str, begin: str) -> list[str]:
    return [line.strip() for line in text.splitlines() if line.strip().startswith(begin)]


def test_without_runs_it_says_what_to_run(superblock: Command) -> None:
    said = " ".join(superblock("plan", "stage=mvp3", "scale=mini").out.split())
    assert "no finished and tested run on this text at scale=mini" in said
    assert "`superblock run stage=mvp2 scale=mini` makes one" in said
    assert "stage=mvp1` makes one" in " ".join(superblock("plan").out.split())


def test_a_stage_that_is_only_planned_has_no_prediction(superblock: Command, four_stages: list[str]) -> None:
    said = superblock("plan", "stage=mvp4", "scale=full").out
    assert "rediction:" not in said and "80%" not in said


def test_the_next_stage_with_intervals_and_the_earlier_ones_beside_what_came(
    superblock: Command, four_stages: list[str]
) -> None:
    for name in four_stages[2:]:  # as if mvp3 and mvp4 were still to come
        Path("runs", name, "status.json").write_text('{"status": "FAILED"}')
    answer = superblock("plan", "stage=mvp3", "price_per_hour=6")
    assert answer.status == 0
    [quality] = rows(answer.out, "test, bits per byte")
    low, high = (float(word) for word in quality.split()[-3::2])
    assert low < 1.4885 < high
    assert rows(answer.out, "training, budget 11 minutes") and rows(answer.out, "peak memory")
    [whole], [cost] = rows(answer.out, "all of it"), rows(answer.out, "cost at 6 an hour")
    assert abs(float(cost.split()[5]) - float(whole.split("evaluation")[1].split()[0]) / 10) < 0.02
    assert "From scratch: 80% intervals from 2 runs of 2 configurations (1, 3 superblocks)" in answer.out
    [second] = rows(answer.out, "mvp2, after")
    assert second.split()[-2:] == ["1.469", "inside"]
    assert not rows(answer.out, "mvp1")  # nothing was finished before it
    assert max(map(len, answer.out.splitlines())) <= WIDTH


def test_a_stored_prediction_is_shown_as_it_was(superblock: Command, four_stages: list[str]) -> None:
    runs = read_finished(list_runs())
    found = afterwards(runs[1], runs)
    assert found is not None
    stored = found.to_dict() | {"bits_per_byte": {"value": 2.5, "low": 2.25, "high": 2.75}}
    path = Path("runs", four_stages[1], "summary.json")
    path.write_text(json.dumps(json.loads(path.read_text()) | {"prediction": stored}))
    said = superblock("plan", "stage=mvp3").out
    [second] = rows(said, "mvp2")
    assert second.split() == ["mvp2", "bits", "per", "byte", "2.500", "2.250", "to", "2.750", "1.469", "outside"]
    assert rows(said, "mvp3, after") and "after: computed now" in said


def test_a_promoted_parent_is_grown_from(superblock: Command, four_stages: list[str]) -> None:
    folder = Path("runs", four_stages[1])
    (folder / "promotion.json").write_text('{"promoted": false}')
    assert "From scratch" in superblock("plan", "stage=mvp3").out
    (folder / "promotion.json").write_text('{"promoted": true}')
    said = superblock("plan", "stage=mvp3").out
    assert f"Growing from {four_stages[1]}" in " ".join(said.split())
    [own], [whole] = rows(said, "FLOPs of this training"), rows(said, "FLOPs of its whole lineage")
    assert float(whole.split()[5]) > float(own.split()[4])


def test_what_is_certain_has_no_interval(superblock: Command, four_stages: list[str]) -> None:
    for name in four_stages:
        path = Path("runs", name, "run.json")
        path.write_text(path.read_text().replace('"scale": "tiny"', '"scale": "mini"'))
    [steps] = rows(superblock("plan", "stage=mvp2", "scale=mini").out, "optimizer steps")
    assert steps.split() == ["optimizer", "steps", "300", "exact"]


def test_it_needs_neither_torch_nor_mlflow(four_stages: list[str]) -> None:
    code = (
        "import sys; sys.argv = ['superblock', 'plan', 'stage=mvp4']\n"
        "from superblock.cli.__main__ import main; main(); assert not {'torch', 'mlflow', 'scipy'} & set(sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True)
    assert "80% interval" in done.stdout
