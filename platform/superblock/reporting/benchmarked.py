"""What the records of benchmarks say, in a report's rows."""

import math
from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Any

from superblock.reporting.content import MINIMUM_SEEDS, AblationRow, ProbeRow, SeedValue, SpeedRow
from superblock.reporting.facts import RecordFacts
from superblock.reporting.groups import measure

PEER = "transformers"
"""What the variants of the compared library are called."""
NOT_SIZES = frozenset(
    {"variants", "flops", "largest_difference", "fastest_baseline", "seconds", "disturbed", "kept_disturbed"}
)
ABLATION, PROBES = "superblock.ablation/1", "superblock.probes/1"
"""Schemas of records."""
LEVEL = 0.05
BITS = "test/bits_per_byte"
FEWER, MORE = "fewer bits per byte", "more bits per byte"
DECIDED = (FEWER, MORE, "better", "worse")
"""Words of a verdict; the last two are a sweep's."""


def record_name(record: RecordFacts) -> str:
    """How rows name the record that they come from."""
    return record.suite if record.suite == record.name else f"{record.suite}/{record.name}"


def is_complete(record: RecordFacts) -> bool:
    """Whether all that was asked for was measured."""
    return record.content.get("status") != "partial"


def rank(record: RecordFacts) -> tuple[bool, float, str]:
    """Larger for the record that counts: a finished one, then the newest."""
    return is_complete(record), record.started, record.name


def probed(record: RecordFacts) -> dict[tuple[str, str], list[tuple[str, Mapping[str, Any]]]]:
    """The scored runs of a record of the probes with their names, by task and arm, in its order."""
    rows: dict[tuple[str, str], list[tuple[str, Mapping[str, Any]]]] = defaultdict(list)
    if record.content["schema"] == PROBES:
        for name, run in (record.content.get("runs") or {}).items():
            if _number(run.get("score")) is not None:
                rows[(str(run["task"]), str(run["arm"]))].append((name, run))
    return rows


def probe_rows(records: Iterable[RecordFacts]) -> tuple[ProbeRow, ...]:
    """A row per task and arm, of the record that counts most among those that have it."""
    found: dict[tuple[str, str], ProbeRow] = {}
    for record in sorted(records, key=rank, reverse=True):
        for key, runs in probed(record).items():
            if key not in found:
                found[key] = _probe(record, *key, runs)
    return tuple(found.values())


def _probe(record: RecordFacts, task: str, arm: str, runs: Sequence[tuple[str, Mapping[str, Any]]]) -> ProbeRow:
    first = runs[0][1]
    score = measure(SeedValue(int(run["seed"]), float(run["score"]), name) for name, run in runs)
    assert score is not None
    levels = {}
    for level in dict.fromkeys(level for _, run in runs for level in run.get("levels") or {}):
        known = [(name, run, _number((run.get("levels") or {}).get(level))) for name, run in runs]
        one = measure(SeedValue(int(run["seed"]), value, name) for name, run, value in known if value is not None)
        if one is not None:
            levels[level] = one
    published = next((str(run["published"]) for _, run in runs if run.get("published")), None)
    chance = _number(first.get("chance")) or 0.0
    return ProbeRow(
        task, arm, score, str(first.get("score_name", "accuracy")), chance, levels, published, record_name(record)
    )


def speed_rows(records: Iterable[RecordFacts]) -> tuple[SpeedRow, ...]:
    """A row per case of the speed suite: our fastest variant, beside the fastest of the peer's."""
    return tuple(
        row
        for record in records
        if record.suite == "speed"
        for name, case in (record.content.get("cases") or {}).items()
        if (row := _speed(record, name, case)) is not None
    )


