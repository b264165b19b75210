"""What the runs of a group show together: means over seeds with intervals, and what hangs on them."""

import math
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from statistics import fmean
from typing import Any

from superblock.evaluation.statistics import t_interval
from superblock.reporting.content import (
    ExitPoint,
    ExpertLoad,
    Group,
    Measure,
    Predicted,
    SeedValue,
    Sliced,
    Statement,
)
from superblock.reporting.curves import learning_curves
from superblock.reporting.facts import RunFacts
from superblock.reporting.metrics import EXPERTS, METRICS
from superblock.reporting.selection import Chosen, configuration

MEASURED = {
    "bits_per_byte": "test/bits_per_byte", "minutes": "run/minutes", "minutes_in_all": "run/minutes_in_all",
    "memory_bytes": "run/memory_bytes",
}  # fmt: skip
"""What a prediction's names are called as results."""
TIMES = ("minutes", "minutes_in_all")
REFERENCE = "reference/"
MOST_PACKAGES = 40
Value = Callable[[RunFacts], float | None]


def make_group(chosen: Chosen) -> Group:
    """The group as a report shows it."""
    runs = chosen.runs
    sample = next(((run.samples, run.name) for run in runs if run.samples), (None, None))
    first, machines = runs[0], {run.machine for run in runs}
    machine = first.machine if len(machines) == 1 else None
    return Group(
        key=chosen.key, stage=first.stage, scale=first.scale, arm=first.arm,
        superblocks=next((run.superblocks for run in runs if run.superblocks), None),
        parameters=_whole(runs, "model/parameters"), active_parameters=_whole(runs, "model/active_parameters"),
        training_tokens=_mean(runs, "lineage/tokens"), flops=_mean(runs, "lineage/flops"), data_digest=first.data_digest,
        machine=machine, runs=tuple(run.name for run in runs), measures=_measures(runs, machine), references=_references(runs),
        predicted=tuple(_predicted(runs, machine)), curves=tuple(learning_curves(runs)), exits=tuple(_exits(runs, machine)),
        experts=tuple(_experts(runs)), positions=_sliced(runs, "positions", "beyond"),
        packages=_sliced(runs, "packages")[:MOST_PACKAGES],
        statements=tuple(_statement(run, one) for run in runs for one in run.statements),
        sample=sample[0], sample_run=sample[1], configuration=chosen.configuration,
        settings=dict(sorted(configuration(first).items())) if first.settings else {},
    )  # fmt: skip


def measure(values: Iterable[SeedValue], *, ratio: bool = False) -> Measure | None:
    """A mean over seeds with its interval; None without a value.

    Args:
        values: one for each run; runs of one seed are averaged first, since they are no independent draws.
        ratio: whether to take the mean and the interval of the logarithms, as `comparing` does: for speed and memory,
            which noise multiplies. Values that are not above 0 have none, and are averaged as they are.
    """
    found = tuple(sorted(values, key=lambda one: (one.seed, one.run)))
    if not found:
        return None
    ratio = ratio and all(one.value > 0 for one in found)
    interval = t_interval(over_seeds((one.seed, math.log(one.value) if ratio else one.value) for one in found))
    bounded = math.isfinite(interval.low)
    mean, low, high = (_plain(one, ratio) for one in (interval.mean, interval.low, interval.high))
    return Measure(
        found, found[0].value if len(found) == 1 else mean, low if bounded else None, high if bounded else None
    )


def _plain(value: float, ratio: bool) -> float:
    """Back from a logarithm; of an unbounded interval nothing is asked."""
    return math.exp(value) if ratio and math.isfinite(value) else value


def over_seeds(values: Iterable[tuple[int, float]]) -> list[float]:
    """A value for each seed, in order: the mean of its runs."""
    known: dict[int, list[float]] = defaultdict(list)
    for seed, value in values:
        known[seed].append(value)
    return [fmean(known[seed]) for seed in sorted(known)]


def over(runs: Sequence[RunFacts], value: Value, *, ratio: bool = False) -> Measure | None:
    """A number of every run that has it."""
    known = [(run, value(run)) for run in runs]
    return measure((SeedValue(run.seed, number, run.name) for run, number in known if number is not None), ratio=ratio)


def _result(name: str) -> Value:
    return lambda run: run.results.get(name)


def _measures(runs: Sequence[RunFacts], machine: str | None) -> dict[str, Measure]:
    """Speeds only where all runs had one machine."""
    names = [name for name, metric in METRICS.items() if machine is not None or metric.kind != "speed"]
    found = {name: over(runs, _result(name), ratio=METRICS[name].kind != "quality") for name in names}
    return {name: one for name, one in found.items() if one is not None}


