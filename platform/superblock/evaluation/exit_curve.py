"""A model's exits as a picture, beside models that were trained at a depth."""

from collections.abc import Mapping
from pathlib import Path

from matplotlib.figure import Figure

from superblock.evaluation.curve import COLOURS, INK, dress, write_picture

EXITS, TRAINED = COLOURS["val"], COLOURS["test"]


def draw(exits: Mapping[int, float], trained: Mapping[int, float]) -> Figure:
    """A figure with a line through the exits, and a mark for each other model with the exit's distance to it.

    Args:
        exits: bits per byte by number of superblocks; the last is the model itself.
        trained: bits per byte of models that end at a depth; those of depths without an exit are left out.

    Raises:
        ValueError: without an exit.
    """
    if not exits:
        raise ValueError("a curve of exits needs at least one")
    depths, inside = sorted(exits), sorted(set(exits) & set(trained))
    figure = Figure(figsize=(7.2, 3.6), layout="constrained")
    axes = figure.subplots()
    label = "exits of this model"
    axes.plot(depths, [exits[s] for s in depths], color=EXITS, linewidth=1.8, marker="o", label=label)
    if inside:
        values, label = [trained[s] for s in inside], "models trained at that depth"
        axes.plot(inside, values, color=TRAINED, linestyle="none", marker="D", zorder=4, label=label)
    for s in inside:
        axes.plot([s, s], [exits[s], trained[s]], color=INK, linewidth=1.0, linestyle=":")
        place = (s, (exits[s] + trained[s]) / 2)
        axes.annotate(
            f"{exits[s] / trained[s] - 1:+.1%}", place, xytext=(7, 0), textcoords="offset points", color=INK,
            fontsize=9, verticalalignment="center",
        )  # fmt: skip
    axes.set_xticks(depths)
    axes.margins(x=0.08, y=0.12)
    axes.set_xlabel("superblocks", color=INK)
    axes.set_ylabel("bits per byte", color=INK)
    dress(axes)
    figure.legend(frameon=False, labelcolor=INK, loc="outside upper center", ncols=2, fontsize=9)
    return figure


def exit_curve(exits: Mapping[int, float], trained: Mapping[int, float], path: Path) -> None:
    """Draws the picture into a .svg or .png file; the same data give the same bytes.

    Raises:
        ValueError: for another kind of file, or without an exit.
    """
    write_picture(lambda: draw(exits, trained), path)
