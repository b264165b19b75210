"""The picture of an experiment: a panel per group, a row per arm with every seed's difference, their mean and its interval."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from matplotlib.figure import Figure

from superblock.evaluation.curve import INK, dress

SEED_COLOUR, MEAN_COLOUR, LIMIT_COLOUR = "#9aa4b0", "#3b82f6", "#f97316"


@dataclass(frozen=True)
class Row:
    """One arm of a panel."""

    label: str
    points: Sequence[float]
    """One per seed."""
    mean: float
    low: float
    high: float
    """The interval of the mean; infinite where one point allows none."""


@dataclass(frozen=True)
class Panel:
    """Arms on one axis."""

    title: str
    axis: str
    rows: Sequence[Row]
    limit: float | None = None
    """A value that is asked for, drawn as a dashed line."""


def draw(panels: Sequence[Panel]) -> Figure:
    """The figure.

    Raises:
        ValueError: if there is no panel with a row.
    """
    shown = [panel for panel in panels if panel.rows]
    if not shown:
        raise ValueError("nothing to draw yet: no arm has been compared")
    height = 1.1 + 0.32 * max(len(panel.rows) for panel in shown)
    figure = Figure(figsize=(4.6 * len(shown), height), layout="constrained")
    for axes, panel in zip(figure.subplots(1, len(shown), squeeze=False)[0], shown, strict=True):
        for y, row in enumerate(panel.rows):
            axes.plot(row.points, [y + 0.22] * len(row.points), "o", color=SEED_COLOUR, markersize=4, zorder=2)
            if abs(row.low) != float("inf"):
                axes.plot([row.low, row.high], [y, y], color=MEAN_COLOUR, linewidth=2.2, zorder=3)
            axes.plot([row.mean], [y], "D", color=MEAN_COLOUR, markersize=5.5, zorder=4)
        axes.axvline(0, color=INK, linewidth=1.1)
        if panel.limit is not None:
            axes.axvline(panel.limit, color=LIMIT_COLOUR, linewidth=1.1, linestyle="--")
        axes.set_yticks(range(len(panel.rows)), [row.label for row in panel.rows])
        axes.set_ylim(len(panel.rows) - 0.5, -0.5)
        axes.set_xlabel(panel.axis, color=INK)
        axes.set_title(panel.title, color=INK, fontsize=10, loc="left")
        dress(axes)
    return figure


def row(label: str, points: Mapping[int, float], interval: Mapping[str, float | None], scale: float = 1.0) -> Row:
    """A row from values by seed and the plain interval of a record."""
    low, high = interval["low"], interval["high"]
    centre = interval["mean"]
    assert centre is not None
    return Row(
        label,
        [scale * value for value in points.values()],
        scale * centre,
        float("-inf") if low is None else scale * low,
        float("inf") if high is None else scale * high,
    )
