"""The rates of detection as Markdown, and the noise that real runs have, to read them by."""

import json
from collections import defaultdict
from collections.abc import Iterable, Mapping
from itertools import combinations
from pathlib import Path
from typing import Any

import numpy as np

NOISE_WORDS = {
    "normal": "normal", "heavy_tail": "heavy tail (t, 3 degrees of freedom)", "outliers": "normal, one in ten far to the worse",
    "changing": "deviation differs from point to point", "wandering": "neighbours correlate by 0.4",
}  # fmt: skip


def seen(records: Path) -> dict[str, Any]:
    """Deviations of logarithms in the committed records: between seeds, between pairs of a seed, between repeats.

    Args:
        records: folder with the records of growth and speed.
    """
    growth, speed = (json.loads((records / f"2026-11-21-{name}.json").read_text()) for name in ("growth", "speed"))
    tests: dict[str, dict[int, float]] = defaultdict(dict)
    for name, run in growth["runs"].items():
        tests[name.rpartition("/")[0]][run["seed"]] = run["test"]
    full = [by_seed for by_seed in tests.values() if len(by_seed) == 5]
    between = [np.log(list(by_seed.values())).std(ddof=1) for by_seed in full]
    pairs = [np.log([a[seed] / b[seed] for seed in a]).std(ddof=1) for a, b in combinations(full, 2)]
    repeats = [
        np.log(variant["seconds"]).std(ddof=1)
        for case in speed["cases"].values()
        for variant in case["variants"].values()
        if isinstance(variant.get("seconds"), list) and len(variant["seconds"]) == 5
    ]
    return {
        "bits_per_byte_between_seeds": _spread(between), "bits_per_byte_of_pairs_between_arms": _spread(pairs),
        "seconds_between_repeats": _spread(repeats), "records": ["2026-11-21-growth.json", "2026-11-21-speed.json"],
    }  # fmt: skip


def _spread(values: list[Any]) -> dict[str, float]:
    low, middle, high = np.quantile(values, [0.1, 0.5, 0.9])
    return {
        "tenth": round(float(low), 5),
        "median": round(float(middle), 5),
        "nine_tenths": round(float(high), 5),
        "of": len(values),
    }


def tables(record: Mapping[str, Any]) -> str:
    """The record as a page of Markdown."""
    rows = record["histories"]["rows"]
    noise = "\n".join(
        f"- {name.replace('_', ' ')}: {100 * one['median']:.2g} % (a tenth below {100 * one['tenth']:.2g} %, a tenth above "
        f"{100 * one['nine_tenths']:.2g} %)"
        for name, one in record["seen"].items() if isinstance(one, Mapping)
    )  # fmt: skip
    still = [row for row in rows if not row["change"]]
    moved = [row for row in rows if row["change"]]
    reports = record["reports"]["rows"]
    return "\n".join(
        [
            "# How often histories and comparisons are wrong", "",
            f"Made by `{record['command']}` on {record['date']}: {record['histories']['each']:,} made-up histories and "
            f"{record['reports']['each']:,} reports a cell. Minimum effects: 1 % of quality, 5 % of speed and memory. Deviations "
            "are of logarithms.", "", "Deviations seen in the records of real runs:", "", noise, "",
            "## Alarms of histories without a change, in percent", "", *_history_table(still), "",
            "## Planted changes to the worse that raise an alarm, in percent", "", *_history_table(moved), "",
            "## Reports: four stages, three metrics, beside a baseline", "",
            "Deviation and change in minimum effects (0.2 is 0.2 % of quality and 1 % of speed). The change is planted in quality "
            "and speed. Wrong: reports that call anything changed that is not, or in the wrong direction. Caught: reports that "
            "call a planted one regressed. Each: planted ones called regressed. Missed: planted ones called unchanged; the rest "
            "is undecided.", "", *_report_table(reports), "",
        ]
    )  # fmt: skip


def _history_table(rows: list[Mapping[str, Any]]) -> Iterable[str]:
    lengths = ("5", "10", "20", "50")
    yield "| metric | noise | deviation | change | points behind | " + " | ".join(f"{n} points" for n in lengths) + " |"
    yield "|---" * (5 + len(lengths)) + "|"
    for row in rows:
        shares = (f"{100 * row['alarms'][n]:.1f}" if n in row["alarms"] else "" for n in lengths)
        change = f"{100 * row['change']:g} % | {row['points_behind']}" if row["change"] else "none | "
        words = f"{row['metric']} | {NOISE_WORDS[row['noise']]} | {100 * row['deviation']:g} % | {change}"
        yield f"| {words} | {' | '.join(shares)} |"


def _report_table(rows: list[Mapping[str, Any]]) -> Iterable[str]:
    yield "| seeds | noise | deviation | change | in stages | wrong % | caught % | each % | missed % |"
    yield "|---" * 9 + "|"
    for row in rows:
        shares = (f"{100 * row[name]:.1f}" if name in row else "" for name in ("wrong", "caught", "each", "missed"))
        planted = f"{row['change']:g} | {row['stages']}" if row["change"] else "none | "
        yield f"| {row['seeds']} | {NOISE_WORDS[row['noise']]} | {row['deviation']:g} | {planted} | {' | '.join(shares)} |"
