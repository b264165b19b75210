"""The figures of a report; each takes plain numbers and knows nothing of reports."""

import math
import textwrap
from collections.abc import Sequence
from dataclasses import dataclass

from matplotlib.axes import Axes
from matplotlib.colors import BoundaryNorm, ListedColormap
from matplotlib.figure import Figure
from matplotlib.ticker import FixedLocator, FuncFormatter, MaxNLocator, NullFormatter, NullLocator

from superblock.evaluation.curve import INK, REFERENCE_COLOURS
from superblock.reporting.pages.numbers import count, moment, prefixed
from superblock.reporting.pages.pictures import BAD, HEAT, LINES, MARKS, figure, label, legend


@dataclass(frozen=True)
class Dot:
    """A value with its interval."""

    x: float
    y: float
    low: float | None = None
    high: float | None = None


@dataclass(frozen=True)
class Line:
    """A series with a name, a colour and a place among the marks."""

    name: str
    dots: tuple[Dot, ...]
    colour: str
    mark: int = 0
    joined: bool = True
    dashed: int = 0


@dataclass(frozen=True)
class Bar:
    """One line of an interval plot."""

    name: str
    value: float
    low: float | None
    high: float | None
    colour: str


def lines(
    series: Sequence[Line], x_title: str, y_title: str, *, logarithmic: bool = False, units: str = "count",
    references: Sequence[tuple[str, float]] = (), ticks: Sequence[float] = (), zero: bool = False,
) -> Figure:  # fmt: skip
    """Series of dots with intervals over a numerical axis, and horizontal lines for comparison."""
    made, axes = figure()
    for one in series:
        _draw(axes, one)
    _references(axes, references)
    if logarithmic:
        axes.set_xscale("log")
        axes.xaxis.set_minor_locator(NullLocator())
        axes.xaxis.set_minor_formatter(NullFormatter())
        places = [dot.x for one in series for dot in one.dots]
        axes.set_xlim(min(places) / 1.3, max(places) * 1.3)
        ticks = ticks or _round_ticks(min(places) / 1.3, max(places) * 1.3)
    if ticks:
        axes.xaxis.set_major_locator(FixedLocator(list(ticks)))
    axes.xaxis.set_major_formatter(FuncFormatter(lambda x, _: _tick(x, units)))
    _finish(axes, x_title, y_title, zero)
    legend(made, axes, 3 if max((len(one.name) for one in series), default=0) > 12 else 5)
    return made


