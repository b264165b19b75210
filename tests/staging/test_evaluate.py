"""All statements of a finished run: said, saved, the same a second time, and never a crash."""

from pathlib import Path
from typing import Any

import pytest

from superblock.config.growth import CLAIMS, GATES, StatementConfig
from superblock.staging import claims, gates
from superblock.staging.statements import Statements, evaluate, speaks_unicode


def files(folder: Path) -> set[str]:
    return {str(path.relative_to(folder)) for path in folder.rglob("*")}


@pytest.mark.slow
def test_a_grown_run_is_measured_and_a_second_time_the_same(stages: Any) -> None:
    config = stages.config("second")
    before, lines = files(Path()), []
    found = evaluate(stages.record("second"), config, compose=stages.compose, say=lines.append)
    assert files(Path()) - before == {"runs/second/statements.json"}
    assert [one.name for one in found.outcomes] == [*config.stage.gates, *config.stage.claims]
    assert [one.kind for one in found.outcomes] == ["gate"] * 7 + ["claim"] * 3
    verdicts = {one.name: one.verdict for one in found.outcomes}
    sound = ("finite_loss", "gradients", "no_dead_experts", "growth_exact", "resume", "distinct_4grams")
    assert {verdicts[name] for name in sound} == {"passed"}, found.outcomes
    assert all(one.because == {**config.stage.gates, **config.stage.claims}[one.name].because for one in found.outcomes)
    assert len(lines) == len(found.outcomes)
    for line, one in zip(lines, found.outcomes, strict=True):
        assert line == one.line(ascii_only=not speaks_unicode())
    assert Statements.load(Path("runs/second")) == found
    again = evaluate(stages.record("second"), config, compose=stages.compose, say=lines.append)
    assert again == found


def test_a_gate_that_fails_stops_the_promotion(stages: Any) -> None:
    """Twelve steps are not enough to beat a trigram model."""
    config = stages.config("first")
    config.stage.gates = {name: config.stage.gates[name] for name in ("finite_loss", "bits_per_byte", "gradients")}
    found = evaluate(stages.record("first"), config, compose=stages.compose, say=lambda text: None)
    assert not found.passed and [one.name for one in found.failures] == ["bits_per_byte"]
    [failure] = found.failures
    assert "bits per byte" in failure.measured and "trigram" in failure.asked


@pytest.mark.parametrize(
    ("error", "words"),
    [
        (ValueError("the disk is full"), "could not be measured: the disk is full"),
        (OSError(28, "No space left"), "No space left"),
        (TypeError("what is this"), r"TypeError: what is this (test_evaluate.py, line "),
        (MemoryError(), "MemoryError"),
    ],
)
def test_whatever_goes_wrong_is_an_outcome(
    stages: Any, monkeypatch: pytest.MonkeyPatch, error: Exception, words: str
) -> None:
    def fail(*_: Any) -> Any:
        raise error

    monkeypatch.setitem(gates.GATES, "resume", fail)
    monkeypatch.setitem(claims.CLAIMS, "exit_cost", fail)
    config = stages.config("second")
    config.stage.gates = {name: config.stage.gates[name] for name in ("resume", "finite_loss")}
    found = evaluate(stages.record("second"), config, compose=stages.compose, say=lambda text: None)
    outcomes = {one.name: one for one in found.outcomes}
    assert outcomes["resume"].verdict == "failed" and words in outcomes["resume"].measured
    assert outcomes["exit_cost"].verdict == "undecided" and words in outcomes["exit_cost"].measured
    assert outcomes["finite_loss"].verdict == "passed"
    assert Statements.load(Path("runs/second")) == found


def test_interrupting_passes(stages: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupt(*_: Any) -> Any:
        raise KeyboardInterrupt

    monkeypatch.setitem(gates.GATES, "gradients", interrupt)
    with pytest.raises(KeyboardInterrupt):
        evaluate(stages.record("second"), stages.config("second"), compose=stages.compose, say=lambda text: None)
    assert Statements.load(Path("runs/second")) is None


def test_a_statement_of_another_version_fails_in_words(stages: Any) -> None:
    config = stages.config("second")
    config.stage.gates, config.stage.claims = {"from_the_future": StatementConfig(because="why")}, {}
    [outcome] = evaluate(stages.record("second"), config, compose=stages.compose, say=lambda text: None).outcomes
    assert outcome.verdict == "failed" and "knows no gate of that name" in outcome.measured


@pytest.mark.parametrize("lost", ["checkpoints", "summary.json"])
def test_a_damaged_run_fails_in_words(stages: Any, lost: str) -> None:
    path = Path("runs/second") / lost
    path.rename(path.with_name("elsewhere"))
    config = stages.config("second")
    config.stage.gates = {name: config.stage.gates[name] for name in ("gradients", "bits_per_byte")}
    found = evaluate(stages.record("second"), config, compose=stages.compose, say=lambda text: None)
    assert "gradients" in [one.name for one in found.failures]
    assert all("could not be measured" in one.measured for one in found.failures)
    assert all("Error" not in one.measured for one in found.failures)


def test_what_the_configuration_knows_is_what_can_be_measured() -> None:
    assert set(gates.GATES) == set(GATES)
    assert set(claims.CLAIMS) == set(CLAIMS)
