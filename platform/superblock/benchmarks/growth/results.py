"""What the runs of suite=growth say: arms beside training from scratch, methods beside each other, and a default.

A method is better or worse than training from scratch only where the 95 % interval of its paired difference excludes 0
and Holm's correction over all such comparisons agrees. The default is one for every transition, so methods are compared
by each seed's mean over the transitions.
"""

from collections.abc import Iterator, Mapping
from itertools import combinations
from statistics import fmean
from typing import Any

from rich.table import Table

from superblock.benchmarks.ablation.comparison import Comparison, adjusted, compare, decided, mean, values
from superblock.benchmarks.ablation.picture import Panel, row
from superblock.benchmarks.ablation.record import Record
from superblock.benchmarks.ablation.screen import interval_text, table
from superblock.benchmarks.growth.runs import EXTRAS, GROWN, SAME, SCRATCH, TRANSITIONS, methods_of
from superblock.evaluation.summary import short

EXACT = "identity"
"""The one method whose model computes at the boundary what its parent did."""
LEAST_SEEDS = 2


def conclude(record: Record) -> None:
    """Fills `results` and `says`."""
    scratch = dict(_against_scratch(record))
    holm_scratch = adjusted(scratch.items())
    methods = dict(_methods(record))
    holm_methods = adjusted(methods.items())
    extras = dict(_extras(record))
    record.results = {
        "transitions": {group: _arms(record, group, scratch, holm_scratch) for group in TRANSITIONS},
        "parents": {"test": mean(values(record.runs, "1", SCRATCH)), "seeds": values(record.runs, "1", SCRATCH)},
        "methods": {name: one.plain(holm_methods[name]) for name, one in methods.items()},
        "extras": {name: one.plain() for name, one in extras.items()},
    }
    record.says = [
        *_say_scratch(scratch, holm_scratch),
        *_say_methods(methods, holm_methods),
        *(f"1 -> 3: {name}: {one.interval} bits per byte" for name, one in extras.items()),
    ]


def tables(record: Record) -> Iterator[tuple[str, Table]]:
    """A table per transition."""
    titles = ("arm", "test", "seeds", "difference to scratch [95 %]", "Holm p", "FLOPs of the lineage", "steps")
    for group, (small, large) in TRANSITIONS.items():
        arms: Mapping[str, Any] = record.results["transitions"][group]
        rows = [_cells(arm, found) for arm, found in arms.items()]
        if rows:
            yield f"{small} -> {large} superblocks, test bits per byte", table(titles, rows)


def panels(record: Record) -> list[Panel]:
    """Differences to training from scratch, seed by seed."""
    found = []
    for group, (small, large) in TRANSITIONS.items():
        scratch = values(record.runs, group, SCRATCH)
        rows = []
        for arm, entry in record.results["transitions"][group].items():
            if entry["to_scratch"]:
                own = values(record.runs, group, arm)
                points = {seed: own[seed] - scratch[seed] for seed in entry["to_scratch"]["seeds"]}
                rows.append(row(arm, points, entry["to_scratch"]))
        found.append(
            Panel(f"{small} to {large} superblocks", "bits per byte beyond from scratch, at equal FLOPs", rows)
        )
    return found


# -- comparisons --------------------------------------------------------------------------------------------------


def _against_scratch(record: Record) -> Iterator[tuple[str, Comparison]]:
    for group in TRANSITIONS:
        scratch = values(record.runs, group, SCRATCH)
        for method in methods_of(group):
            if one := compare(method, values(record.runs, group, method), SCRATCH, scratch):
                yield f"{group} {method}", one


def _methods(record: Record) -> Iterator[tuple[str, Comparison]]:
    """Every pair of methods, by each seed's mean over the transitions that have begun."""
    groups = [group for group in TRANSITIONS if any(values(record.runs, group, method) for method in GROWN)]
    means = {}
    for method in GROWN:
        found = [values(record.runs, group, SAME.get((group, method), method)) for group in groups]
        seeds = set.intersection(*map(set, found)) if found else set()
        means[method] = {seed: fmean(one[seed] for one in found) for seed in sorted(seeds)}
    for a, b in combinations(GROWN, 2):
        if one := compare(a, means[a], b, means[b]):
            yield f"{a} - {b}", one


