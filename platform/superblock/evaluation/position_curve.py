"""How much context helps, as a picture: bits per byte over the length of context, a line per stage."""

from collections.abc import Mapping, Sequence
from pathlib import Path

from matplotlib.figure import Figure

from superblock.evaluation.curve import INK, dress, write_picture

LINE_COLOURS = ("#3b82f6", "#f97316", "#16a34a", "#c026d3", "#b45309", "#0891b2")
Points = Sequence[tuple[int, float]]
"""(longest context of a stretch, bits per byte)."""


def draw(lines: Mapping[str, Points], trained_length: int) -> Figure:
    """A figure with a logarithmic axis of context, and a dashed line where training ended, if something lies beyond.

    Raises:
        ValueError: if no line has a point.
    """
    shown = {name: list(points) for name, points in lines.items() if len(points)}
    if not shown:
        raise ValueError("a curve over context needs at least one point")
    figure = Figure(figsize=(7.2, 3.6), layout="constrained")
    axes = figure.subplots()
    for number, (name, points) in enumerate(shown.items()):
        x, y = zip(*points, strict=True)
        colour = LINE_COLOURS[number % len(LINE_COLOURS)]
        axes.plot(x, y, color=colour, linewidth=1.8, marker="o", markersize=4, label=name)
    ends = sorted({x for points in shown.values() for x, _ in points})
    axes.set_xscale("log", base=2)
    axes.set_xticks(ends, [str(end) for end in ends])
    axes.minorticks_off()
    if ends[-1] > trained_length:
        axes.axvline(trained_length, color=INK, linewidth=1.1, linestyle="--", label="longest in training")
    axes.set_xlabel("tokens of context, up to", color=INK)
    axes.set_ylabel("bits per byte", color=INK)
    dress(axes)
    figure.legend(frameon=False, labelcolor=INK, loc="outside upper center", ncols=5, fontsize=9)
    return figure


def position_curve(lines: Mapping[str, Points], trained_length: int, path: Path) -> None:
    """Draws the picture into a .svg or .png file; the same data give the same bytes.

    Raises:
        ValueError: for another kind of file, or if no line has a point.
    """
    write_picture(lambda: draw(lines, trained_length), path)
