"""Learning curves over seeds: averaged where all of them were trained, against the tokens of the whole lineage."""

from collections.abc import Iterator, Sequence

import numpy as np

from superblock.reporting.content import Curve
from superblock.reporting.facts import RunFacts
from superblock.reporting.metrics import CURVES

MOST = 120
"""Points of a curve."""
Line = tuple[np.ndarray, np.ndarray]
"""Tokens of the lineage, and values."""


def learning_curves(runs: Sequence[RunFacts]) -> Iterator[Curve]:
    """The curves of one group.

    A grown stage's begin where its parents' tokens end. Seeds that were measured at other tokens, as with a budget in
    minutes, are interpolated, and only where all of them have points.
    """
    for metric in CURVES:
        lines = [line for run in runs if (line := _line(run, metric)) is not None]
        if lines and (common := _common(lines)) is not None:
            values = np.stack([np.interp(common, tokens, value) for tokens, value in lines])
            yield Curve(
                metric, _plain(common), _plain(values.mean(axis=0)), _plain(values.min(axis=0)), _plain(values.max(axis=0)),
                len({run.seed for run in runs if _line(run, metric) is not None}),
            )  # fmt: skip


def _line(run: RunFacts, metric: str) -> Line | None:
    series = run.curves.get(metric)
    steps, tokens = run.results.get("run/steps"), run.results.get("run/tokens")
    if series is None or not series.steps or not steps or not tokens:
        return None
    begin = run.results.get("lineage/tokens", tokens) - tokens
    return begin + np.asarray(series.steps, float) * (tokens / steps), np.asarray(series.values, float)


def _common(lines: Sequence[Line]) -> np.ndarray | None:
    """Tokens at which all lines are drawn; None if they have none in common."""
    first = lines[0][0]
    if all(len(tokens) == len(first) and np.allclose(tokens, first) for tokens, _ in lines):
        keep = np.unique(np.linspace(0, len(first) - 1, min(len(first), MOST)).round().astype(int))
        return first[keep]
    low, high = max(tokens[0] for tokens, _ in lines), min(tokens[-1] for tokens, _ in lines)
    if low > high:
        return None
    return np.linspace(low, high, min(MOST, max(2, min(len(tokens) for tokens, _ in lines))))


def _plain(values: np.ndarray) -> tuple[float, ...]:
    return tuple(float(f"{value:.7g}") for value in values)
