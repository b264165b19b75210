"""What the runs of suite=ablation say: each arm beside the reference, paired by seed.

`results` of the record, which reports read:

metric       "test/bits_per_byte": lower is better
reference    name of the reference arm
title        first line of the sweep file
budget       words ("120 steps of the reference"), unit ("flops", "steps" or "tokens")
arms         by stage, then by arm: test and val (means over seeds), seeds (test by seed), words (overrides), why, parent (stage
             or null), steps, flops (of a run with its parent, heads counted from when they begin), beyond_budget (share),
             to_reference (a comparison, or null for the reference and for an arm without a common seed)
comparisons  by "<stage>/<arm>": group (stage), arm, reference, metric; mean, low, high (arm - reference in bits per byte, 95 %;
             bounds are null with one seed), relative (mean difference as a share of the reference), n, seeds, p, p_holm
             (over all comparisons of the record), verdict ("better", "worse" or "undecided")

A verdict needs an interval that excludes 0 and Holm's correction to agree; with fewer than three seeds there is none.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from statistics import fmean
from typing import Any

from rich.table import Table

from superblock.benchmarks.ablation.comparison import (
    Comparison,
    adjusted,
    compare,
    decided,
    mean,
    relative,
    values,
)
from superblock.benchmarks.ablation.picture import Panel, row
from superblock.benchmarks.ablation.record import Record
from superblock.benchmarks.ablation.screen import interval_text, table
from superblock.benchmarks.ablation.sweep import Sweep
from superblock.benchmarks.ablation.sweep_runs import Planned
from superblock.evaluation.summary import short

METRIC = "test/bits_per_byte"
LEAST_SEEDS = 3


def concluding(sweep: Sweep, planned: Sequence[Planned]) -> Callable[[Record], None]:
    """What fills `results` and `says` of a sweep's record."""

    def conclude(record: Record) -> None:
        found = {f"{one.stage}/{one.arm.name}": pair for one in planned if (pair := _beside(record, sweep, one))}
        holm = adjusted(found.items())
        comparisons = {name: _plain(record, one, name, holm[name]) for name, one in found.items()}
        record.results = {
            "metric": METRIC,
            "reference": sweep.reference,
            "title": sweep.title,
            "budget": {"words": sweep.budget_words, "unit": sweep.budget.unit},
            "arms": {
                stage: {one.arm.name: _arm(record, one, comparisons) for one in planned if one.stage == stage}
                for stage in sweep.stages
            },
            "comparisons": comparisons,
        }
        record.says = list(_says(comparisons))

    return conclude


def tables(record: Record) -> Iterator[tuple[str, Table]]:
    """A table per stage."""
    reference = record.results["reference"]
    titles = ("arm", "test", "seeds", f"difference to {reference} [95 %]", "Holm p", "FLOPs", "steps")
    for stage, arms in record.results["arms"].items():
        rows = [_cells(name, arm) for name, arm in arms.items() if arm["seeds"]]
        if rows:
            yield f"{record.results['title']}: {stage}, test bits per byte", table(titles, rows)


def panels(record: Record) -> list[Panel]:
    """Differences to the reference, seed by seed."""
    reference, found = record.results["reference"], []
    for stage, arms in record.results["arms"].items():
        base = values(record.runs, stage, reference)
        rows = []
        for name, arm in arms.items():
            if pair := arm["to_reference"]:
                own = values(record.runs, stage, name)
                rows.append(row(name, {seed: own[seed] - base[seed] for seed in pair["seeds"]}, pair))
        found.append(Panel(f"{record.results['title']}: {stage}", f"bits per byte beyond {reference}", rows))
    return found


# -- parts --------------------------------------------------------------------------------------------------------


def _beside(record: Record, sweep: Sweep, one: Planned) -> Comparison | None:
    if one.arm.name == sweep.reference:
        return None
    own, base = (values(record.runs, one.stage, arm) for arm in (one.arm.name, sweep.reference))
    return compare(one.arm.name, own, sweep.reference, base)


def _plain(record: Record, one: Comparison, name: str, p_holm: float) -> dict[str, Any]:
    group = name.partition("/")[0]
    shares = relative(values(record.runs, group, one.a), values(record.runs, group, one.b))
    verdict = "undecided"
    if len(one.seeds) >= LEAST_SEEDS and decided(one, p_holm):
        verdict = "better" if one.interval.mean < 0 else "worse"
    return {
        "group": group,
        "arm": one.a,
        "reference": one.b,
        "metric": METRIC,
        **one.plain(p_holm),
        "relative": fmean(shares.values()),
        "verdict": verdict,
    }


def _arm(record: Record, one: Planned, comparisons: Mapping[str, Any]) -> dict[str, Any]:
    own = values(record.runs, one.stage, one.arm.name)
    return {
        "test": mean(own),
        "val": mean(values(record.runs, one.stage, one.arm.name, "val")),
        "seeds": own,
        "words": list(one.own.words),
        "why": one.arm.why,
        "parent": one.parent.stage if one.parent else None,
        "steps": one.own.steps,
        "flops": one.flops,
        "beyond_budget": one.beyond,
        "to_reference": comparisons.get(f"{one.stage}/{one.arm.name}"),
    }


def _cells(name: str, arm: Mapping[str, Any]) -> tuple[str, ...]:
    pair = arm["to_reference"]
    p = f"{pair['p_holm']:.3f}" if pair else ""
    return (
        name, f"{arm['test']:.4f}", str(len(arm["seeds"])), interval_text(pair), p, short(arm["flops"]), str(arm["steps"]),
    )  # fmt: skip


def _says(comparisons: Mapping[str, Any]) -> Iterator[str]:
    for one in comparisons.values():
        words = {"better": "better than", "worse": "worse than", "undecided": "undecided beside"}[one["verdict"]]
        few = f"; fewer than {LEAST_SEEDS} seeds decide nothing" if one["n"] < LEAST_SEEDS else ""
        yield (
            f"{one['group']}: {one['arm']} {words} {one['reference']}: {interval_text(one)} bits per byte "
            f"({one['relative']:+.2%}), n = {one['n']}, Holm p {one['p_holm']:.3f}{few}"
        )
    if comparisons:
        yield f"(paired by seed, 95 % t intervals; Holm over these {len(comparisons)} comparisons at 5 %)"