def _references(runs: Sequence[RunFacts]) -> dict[str, float]:
    """They are the text's, so that any run's will do."""
    found: dict[str, float] = {}
    for run in runs:
        for name, value in run.results.items():
            if name.startswith(REFERENCE):
                found.setdefault(name.removeprefix(REFERENCE), value)
    return found


def _predicted(runs: Sequence[RunFacts], machine: str | None) -> Iterator[Predicted]:
    for name, result in MEASURED.items():
        if machine is None and name in TIMES:
            continue
        known = [run for run in runs if name in run.prediction and result in run.results]
        if known:
            bounds = {
                b: over_seeds((run.seed, run.prediction[name][b]) for run in known) for b in ("value", "low", "high")
            }
            came = over_seeds((run.seed, run.results[result]) for run in known)
            inside = sum(lo <= one <= hi for lo, one, hi in zip(bounds["low"], came, bounds["high"], strict=True))
            value, low, high = map(fmean, bounds.values())
            yield Predicted(name, value, low, high, fmean(came), inside, len(came))


def _exits(runs: Sequence[RunFacts], machine: str | None) -> Iterator[ExitPoint]:
    def at(name: str, depth: int) -> Measure | None:
        points = [(run, run.curves[f"exits/{name}"]) for run in runs if f"exits/{name}" in run.curves]
        known = ((run, dict(zip(one.steps, one.values, strict=True))) for run, one in points)
        values = (SeedValue(run.seed, values[depth], run.name) for run, values in known if depth in values)
        return measure(values, ratio=name == "tokens_per_second")

    depths = {step for run in runs if (one := run.curves.get("exits/bits_per_byte")) for step in one.steps}
    for depth in sorted(depths):
        if (quality := at("bits_per_byte", depth)) is not None:
            speed = at("tokens_per_second", depth) if machine is not None else None
            yield ExitPoint(depth, quality, speed, at("trained", depth))


def _experts(runs: Sequence[RunFacts]) -> Iterator[ExpertLoad]:
    """Means over seeds of what was recorded last."""
    layers: dict[int, dict[str, list[float]]] = defaultdict(lambda: defaultdict(list))
    for run in runs:
        for name, value in run.results.items():
            if known := EXPERTS.fullmatch(name):
                layers[int(known[1])][known[2]].append(value)
    for layer, values in sorted(layers.items()):
        if all(values[name] for name in ("load_entropy", "min_load", "dead_experts")):
            yield ExpertLoad(layer, *(fmean(values[name]) for name in ("load_entropy", "min_load", "dead_experts")))


def _sliced(runs: Sequence[RunFacts], *parts: str) -> tuple[Sliced, ...]:
    """Parts of the text in the order of the first run that has them, which is that of the context or of size."""
    rows: dict[str, list[tuple[RunFacts, Mapping[str, Any], float | None]]] = defaultdict(list)
    for run in runs:
        for part in parts:
            known = [one for one in run.language.get(part) or () if _number(one, "bits_per_byte") is not None]
            sizes = [_number(one, "bytes") or 0.0 for one in known]
            total = sum(sizes)
            for one, size in zip(known, sizes, strict=True):
                rows[one["name"]].append((run, one, size / total if total else None))
    found = []
    for name, entries in rows.items():
        quality, accuracy = (_of(entries, key) for key in ("bits_per_byte", "accuracy"))
        shares = [share for _, _, share in entries if share is not None]
        assert quality is not None
        found.append(Sliced(name, quality, accuracy, fmean(shares) if shares else None))
    return tuple(found)


def _of(entries: Iterable[tuple[RunFacts, Mapping[str, Any], object]], key: str) -> Measure | None:
    known = ((run, _number(one, key)) for run, one, _ in entries)
    return measure(SeedValue(run.seed, value, run.name) for run, value in known if value is not None)


def _number(one: Mapping[str, Any], key: str) -> float | None:
    value = one.get(key)
    return float(value) if isinstance(value, int | float) and math.isfinite(value) else None


def _statement(run: RunFacts, one: Mapping[str, Any]) -> Statement:
    kind = "claim" if one.get("kind") == "claim" else "gate"
    words = {key: str(one.get(key, "")) for key in ("name", "verdict", "measured", "asked", "because")}
    return Statement(run.name, run.seed, kind=kind, **words)  # type: ignore[arg-type]


def _whole(runs: Sequence[RunFacts], name: str) -> int | None:
    value = _mean(runs, name)
    return None if value is None else round(value)


def _mean(runs: Sequence[RunFacts], name: str) -> float | None:
    known = [run.results[name] for run in runs if name in run.results]
    return fmean(known) if known else None
