"""The heat map of the probes: a row per task, a column per arm, accuracy scaled between guessing and no error."""

from matplotlib.colors import LinearSegmentedColormap
from matplotlib.figure import Figure

from superblock.benchmarks.ablation.record import Record
from superblock.config.probes import ARMS
from superblock.evaluation.curve import INK

COLOURS = LinearSegmentedColormap.from_list("probes", ["#e5e7eb", "#93c5fd", "#1d4ed8"])
DARK_FROM = 0.6
"""Scaled accuracy from which the number in a cell is white."""


def draw(record: Record) -> Figure:
    """The figure.

    Raises:
        ValueError: if no run has finished.
    """
    cells = record.results.get("cells", {})
    if not cells:
        raise ValueError("nothing to draw yet: no probe has finished")
    arms = [arm for arm in ARMS if any(arm in row for row in cells.values())]
    figure = Figure(figsize=(2.2 + 1.25 * len(arms), 1.0 + 0.42 * len(cells)), layout="constrained")
    axes = figure.subplots()
    for y, row in enumerate(cells.values()):
        for x, arm in enumerate(arms):
            cell = row.get(arm)
            value = None if cell is None else min(1.0, max(0.0, cell["scaled"]))
            colour = "none" if value is None else COLOURS(value)
            axes.fill([x - 0.48, x + 0.48, x + 0.48, x - 0.48], [y - 0.45, y - 0.45, y + 0.45, y + 0.45], color=colour)
            text = "not run" if cell is None else f"{cell['mean']:.3f}"
            ink = INK if value is None else "white" if value >= DARK_FROM else "#111827"
            axes.text(x, y, text, ha="center", va="center", fontsize=9, color=ink)
    axes.set_xticks(range(len(arms)), arms, color=INK)
    axes.set_yticks(
        range(len(cells)), [f"{task}, chance {next(iter(row.values()))['chance']:.2g}" for task, row in cells.items()], color=INK
    )  # fmt: skip
    axes.set_xlim(-0.5, len(arms) - 0.5)
    axes.set_ylim(len(cells) - 0.5, -0.5)
    axes.xaxis.tick_top()
    axes.tick_params(length=0)
    for spine in axes.spines.values():
        spine.set_visible(False)
    return figure
