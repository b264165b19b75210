"""What the runs of suite=exits say: what training the exits costs the full depth, and how far each is from a model of its own.

cost    bits per byte of the full depth over those with the exits off, less 1, seed by seed: asked for is below 1 %
gap     bits per byte of an exit over those of a model that ends there, with as many steps, less 1

Whether an arm narrows the gaps is decided against the first default with Holm's correction over all arms of a depth.
"""

from collections.abc import Iterator, Mapping
from statistics import fmean
from typing import Any

from rich.table import Table

from superblock.benchmarks.ablation.comparison import (
    Comparison,
    adjusted,
    compare,
    decided,
    exit_values,
    mean,
    plain_interval,
    relative,
    values,
)
from superblock.benchmarks.ablation.picture import Panel, row
from superblock.benchmarks.ablation.record import Record
from superblock.benchmarks.ablation.screen import interval_text, table
from superblock.benchmarks.exits.runs import ARMS, FIRST, OFF, alone, exits_of
from superblock.evaluation.statistics import t_interval

LIMIT = 0.01
"""Largest share of its bits per byte that the full depth may lose."""
DEPTHS = (3, 6)


def conclude(record: Record) -> None:
    """Fills `results` and `says`."""
    record.results, record.says = {}, []
    for depth in DEPTHS:
        if values(record.runs, str(depth), FIRST):
            gains = _gains(record, depth)
            holm = adjusted(gains.items())
            arms = {arm: _arm(record, depth, arm) for arm in ARMS if values(record.runs, str(depth), arm)}
            record.results[str(depth)] = {
                "arms": arms,
                "gaps_beside_the_first_default": {arm: one.plain(holm[arm]) for arm, one in gains.items()},
            }
            record.says += _say(depth, arms, gains, holm)


def tables(record: Record) -> Iterator[tuple[str, Table]]:
    """A table per depth."""
    for depth, found in record.results.items():
        shown = exits_of(int(depth))
        titles = ("arm", "test", "seeds", "cost, % [95 %]", *(f"gap of exit {k}, %" for k in shown), "FLOPs")
        rows = [_cells(arm, entry, shown) for arm, entry in found["arms"].items()]
        yield f"{depth} superblocks", table(titles, rows)


def panels(record: Record) -> list[Panel]:
    """Cost, then the gap of every exit that is a stage's."""
    found = []
    for text, result in record.results.items():
        depth, off = int(text), values(record.runs, text, OFF)
        rows = [
            row(arm, relative(values(record.runs, text, arm), off), entry["cost"], 100)
            for arm, entry in result["arms"].items()
            if entry["cost"]
        ]
        found.append(Panel(f"{depth} superblocks: cost", "% of bits per byte beyond exits off", rows, 100 * LIMIT))
        for k in exits_of(depth):
            rows = [
                row(arm, _gap(record, depth, arm, k), entry["gaps"][str(k)], 100)
                for arm, entry in result["arms"].items()
                if arm != OFF and entry["gaps"].get(str(k))
            ]
            found.append(Panel(f"exit {k} of {depth}: gap", f"% beyond a model of {k}", rows))
    return found


# -- numbers ------------------------------------------------------------------------------------------------------


def _gap(record: Record, depth: int, arm: str, exit_at: int) -> dict[int, float]:
    """How far an exit is from the model that ends there, by seed."""
    own = exit_values(record.runs, str(depth), arm, exit_at)
    return relative(own, values(record.runs, *alone(exit_at)))


def _gaps(record: Record, depth: int, arm: str) -> dict[int, float]:
    """The mean gap of the exits that are compared, by seed."""
    found = [_gap(record, depth, arm, k) for k in exits_of(depth)]
    return {seed: fmean(gap[seed] for gap in found) for seed in sorted(set.intersection(*map(set, found)))}


def _gains(record: Record, depth: int) -> dict[str, Comparison]:
    """The gaps of every arm less those of the first default."""
    first = _gaps(record, depth, FIRST)
    found = {arm: compare(arm, _gaps(record, depth, arm), FIRST, first) for arm in ARMS if arm not in (OFF, FIRST)}
    return {arm: one for arm, one in found.items() if one}


