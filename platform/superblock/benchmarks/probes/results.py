"""What the finished probes say: a cell per task and arm, the tables, and whether the published outcomes appeared."""

from collections.abc import Iterator, Mapping
from statistics import fmean
from typing import Any

from rich.table import Table

from superblock.benchmarks.ablation.comparison import plain_interval
from superblock.benchmarks.ablation.record import Record
from superblock.benchmarks.ablation.screen import table
from superblock.config.probes import ARMS, PROBES
from superblock.evaluation.statistics import t_interval

SOLVED = 0.99
"""Mean accuracy from which a task counts as solved, as in Zoology."""
NEAR_CHANCE = 0.1
"""Scaled accuracy up to which an arm does no better than guessing (arXiv 2411.12537 reports such values as failures)."""

FALLS = 0.05
"""Accuracy that a fixed state loses at least from the fewest to the most pairs of the training, to be called outgrown."""
SEEDS = 3
"""Fewer give no verdict."""
SMOKE = "a smoke test of a few steps: its accuracies say nothing about the models"

Cell = Mapping[str, Any]


def conclude(record: Record) -> None:
    """Fills `results` and `says` from the runs there are."""
    cells = {
        task: {arm: _cell(record, task, arm) for arm in ARMS if _entries(record, task, arm)}
        for task in PROBES
        if any(entry["task"] == task for entry in record.runs.values())
    }
    record.results = {"cells": cells}
    record.says = [SMOKE] if record.settings.get("quick") else list(_outcomes(cells))


def scaled(score: float, chance: float) -> float:
    """0 for guessing, 1 for no error (arXiv 2411.12537)."""
    return (score - chance) / (1 - chance)


def score_table(record: Record) -> Table:
    """A row per task, a column per arm."""
    cells = record.results["cells"]
    rows = []
    for task, arms in cells.items():
        first = next(iter(arms.values()))
        shown = [_score_text(arms.get(arm)) for arm in ARMS]
        rows.append([task, *shown, f"{first['chance']:.3f}"])
    return table(["task", *ARMS, "chance"], rows)


def level_table(record: Record) -> Table:
    """A row per task and level."""
    rows = []
    for task, arms in record.results["cells"].items():
        levels = dict.fromkeys(level for cell in arms.values() for level in cell["levels"])
        for level in levels:
            trained = all(level in cell["trained_levels"] for cell in arms.values())
            values = [arms[arm]["levels"].get(level) if arm in arms else None for arm in ARMS]
            rows.append(
                [f"{task} {level}{'' if trained else ' *'}", *("" if v is None else f"{v:.3f}" for v in values)]
            )
    return table(["task", *ARMS], rows)


# -- parts --------------------------------------------------------------------------------------------------------


def _entries(record: Record, task: str, arm: str) -> list[dict[str, Any]]:
    return [entry for entry in record.runs.values() if (entry["task"], entry["arm"]) == (task, arm)]


def _cell(record: Record, task: str, arm: str) -> dict[str, Any]:
    """Mean over seeds with its interval, and what belongs beside it."""
    entries = _entries(record, task, arm)
    scores = [entry["score"] for entry in entries]
    first = entries[0]
    return plain_interval(t_interval(scores)) | {
        "scores": {str(entry["seed"]): entry["score"] for entry in entries},
        "chance": first["chance"],
        "scaled": scaled(fmean(scores), first["chance"]),
        "best_scaled": scaled(max(scores), first["chance"]),
        "levels": {level: fmean(entry["levels"][level] for entry in entries) for level in first["levels"]},
        "trained_levels": first["trained_levels"],
        "seconds": fmean(entry["seconds"] for entry in entries),
        "parameters": first["parameters"],
        "published": first["published"],
    }


def _score_text(cell: Cell | None) -> str:
    """`0.998 [0.991, 1.005]`; a bound that cannot be, above 1 or below 0, is cut."""
    if cell is None:
        return ""
    if cell["low"] is None:
        return f"{cell['mean']:.3f}"
    return f"{cell['mean']:.3f} [{max(0.0, cell['low']):.3f}, {min(1.0, cell['high']):.3f}]"


def _outcomes(cells: Mapping[str, Mapping[str, Cell]]) -> Iterator[str]:
    """Each published outcome that the finished runs can speak of, whether it appeared, and the numbers."""
    mqar, parity = cells.get("mqar", {}), cells.get("parity", {})
    for arm in ("attention", "hybrid"):
        if arm in mqar:
            yield _says(mqar[arm]["mean"] >= SOLVED, f"mqar: {arm} solves it ({SOLVED} or more)", mqar[arm])
    if "deltanet" in mqar:  # among the trained levels, where no arm fails for want of training
        levels = [(name, mqar["deltanet"]["levels"][name]) for name in mqar["deltanet"]["trained_levels"]]
        (few, high), (many, low) = levels[0], levels[-1]
        text = f"mqar: recall of the fixed state falls with the pairs: {high:.3f} at {few}, {low:.3f} at {many}"
        beside = mqar.get("attention")
        if beside:
            text += f" (attention there {beside['levels'][many]:.3f})"
        yield f"{_verdict(high - low > FALLS, mqar['deltanet'])}: {text}"
    for arm in ("attention", "deltanet-positive"):
        if arm in parity:
            fails = parity[arm]["scaled"] <= NEAR_CHANCE
            yield _says(fails, f"parity: {arm} fails at lengths beyond training", parity[arm])
    if "deltanet" in parity:
        best = max(parity["deltanet"]["scores"].values())  # what was published is the best of three seeds
        claim = f"parity: deltanet, with negative eigenvalues, solves it there, best seed {best:.3f}"
        yield _says(best >= SOLVED, claim, parity["deltanet"])
    for task, arms in cells.items():
        published = next(iter(arms.values()))["published"]
        if published:
            mine = ", ".join(f"{arm} {cell['mean']:.3f} (scaled {cell['scaled']:.3f})" for arm, cell in arms.items())
            yield f"{task}: here {mine}; published: {published}"


def _says(appeared: bool, claim: str, cell: Cell) -> str:
    text = f"{claim}: mean {_score_text(cell)}, scaled {cell['scaled']:.3f}, n = {cell['n']}"
    return f"{_verdict(appeared, cell)}: {text}"


def _verdict(appeared: bool, cell: Cell) -> str:
    if cell["n"] < SEEDS:
        return f"open, fewer than {SEEDS} seeds"
    return "as published" if appeared else "NOT as published"