def _speed(record: RecordFacts, name: str, case: Mapping[str, Any]) -> SpeedRow | None:
    own = [(variant, one) for variant, one in case["variants"].items() if not one["baseline"]]
    if not own:
        return None
    variant, best = min(own, key=lambda pair: pair[1]["ms"]["median"])
    beside = str(case.get("fastest_baseline") or "")
    ratio = best["ratio"]["median"] if best.get("ratio") and beside.startswith(PEER) else None
    sizes = {key: value for key, value in case.items() if key not in NOT_SIZES} | {"variant": variant}
    return SpeedRow(
        name, float(best["ms"]["median"]), _number(best.get("tokens_per_second")), _number(best.get("matmul_share")),
        _number(ratio), _number(best.get("memory_ratio")), sizes | ({"beside": beside} if beside else {}), record_name(record),
    )  # fmt: skip


def ablation_rows(records: Iterable[RecordFacts]) -> tuple[AblationRow, ...]:
    """Every comparison of every experiment."""
    makers = {"growth": _growth, "exits": _exits}
    found: list[AblationRow] = []
    for record in records:
        results = record.content.get("results") or {}
        if record.content["schema"] == ABLATION:
            found += makers.get(record.suite, _sweep)(record_name(record), results)
    return tuple(found)


def _growth(name: str, results: Mapping[str, Any]) -> Iterator[AblationRow]:
    for transition, arms in (results.get("transitions") or {}).items():
        for arm, entry in arms.items():
            if entry.get("to_scratch"):
                comparison = f"{transition.replace('-', ' to ')} superblocks: {arm} - scratch, at equal FLOPs"
                yield _row(name, comparison, BITS, entry["to_scratch"])
    for part in ("methods", "extras"):
        for comparison, entry in (results.get(part) or {}).items():
            yield _row(name, comparison, BITS, entry)


def _exits(name: str, results: Mapping[str, Any]) -> Iterator[AblationRow]:
    for depth, found in results.items():
        for arm, entry in found["arms"].items():
            if entry.get("cost"):
                yield _row(name, f"{depth} superblocks: {arm} / exits off - 1", f"{BITS}, share", entry["cost"])
            for at, gap in (entry.get("gaps") or {}).items():
                if gap and arm != "off":
                    comparison = f"{depth} superblocks: exit {at} of {arm} / a model of {at} - 1"
                    yield _row(name, comparison, f"{BITS}, share", gap)


def _sweep(name: str, results: Mapping[str, Any]) -> Iterator[AblationRow]:
    budget = _budget(results.get("budget") or {})
    for one in (results.get("comparisons") or {}).values():
        comparison = f"{one['group']}: {one['arm']} - {one['reference']}"
        yield replace(_row(name, comparison, str(one.get("metric", BITS)), one, one.get("verdict")), budget=budget)


def _budget(known: Mapping[str, Any]) -> str:
    """Such as `20 TFLOP for each arm, equal FLOPs`."""
    unit = str(known.get("unit", ""))
    equal = {"": "", "flops": ", equal FLOPs"}.get(unit, f", equal {unit}, not equal FLOPs")
    return f"{known['words']} for each arm{equal}" if known.get("words") else ""


def _row(name: str, comparison: str, metric: str, entry: Mapping[str, Any], verdict: str | None = None) -> AblationRow:
    low, high, p = (_number(entry.get(key)) for key in ("low", "high", "p_holm"))
    seeds = int(entry["n"])
    words = verdict or _words(low, high, p, seeds)
    return AblationRow(
        name,
        comparison,
        metric,
        float(entry["mean"]),
        low,
        high,
        p,
        seeds,
        words,
        name,
        words in DECIDED,
    )


def _words(low: float | None, high: float | None, p: float | None, seeds: int) -> str:
    """What the interval of a difference in bits per byte shows."""
    if seeds < 2 or low is None or high is None:
        return "one seed shows nothing"
    if seeds < MINIMUM_SEEDS:
        return f"{seeds} of {MINIMUM_SEEDS} seeds that a verdict needs"
    if low <= 0 <= high or (p is not None and p >= LEVEL):
        return "undecided"
    return FEWER if high < 0 else MORE


def _number(value: object) -> float | None:
    return float(value) if isinstance(value, int | float) and math.isfinite(value) else None