def _arm(record: Record, depth: int, arm: str) -> dict[str, Any]:
    group = str(depth)
    own = values(record.runs, group, arm)
    cost = {} if arm == OFF else relative(own, values(record.runs, group, OFF))
    return {
        "test": mean(own),
        "seeds": own,
        "flops": mean(values(record.runs, group, arm, "flops")),
        "seconds": mean(values(record.runs, group, arm, "seconds")),
        "cost": _plain(cost),
        "exits": {str(k): mean(exit_values(record.runs, group, arm, k)) for k in range(1, depth)},
        "gaps": {str(k): _plain(_gap(record, depth, arm, k)) for k in exits_of(depth)},
    }


def _plain(found: Mapping[int, float]) -> dict[str, Any] | None:
    """The t interval of values by seed, as JSON."""
    if not found:
        return None
    return plain_interval(t_interval(list(found.values()))) | {"seeds": list(found)}


def _cells(arm: str, entry: Mapping[str, Any], shown: list[int]) -> tuple[str, ...]:
    gaps = [interval_text(entry["gaps"][str(k)], 100, 2) for k in shown]
    return (
        arm, f"{entry['test']:.4f}", str(len(entry["seeds"])), interval_text(entry["cost"], 100, 2), *gaps,
        f"{entry['flops']:.3g}",
    )  # fmt: skip


# -- words --------------------------------------------------------------------------------------------------------


def cost_verdict(cost: Mapping[str, Any] | None) -> str:
    """Whether the full depth is shown to lose less than `LIMIT`."""
    if cost is None or cost["n"] < 2:
        return "undecided"
    return "held" if cost["high"] < LIMIT else "not held" if cost["low"] >= LIMIT else "undecided"


def _say(
    depth: int, arms: Mapping[str, Mapping[str, Any]], gains: Mapping[str, Comparison], holm: Mapping[str, float]
) -> Iterator[str]:
    """The arm that follows, or why none does."""
    verdicts = {arm: cost_verdict(entry["cost"]) for arm, entry in arms.items() if arm != OFF}
    for verdict in ("held", "undecided", "not held"):
        if named := [arm for arm, one in verdicts.items() if one == verdict]:
            yield f"{depth} superblocks: costs the full depth less than {LIMIT:.0%}, {verdict}: {', '.join(named)}"
    cheap = [
        arm for arm in gains if arms[arm]["cost"] and arms[arm]["cost"]["mean"] < LIMIT and verdicts[arm] != "not held"
    ]
    if not cheap or min(one.interval.n for one in gains.values()) < 2:
        yield f"{depth} superblocks: nothing follows yet beside {FIRST}"
        return
    better = [arm for arm in cheap if gains[arm].interval.mean < 0 and decided(gains[arm], holm[arm])]
    shown = [arm for arm in better if verdicts[arm] == "held"]
    for arm in dict.fromkeys(_least(group, gains) for group in (shown, better, cheap) if group):
        cost = interval_text(arms[arm]["cost"], 100, 2)
        yield f"{depth} superblocks: {arm}: gaps beside {FIRST}'s {_points(gains[arm], holm)}, cost {cost} %, {verdicts[arm]}"
    if shown:
        yield f"default at {depth} superblocks: {_least(shown, gains)} follows"
    elif better:
        yield f"default at {depth} superblocks: undecided, for no arm with narrower gaps is its cost shown to be below {LIMIT:.0%}"
    else:
        yield f"default at {depth} superblocks: no arm is shown to be better than {FIRST}"


def _least(arms: list[str], gains: Mapping[str, Comparison]) -> str:
    """The arm with the narrowest gaps."""
    return min(arms, key=lambda arm: gains[arm].interval.mean)


def _points(one: Comparison, holm: Mapping[str, float]) -> str:
    """A difference of shares in percentage points, with its corrected p."""
    text = interval_text(plain_interval(one.interval), 100, 2)
    return f"{text} points, Holm p {holm[one.a]:.3f} of {len(holm)}"