def bands(series: Sequence[Line], x_title: str, y_title: str, references: Sequence[tuple[str, float]]) -> Figure:
    """Learning curves: the mean as a line, smallest and largest seed as a band around it."""
    made, axes = figure((5.2, 3.2))
    for one in series:
        x = [dot.x for dot in one.dots]
        axes.fill_between(
            x, [_or(dot.low, dot.y) for dot in one.dots], [_or(dot.high, dot.y) for dot in one.dots],
            color=one.colour, alpha=0.22, linewidth=0,
        )  # fmt: skip
        axes.plot(
            x,
            [dot.y for dot in one.dots],
            color=one.colour,
            linewidth=1.8,
            linestyle=LINES[one.dashed % len(LINES)],
            label=label(one.name),
        )
        axes.plot(x[-1:], [one.dots[-1].y], marker=MARKS[one.mark % len(MARKS)], color=one.colour, markersize=5)
    late = [
        value
        for one in series
        for dot in one.dots[len(one.dots) // 4 :]
        for value in (dot.y, _or(dot.low, dot.y), _or(dot.high, dot.y))
    ]
    late += [value for _, value in references]
    margin = 0.06 * (max(late) - min(late)) or 0.1
    axes.set_ylim(min(late) - margin, max(late) + margin)  # the first steps would flatten everything after them
    _references(axes, references)
    axes.xaxis.set_major_formatter(FuncFormatter(lambda x, _: _tick(x, "count")))
    _finish(axes, x_title, y_title)
    legend(made, axes, 6)
    return made


def categories(series: Sequence[Line], names: Sequence[str], x_title: str, y_title: str) -> Figure:
    """Series over places that have names and no distances."""
    made, axes = figure()
    for one in series:
        _draw(axes, one)
    axes.set_xticks(range(len(names)), [label(name, 12) for name in names])
    if len(names) > 6:
        axes.tick_params(axis="x", rotation=40)
    _finish(axes, x_title, y_title)
    legend(made, axes, 5)
    return made


def intervals(bars: Sequence[Bar], x_title: str) -> Figure:
    """Differences beside zero, one per line, with their intervals."""
    names = ["\n".join(textwrap.wrap(label(bar.name, 72), 36)) for bar in bars]
    made, axes = figure((5.2, 0.75 + (0.36 if any("\n" in name for name in names) else 0.27) * len(bars)))
    for row, bar in enumerate(bars):
        y = len(bars) - 1 - row
        if bar.low is not None and bar.high is not None:
            axes.plot([bar.low, bar.high], [y, y], color=bar.colour, linewidth=2.2, solid_capstyle="round", alpha=0.75)
        axes.plot([bar.value], [y], marker="o" if bar.low is not None else "D", color=bar.colour, markersize=5.5)
    axes.axvline(0, color=INK, linewidth=1)
    axes.set_yticks(range(len(bars)), names[::-1])
    axes.set_ylim(-0.6, len(bars) - 0.4)
    axes.tick_params(axis="y", length=0)
    axes.grid(axis="y", visible=False)
    axes.spines["left"].set_visible(False)
    axes.xaxis.set_major_locator(MaxNLocator(5))
    axes.set_xlabel(x_title, color=INK)
    return made


def heat(
    values: Sequence[Sequence[float | None]], rows: Sequence[str], columns: Sequence[str], x_title: str, title: str
) -> Figure:
    """Shaded cells, rows by columns; a cell without a value stays empty."""
    known = [value for row in values for value in row if value is not None]
    low = min(min(known), 0.95)
    steps = [low + (1 - low) * i / len(HEAT) for i in range(len(HEAT) + 1)]
    made, axes = figure((5.2, 1.15 + 0.27 * len(rows)))
    grid = [[math.nan if value is None else value for value in row] for row in values]
    mesh = axes.pcolormesh(
        range(len(columns) + 1), range(len(rows) + 1), list(reversed(grid)), cmap=ListedColormap(HEAT),
        norm=BoundaryNorm(steps, len(HEAT)), edgecolors="none", linewidth=0,
    )  # fmt: skip
    axes.grid(visible=False)
    every = max(1, math.ceil(len(columns) / 13))
    axes.set_xticks(
        [i + 0.5 for i in range(0, len(columns), every)], [label(columns[i], 12) for i in range(0, len(columns), every)]
    )
    axes.set_yticks([i + 0.5 for i in range(len(rows))], [label(row, 20) for row in reversed(rows)])
    axes.tick_params(length=0)
    axes.spines[["left", "bottom"]].set_visible(False)
    axes.set_xlabel(x_title, color=INK)
    bar = made.colorbar(mesh, ax=axes, pad=0.02, aspect=12, format=FuncFormatter(lambda x, _: f"{x:.3g}"))
    bar.ax.tick_params(colors=INK, length=0)
    bar.set_ticks([steps[0], steps[len(HEAT) // 2], steps[-1]])
    bar.outline.set_visible(False)
    bar.set_label(title, color=INK)
    return made


def history(
    points: Sequence[tuple[float, float]], change_at: int | None, y_title: str, colour: str, alarm: bool
) -> Figure:
    """Values in time; the mean of each stretch, and a line where it changed."""
    made, axes = figure((4.6, 2.5))
    places = list(range(len(points)))
    values = [value for _, value in points]
    axes.plot(places, values, color=colour, linewidth=0.9, marker="o", markersize=3.5, alpha=0.85)
    cut = len(points) if change_at is None else change_at
    for first, last in ((0, cut), (cut, len(points))):
        if last > first:
            mean = sum(values[first:last]) / (last - first)
            axes.plot([first - 0.3, last - 0.7], [mean, mean], color=INK, linewidth=1.4, linestyle=(0, (4, 2)))
    if change_at is not None:
        axes.axvline(change_at - 0.5, color=BAD if alarm else INK, linewidth=1.2, label="change")
    shown = sorted({0, len(points) // 2, len(points) - 1})
    axes.set_xticks(shown, [moment(points[i][0])[:10] for i in shown])
    axes.yaxis.set_major_formatter(FuncFormatter(lambda y, _: _tick(y, "count") if abs(y) >= 1000 else f"{y:.4g}"))
    axes.yaxis.set_major_locator(MaxNLocator(5))
    _finish(axes, "", y_title)
    return made


def _draw(axes: Axes, one: Line) -> None:
    """One series: marks with intervals, joined unless they are of different things."""
    x, y = [dot.x for dot in one.dots], [dot.y for dot in one.dots]
    style = LINES[one.dashed % len(LINES)] if one.joined else "none"
    axes.plot(
        x, y, color=one.colour, linewidth=1.6, linestyle=style, marker=MARKS[one.mark % len(MARKS)], markersize=6 if not one.joined else 4.5,
        label=label(one.name), zorder=3,
    )  # fmt: skip
    for dot in one.dots:
        if dot.low is not None and dot.high is not None:
            axes.plot(
                [dot.x, dot.x], [dot.low, dot.high], color=one.colour, linewidth=1.6, alpha=0.7, solid_capstyle="butt"
            )


def _references(axes: Axes, references: Sequence[tuple[str, float]]) -> None:
    """Lines across, each with its name at the right end above it; the lower of two near ones has it below."""
    for i, (_, value) in enumerate(references):
        colour = REFERENCE_COLOURS[i % len(REFERENCE_COLOURS)]
        axes.axhline(value, color=colour, linewidth=1.1, linestyle=LINES[1 + i % 3])
    bottom, top = axes.get_ylim()
    for i, (name, value) in enumerate(references):
        below = any(0 < other - value < 0.07 * (top - bottom) for _, other in references)
        axes.annotate(
            label(name), (0.995, value), xycoords=("axes fraction", "data"), xytext=(0, -3 if below else 2),
            textcoords="offset points", ha="right", va="top" if below else "bottom",
            color=REFERENCE_COLOURS[i % len(REFERENCE_COLOURS)], fontsize=8.5, zorder=5,
        )  # fmt: skip


def _finish(axes: Axes, x_title: str, y_title: str, zero: bool = False) -> None:
    if x_title:
        axes.set_xlabel(label(x_title, 60), color=INK)
    axes.set_ylabel(label(y_title, 40), color=INK)
    if zero:
        axes.set_ylim(bottom=0)


def _round_ticks(low: float, high: float) -> list[float]:
    """Round places between two numbers on a logarithmic axis, three to six of them where there are as many."""
    powers = range(math.floor(math.log10(low)), math.ceil(math.log10(high)) + 1)
    for factors in (
        (1.0,),
        (1.0, 3.0),
        (1.0, 2.0, 5.0),
        (1.0, 1.5, 2.0, 3.0, 4.0, 6.0, 8.0),
        tuple(1 + i / 4 for i in range(36)),
    ):
        inside = [factor * 10.0**power for power in powers for factor in factors if low <= factor * 10.0**power <= high]
        if len(inside) >= 3:
            break
    return inside[:: math.ceil(len(inside) / 6)] if inside else [low, high]


def _tick(value: float, units: str) -> str:
    """A place on an axis: whole numbers below ten thousand as they are, others with a prefix and no idle zeros."""
    if abs(value) < 10_000:
        return f"{value:,.6g}" if value == int(value) else f"{value:.4g}"
    text = (count if units == "count" else prefixed)(value)
    number, _, prefix = text.partition(" ")
    return f"{number.rstrip('0').rstrip('.') if '.' in number else number} {prefix}".strip()


def _or(value: float | None, otherwise: float) -> float:
    return otherwise if value is None else value
