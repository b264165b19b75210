"""A run measures its model by context and by package in the pass that tests it."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from superblock.evaluation.language import read_language
from superblock.tracking.spool import metric_history
from superblock.training.loop import train

QUICK = ("stage=mvp1", "evaluation=quick", "evaluation.test=true", "trainer.budget=2steps", "trainer.progress=false")


def test_a_run_measures_itself(compose: Callable[..., Any], small: Callable[..., list[str]]) -> None:
    summary = train(compose("run", *small("name=own", *QUICK)))
    assert summary is not None
    found, history = read_language(Path("runs/own")), metric_history(Path("runs/own"))
    tested = summary.splits["test"]
    assert found["bits_per_byte"] == pytest.approx(tested.bits_per_byte, rel=1e-12)
    assert found["perplexity"] == pytest.approx(tested.perplexity, rel=1e-12)
    assert found["accuracy"] == tested.accuracy_top1
    assert found["data_digest"] == summary.data_digest
    assert history["language/bits_per_byte"] == [(0, found["bits_per_byte"])]
    assert [step for step, _ in history["language/position/bits_per_byte"]] == [4, 8, 16, 32]
    assert found["packages"] == []  # its files lie in one folder


def test_it_can_be_left_out(compose: Callable[..., Any], small: Callable[..., list[str]]) -> None:
    train(compose("run", *small("name=without", *QUICK, "evaluation.language=false")))
    assert read_language(Path("runs/without")) == {}