def _extras(record: Record) -> Iterator[tuple[str, Comparison]]:
    """The extra arms beside the best method, whose variants they are."""
    for arm in EXTRAS:
        own = values(record.runs, "1-3", arm)
        if own:
            [word] = {_method_of(entry) for entry in record.runs.values() if entry["arm"] == arm}
            if one := compare(arm, own, word, values(record.runs, "1-3", word)):
                yield f"{word} with {arm} - {word}", one


def _method_of(entry: Mapping[str, Any]) -> str:
    return next(word.partition("=")[2] for word in entry["overrides"] if word.startswith("growth.method="))


def _arms(
    record: Record, group: str, scratch: Mapping[str, Comparison], holm: Mapping[str, float]
) -> dict[str, dict[str, Any]]:
    """The rows of a transition's table."""
    found: dict[str, dict[str, Any]] = {}
    base = values(record.runs, group, SCRATCH)
    for arm in (SCRATCH, *methods_of(group), *EXTRAS):
        own = values(record.runs, group, arm)
        if not own:
            continue
        name = f"{group} {arm}"
        other = scratch.get(name) or (compare(arm, own, SCRATCH, base) if arm != SCRATCH else None)
        steps = next(entry["steps"] for entry in record.runs.values() if (entry["group"], entry["arm"]) == (group, arm))
        found[arm] = {
            "test": mean(own),
            "seeds": own,
            "lineage_flops": mean(values(record.runs, group, arm, "lineage_flops")),
            "steps": steps,
            "to_scratch": other.plain(holm.get(name)) if other else None,
        }
    return found


def _cells(arm: str, found: Mapping[str, Any]) -> tuple[str, ...]:
    other = found["to_scratch"]
    p = "" if not other or other["p_holm"] is None else f"{other['p_holm']:.3f}"
    return (
        arm, f"{found['test']:.4f}", str(len(found["seeds"])), interval_text(other), p, short(found["lineage_flops"]),
        str(found["steps"]),
    )  # fmt: skip


# -- words --------------------------------------------------------------------------------------------------------


def _say_scratch(scratch: Mapping[str, Comparison], holm: Mapping[str, float]) -> Iterator[str]:
    for name, one in scratch.items():
        small, large = TRANSITIONS[name.partition(" ")[0]]
        verdict = "undecided"
        if decided(one, holm[name]):
            verdict = "better than from scratch" if one.interval.mean < 0 else "worse than from scratch"
        yield f"{small} -> {large}: {one.a} {verdict} at equal FLOPs: {one.interval} bits per byte, Holm p {holm[name]:.3f}"
    if scratch:
        yield "(1 -> 3: interpolate is what stack is; there is nothing to interpolate between)"
        yield f"(paired by seed, 95 % t intervals; Holm over these {len(scratch)} comparisons at 5 %)"


def _say_methods(methods: Mapping[str, Comparison], holm: Mapping[str, float]) -> Iterator[str]:
    """The default that follows, or between which methods it stays open."""
    if len(methods) < len(GROWN) or min(one.interval.n for one in methods.values()) < LEAST_SEEDS:
        yield "default: nothing follows yet, every method needs at least two seeds"
        return
    best = _best(methods)
    rest = []
    for name, one in methods.items():
        if best in (one.a, one.b):
            other = one.b if best == one.a else one.a
            if decided(one, holm[name]):
                yield f"{best} better than {other}: {name} {one.interval}, Holm p {holm[name]:.3f}"
            else:
                rest.append(other)
                yield f"{best} and {other} undecided: {name} {one.interval}, Holm p {holm[name]:.3f}"
    yield f"(means of both transitions, paired by seed; Holm over these {len(methods)} pairs at 5 %)"
    if not rest:
        yield f"default: growth.method={best} follows"
    elif EXACT in (best, *rest):
        yield f"default: undecided between {' and '.join((best, *rest))}; of these {EXACT} is exact at the boundary"
    else:
        yield f"default: undecided between {' and '.join((best, *rest))}; {best} is better than {EXACT}"


def _best(methods: Mapping[str, Comparison]) -> str:
    """The method that lies below every other in the mean."""
    wins = dict.fromkeys(GROWN, 0)
    for one in methods.values():
        wins[one.a if one.interval.mean <= 0 else one.b] += 1
    return max(GROWN, key=lambda method: wins[method])
