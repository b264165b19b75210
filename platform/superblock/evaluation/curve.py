"""The learning curve as a picture: bits per byte over tokens, beside what simpler models need for the same text."""

import io
import os
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import matplotlib
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import EngFormatter

INK = "#7d8590"
"""Readable on white (contrast 3.7) and on a dark page (5.0 on #0d1117); the background is transparent."""
COLOURS = {"train": "#9aa4b0", "val": "#3b82f6", "test": "#f97316"}
REFERENCE_COLOURS = ("#16a34a", "#c026d3", "#b45309")
TITLES = {"train": "training", "val": "validation", "test": "test", "xz": "xz -9e"}

Points = Sequence[tuple[float, float]]
"""(tokens seen, bits per byte)."""


def draw(points: Mapping[str, Points], reference_points: Mapping[str, float]) -> Figure:
    """A figure with a line for each series, a mark for a series of one point, and a horizontal line per reference.

    Args:
        points: series by name, such as `train`, `val` and `test`; an empty series is left out.
        reference_points: bits per byte by name, such as `trigram` and `xz`.

    Raises:
        ValueError: if no series has a point.
    """
    series = {name: list(values) for name, values in points.items() if len(values)}
    if not series:
        raise ValueError("a learning curve needs at least one point")
    figure = Figure(figsize=(7.2, 3.6), layout="constrained")
    axes = figure.subplots()
    for name, values in series.items():
        x, y = zip(*values, strict=True)
        style = {"marker": "o", "linestyle": "none", "zorder": 4} if len(values) == 1 else {"linewidth": 1.8}
        if name == "train":
            style |= {"linewidth": 0.9, "alpha": 0.8}
        label = TITLES.get(name, name) + (f" {y[0]:.3f}" if len(values) == 1 else "")
        axes.plot(x, y, color=COLOURS.get(name, INK), label=label, **style)
    for i, (name, value) in enumerate(reference_points.items()):
        colour = REFERENCE_COLOURS[i % len(REFERENCE_COLOURS)]
        axes.axhline(value, color=colour, linewidth=1.1, linestyle="--", label=f"{TITLES.get(name, name)} {value:.3f}")
    shown = [y for values in series.values() for _, y in values[len(values) // 20 :]] + list(reference_points.values())
    low, high = min(shown), max(shown)
    margin = 0.06 * (high - low) or 0.1
    axes.set_ylim(low - margin, high + margin)  # the first twentieth would flatten everything after it
    axes.set_xlabel("tokens", color=INK)
    axes.set_ylabel("bits per byte", color=INK)
    axes.xaxis.set_major_formatter(EngFormatter(sep=""))
    dress(axes)
    # above the axes, where it covers neither curve nor reference
    figure.legend(frameon=False, labelcolor=INK, loc="outside upper center", ncols=6, columnspacing=1.2, fontsize=9)
    return figure


def dress(axes: Axes) -> None:
    """Ticks, grid and frame as every picture here has them."""
    axes.tick_params(colors=INK)
    axes.grid(alpha=0.25, color=INK, linewidth=0.6)
    axes.spines[["top", "right"]].set_visible(False)
    axes.spines[["left", "bottom"]].set_color(INK)


def curve(points: Mapping[str, Points], reference_points: Mapping[str, float], path: Path) -> None:
    """Draws the picture into a .svg or .png file; the same data give the same bytes.

    Raises:
        ValueError: for another kind of file, or if no series has a point.
    """
    write_picture(lambda: draw(points, reference_points), path)


def write_picture(make: Callable[[], Figure], path: Path) -> None:
    """Writes a figure into a .svg or .png file: old or new, never half, and the same bytes for the same figure.

    Args:
        make: makes the figure; called with matplotlib's own settings, whatever the user's are.

    Raises:
        ValueError: for another kind of file.
    """
    kinds: dict[str, dict[str, str | None]] = {".svg": {"Date": None}, ".png": {"Software": None}}
    if path.suffix not in kinds:
        raise ValueError(f"{path.name}: a picture is a .svg or a .png file")
    image = io.BytesIO()
    with matplotlib.rc_context(matplotlib.rcParamsDefault | {"svg.hashsalt": "superblock", "backend": "agg"}):
        figure = make()
        figure.savefig(image, format=path.suffix[1:], dpi=160, transparent=True, metadata=kinds[path.suffix])
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    temporary.write_bytes(image.getvalue())
    os.replace(temporary, path)
