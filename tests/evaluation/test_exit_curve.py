"""The picture and the table of exits are functions of their data."""

import io
from pathlib import Path

import pytest
from rich.console import Console

from superblock.evaluation.exit_curve import draw, exit_curve
from superblock.evaluation.exit_table import exit_table

EXITS = {1: 1.6, 2: 1.55, 3: 1.5, 4: 1.49, 5: 1.48, 6: 1.47}


@pytest.mark.parametrize("kind", ["svg", "png"])
def test_same_data_same_bytes(tmp_path: Path, kind: str) -> None:
    first, second, other = (tmp_path / f"{name}.{kind}" for name in "abc")
    exit_curve(EXITS, {3: 1.48}, first)
    exit_curve(EXITS, {3: 1.48}, second)
    exit_curve(EXITS, {3: 1.47}, other)
    assert first.read_bytes() == second.read_bytes() != other.read_bytes()
    assert len(list(tmp_path.iterdir())) == 3


def test_the_distance_to_a_model_of_that_depth_is_written_beside_it() -> None:
    [axes] = draw(EXITS, {1: 1.5, 3: 1.5, 12: 1.4}).axes
    assert [text.get_text() for text in axes.texts] == ["+6.7%", "+0.0%"]
    curve, marks = axes.lines[:2]
    assert list(curve.get_xdata()) == [1, 2, 3, 4, 5, 6]
    assert list(marks.get_xdata()) == [1, 3]  # there is no exit at 12
    assert list(axes.get_xticks()) == [1, 2, 3, 4, 5, 6]
    [alone] = draw({1: 1.6, 2: 1.5}, {}).axes
    assert len(alone.lines) == 1


def test_refusals(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="at least one"):
        draw({}, {})
    with pytest.raises(ValueError, match=r"\.svg or a \.png"):
        exit_curve(EXITS, {}, tmp_path / "a.gif")


def text_of(exits: dict[str, dict[str, float]]) -> str:
    file = io.StringIO()
    table = exit_table(exits)
    assert table is not None
    Console(file=file, width=100).print(table)
    return file.getvalue()


def test_the_table_has_the_depths_of_stages_and_the_whole() -> None:
    exits = {str(s): {"bits_per_byte": b, "perplexity": 9.0, "tokens_per_second": 9e4 / s} for s, b in EXITS.items()}
    exits["3"]["trained_bits_per_byte"] = 1.49
    lines = text_of(exits).splitlines()
    rows = [line.split() for line in lines if line.strip()[:1].isdigit()]
    assert rows == [
        ["1", "1.600", "90,000"],
        ["3", "1.500", "1.490", "(+0.7%)", "30,000"],
        ["6", "1.470", "15,000"],
    ]
    assert "trained there" in lines[0]


def test_without_speeds_or_other_models_their_columns_are_left_out() -> None:
    text = text_of({"1": {"bits_per_byte": 1.6, "perplexity": 9.0}, "2": {"bits_per_byte": 1.5, "perplexity": 8.0}})
    assert "tokens/s" not in text
    assert "trained" not in text
    assert ["2", "1.500"] in [line.split() for line in text.splitlines()]


def test_one_superblock_has_no_table() -> None:
    assert exit_table({"1": {"bits_per_byte": 1.5, "perplexity": 9.0}}) is None
    assert exit_table({}) is None
