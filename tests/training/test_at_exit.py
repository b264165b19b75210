"""A finished run, evaluated as the smaller models inside it."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from superblock.config.fields import ConfigError
from superblock.data.corpus import prepare
from superblock.evaluation.at_exit import evaluate_at
from superblock.generation.session import load_checkpoint
from superblock.tracking.spool import metric_history
from superblock.training.loop import train
from superblock.training.manifest import newest_whole

Overrides = Callable[..., list[str]]
Compose = Callable[..., Any]


QUICK = ("stage=mvp2", "evaluation.samples=0", "evaluation.reference_points=false", "evaluation.batch_size=64")


@pytest.mark.parametrize(("precision", "exits"), [("fp32", (1, 2)), ("bf16", (2,))])
def test_results_are_those_that_the_runs_own_test_gave_its_exits(
    compose: Compose, small: Overrides, superblock: Callable[..., Any], precision: str, exits: tuple[int, ...]
) -> None:
    config = compose("run", *small("name=deep", *QUICK, f"trainer.precision={precision}"))
    summary = train(config)
    assert summary is not None
    path, _ = newest_whole(Path("runs/deep"))
    assert path is not None
    before = sorted(str(p) for p in Path("runs").rglob("*"))

    corpus, history = prepare(config.data), metric_history(Path("runs/deep"))
    for s in exits:
        results = evaluate_at(path, corpus, s)
        assert set(results) == {"validation", "test"}
        for split, prefix in (("validation", "final/val_"), ("test", "test/")):
            [(_, bits)] = history[f"{prefix}exit_{s}/bits_per_byte"]
            [(_, top1)] = history[f"{prefix}exit_{s}/accuracy_top1"]
            assert results[split].bits_per_byte == pytest.approx(bits, rel=1e-5)
            assert results[split].accuracy_top1 == pytest.approx(top1, abs=2e-3)
    whole = evaluate_at(path, corpus, 3)["test"]
    assert whole.bits_per_byte == pytest.approx(summary.splits["test"].bits_per_byte, rel=1e-6)
    assert load_checkpoint(path, 2).model.config.num_superblocks == 2

    answer = superblock("run", "resume=deep", "exit_at=2", "trainer.threads=1")
    assert answer.status == 0
    assert "at exit 2 of 3" in answer.out
    row = next(line.split() for line in answer.out.splitlines() if line.strip().startswith("test"))
    assert row[3:5] == [f"{summary.exits['2']['bits_per_byte']:.4f}", f"{summary.splits['test'].bits_per_byte:.4f}"]
    assert row[5].endswith("%")
    assert sorted(str(p) for p in Path("runs").rglob("*")) == before  # nothing was trained or recorded


def test_refusals_in_words(compose: Compose, small: Overrides, superblock: Callable[..., Any]) -> None:
    train(compose("run", *small("name=deep", "stage=mvp2", "evaluation=quick", "trainer.budget=2steps")))
    run = ("trainer.threads=1",)
    for words, text in (
        (("exit_at=2",), "exit_at=2: evaluates a finished run and trains nothing; say which: resume=<its name>"),
        (("exit_at=2", "resume=auto"), "say which: resume=<its name>"),
        (("exit_at=0", "resume=deep"), "exit_at=0: must be at least 1"),
        (("exit_at=4", "resume=deep"), "exit_at=4: the model has 3 superblocks; must be 1 to 3"),
        (("exit_at=2", "resume=dep"), "did you mean deep?"),
    ):
        answer = superblock("run", *words, *run)
        assert answer.status == 2, words
        assert text in answer.err
        assert len(answer.err.strip().splitlines()) <= 4

    summary = Path("runs/deep/summary.json")
    content = json.loads(summary.read_text())
    summary.write_text(json.dumps(content | {"data_digest": "other"}))
    assert "its text has changed since (digest other then" in superblock("run", "exit_at=2", "resume=deep", *run).err
    status = Path("runs/deep/status.json")
    status.write_text(json.dumps({**json.loads(status.read_text()), "status": "KILLED"}))
    assert (
        "deep is killed; finish it first with resume=deep alone"
        in superblock("run", "exit_at=2", "resume=deep", *run).err
    )


def test_another_tokenizer_is_refused(compose: Compose, small: Overrides) -> None:
    config = compose("run", *small("name=deep", "stage=mvp2", "evaluation=quick", "trainer.budget=2steps"))
    train(config)
    path, _ = newest_whole(Path("runs/deep"))
    assert path is not None
    config.data.vocab_size = 384
    with pytest.raises(ConfigError, match="another tokenizer"):
        evaluate_at(path, prepare(config.data), 1)


def test_a_family_without_exits(compose: Compose, small: Overrides, root: Path, superblock: Callable[..., Any]) -> None:
    file = root / "tests" / "examples" / "own_model.py"
    train(
        compose(
            "run",
            *small("name=own", f"model.file={file}", "model.family=gru", "evaluation=quick", "trainer.budget=2steps"),
        )
    )
    for command in (("run", "resume=own", "trainer.threads=1"), ("generate", "run=own")):
        answer = superblock(*command, "exit_at=1")
        assert answer.status == 2
        assert "exit_at=1: a model of family gru has no exits; leave exit_at out" in answer.err
