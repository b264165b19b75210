"""The picture is a function of its data."""

from pathlib import Path

import pytest

from superblock.evaluation.curve import curve, draw

POINTS = {
    "train": [(1000.0 * i, 1.4 + 4 / i) for i in range(1, 60)],
    "val": [(6000.0 * i, 1.5 + 3 / (6 * i)) for i in range(1, 10)],
    "test": [(59000.0, 1.52)],
}
REFERENCES = {"trigram": 1.674, "xz": 1.586}


@pytest.mark.parametrize("kind", ["svg", "png"])
def test_same_data_same_bytes(tmp_path: Path, kind: str) -> None:
    first, second, other = (tmp_path / f"{name}.{kind}" for name in "abc")
    curve(POINTS, REFERENCES, first)
    curve(POINTS, REFERENCES, second)
    curve(POINTS | {"test": [(59000.0, 1.6)]}, REFERENCES, other)
    assert first.read_bytes() == second.read_bytes()
    assert first.read_bytes() != other.read_bytes()
    assert len(list(tmp_path.iterdir())) == 3


def test_lines_marks_and_references() -> None:
    figure = draw(POINTS, REFERENCES)
    (axes,) = figure.axes
    labels = [text.get_text() for text in figure.legends[0].get_texts()]
    assert labels == ["training", "validation", "test 1.520", "trigram 1.674", "xz -9e 1.586"]
    train, _, test, trigram, _ = axes.get_lines()
    assert len(train.get_xdata()) == 59 and test.get_marker() == "o"
    assert list(trigram.get_ydata()) == [1.674, 1.674]
    low, high = axes.get_ylim()
    assert low < 1.4 + 4 / 59 and high < 4  # the first steps do not flatten the rest


def test_missing_series_and_wrong_files(tmp_path: Path) -> None:
    curve({"train": [], "val": [(10.0, 2.0), (20.0, 1.9)]}, {}, tmp_path / "a.svg")
    with pytest.raises(ValueError, match="at least one point"):
        curve({"train": []}, REFERENCES, tmp_path / "b.svg")
    with pytest.raises(ValueError, match=r"c\.pdf"):
        curve(POINTS, REFERENCES, tmp_path / "c.pdf")
