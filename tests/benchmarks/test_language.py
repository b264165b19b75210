"""The language suite on finished runs: what it measures is what their own test found, once."""

import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from superblock.config.benchmark import BenchmarkConfig, SuiteConfig
from superblock.config.fields import ConfigError
from superblock.config.tracking import TrackingConfig
from superblock.evaluation.language import read_language
from superblock.tracking.runs import list_runs
from superblock.tracking.spool import metric_history

WORDS = ("suite=language", "threads=1", "tracking=none")


def test_a_run_is_measured_once(finished_run: Path, superblock: Callable[..., Any]) -> None:
    (finished_run / "language.json").unlink()
    before = metric_history(finished_run)["language/bits_per_byte"]
    answer = superblock("benchmark", *WORDS)
    assert answer.status == 0, answer.err
    found = read_language(finished_run)
    tested = json.loads((finished_run / "summary.json").read_text())["splits"]["test"]
    assert found["bits_per_byte"] == pytest.approx(tested["bits_per_byte"], rel=1e-6)
    assert found["perplexity"] == pytest.approx(tested["perplexity"], rel=1e-5)
    assert found["accuracy"] == pytest.approx(tested["accuracy_top1"], abs=1e-3)
    assert before[0][1] == pytest.approx(found["bits_per_byte"], rel=1e-6)
    assert {one["name"] for one in found["packages"]} == {"email", "json"}
    assert f"{found['bits_per_byte']:.4f}" in answer.out and "email" in answer.out
    assert Path("runs/benchmarks/language/positions.svg").read_text().startswith("<?xml")
    [run] = list_runs()
    assert run.status == "FINISHED"  # reopened, not run again

    picture = Path("runs/benchmarks/language/positions.svg").read_bytes()
    again = superblock("benchmark", *WORDS)
    assert "measured already" in again.out and f"{found['bits_per_byte']:.4f}" in again.out
    assert Path("runs/benchmarks/language/positions.svg").read_bytes() == picture


def test_other_text_and_longer_contexts(finished_run: Path, superblock: Callable[..., Any]) -> None:
    answer = superblock("benchmark", *WORDS, "language.beyond=2", "language.runs=[mvp1]")
    found = read_language(finished_run)
    assert answer.status == 0 and [one["name"] for one in found["beyond"]] == ["33-64"]
    assert "no model was trained" in " ".join(answer.out.split())
    assert [step for step, _ in metric_history(finished_run)["language/position/accuracy"]][-1] == 64

    assert superblock("benchmark", *WORDS, "language.split=validation").status == 0
    summary = json.loads((finished_run / "summary.json").read_text())
    other = read_language(finished_run, "validation")
    assert other["bits_per_byte"] == pytest.approx(summary["splits"]["validation"]["bits_per_byte"], rel=1e-6)
    assert read_language(finished_run) == found


def test_refusals_in_words(finished_run: Path, superblock: Callable[..., Any]) -> None:
    answer = superblock("benchmark", *WORDS, "language.runs=[mvp9]")
    assert answer.status == 2 and f"the newest are {finished_run.name}" in answer.err
    assert answer.err.startswith("language.runs=[mvp9]: there is no such run; did you mean mvp1?\n")
    answer = superblock("benchmark", *WORDS, "repeats=3")
    assert answer.status == 2 and "has no effect with suite=language" in answer.err
    summary = finished_run / "summary.json"
    summary.write_text(json.dumps(json.loads(summary.read_text()) | {"data_digest": "other"}))
    (finished_run / "language.json").unlink()
    answer = superblock("benchmark", *WORDS)
    assert answer.status == 1 and "its text has changed since (digest other then" in answer.out


@pytest.mark.parametrize("words", [("suite=language", "language.runs=[nope]"), ("suite=harness", "harness.run=nope")])
def test_a_run_that_is_not_there_is_told_before_torch_is_loaded(tmp_path: Path, words: tuple[str, str]) -> None:
    code = (
        "import sys\nfrom superblock.cli.__main__ import main\ntry: main()\n"
        "finally: print([name for name in ('torch', 'lightning', 'matplotlib', 'transformers') if name in sys.modules])"
    )
    command = [sys.executable, "-c", code, "benchmark", "tracking=none", *words]
    answer = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=120)
    assert answer.returncode == 2 and answer.stdout.strip() == "[]"
    assert answer.stderr.startswith(f"{words[1]}: ") and "superblock run stage=mvp1" in answer.stderr


def test_without_runs() -> None:
    from superblock.benchmarks.language.command import run

    config = BenchmarkConfig(suite=SuiteConfig("language"), tracking=TrackingConfig(store="none"), threads=1)
    with pytest.raises(ConfigError, match="there is no finished run with a checkpoint"):
        run(config)
