"""Outcomes on disk, as metrics and tags, and on screen."""

import io
import math
from pathlib import Path

import pytest
from rich.console import Console

from superblock.staging.statements import Outcome, Statements, render

WHY = "Because somebody must be able to judge it."


@pytest.fixture
def statements() -> Statements:
    return Statements(
        "mvp2-tiny-s1",
        [
            Outcome("finite_loss", "gate", "passed", "all 64 losses are finite", "every one finite", WHY, 0.0),
            Outcome("bits_per_byte", "gate", "failed", "1.9 bits per byte", "at most 1.7 of its parent", WHY, 1.9),
            Outcome("exit_cost", "claim", "held", "+0.2%", "at most 1%", WHY, 0.002, -0.001, 0.005),
            Outcome("cost_predicted", "claim", "not held", "+80%", "within 20%", WHY, 0.8, -math.inf, math.inf),
            Outcome("beats_scratch", "claim", "undecided", "0 of 3 pairs", "fewer bits", WHY),
        ],
    )


def text_of(statements: Statements, *, encoding: str = "utf-8", width: int = 140) -> str:
    file = io.TextIOWrapper(io.BytesIO(), encoding=encoding)
    render(statements, Console(file=file, width=width))
    file.seek(0)
    return file.read()


def test_stored_and_read_again_they_are_the_same(statements: Statements, tmp_path: Path) -> None:
    statements.save(tmp_path)
    assert Statements.load(tmp_path) == statements
    assert [path.name for path in tmp_path.iterdir()] == ["statements.json"]
    assert "Infinity" not in (tmp_path / "statements.json").read_text()  # not JSON
    assert Statements.load(tmp_path / "elsewhere") is None


def test_only_gates_decide(statements: Statements) -> None:
    assert not statements.passed
    assert [one.name for one in statements.failures] == ["bits_per_byte"]
    assert Statements("a", [one for one in statements.outcomes if one.verdict != "failed"]).passed


def test_metrics_and_tags(statements: Statements) -> None:
    assert statements.metrics() == {
        "gate/finite_loss": 1.0,
        "gate/bits_per_byte": 0.0,
        "claim/exit_cost": 0.002,
        "claim/exit_cost/low": -0.001,
        "claim/exit_cost/high": 0.005,
        "claim/cost_predicted": 0.8,
    }
    tags = statements.tags()
    assert tags["gates"] == "failed: bits_per_byte"
    assert tags["claim.cost_predicted"] == "not held" and tags["claim.beats_scratch"] == "undecided"
    assert Statements("a").tags() == {"gates": "passed"}


def test_the_tables_say_what_was_measured_and_asked(statements: Statements) -> None:
    text = text_of(statements)
    assert max(map(len, text.splitlines())) <= 100
    row = next(line for line in text.splitlines() if "bits_per_byte" in line)
    assert "✗ failed" in row and "1.9 bits per byte" in row and "at most 1.7 of its parent" in row
    assert "✓ held" in text and "? undecided" in text
    plain = text_of(statements, encoding="ascii", width=80)
    assert plain.isascii() and "x failed" in plain and "+ passed" in plain


def test_a_line_as_it_is_measured(statements: Statements) -> None:
    failed = statements.outcomes[1]
    assert failed.line(ascii_only=False) == "gate    ✗ bits_per_byte"
    assert failed.line(ascii_only=True).isascii()
