"""How often comparisons and histories are wrong, over thousands of made-up ones whose truth is known.

    python tests/reporting/detection_rates.py [folder]

Writes `<date>-detection.json` and the same as tables, `.md`, to the folder (reports/records without one): false alarms where nothing changed, and the share
of planted changes that is found, by length of the history, noise, size of the change and points behind it, and by number of
seeds. Equal seeds give equal rates; about two minutes of one core. Deviations of the noise are of logarithms,
0.01 is 1 %; a change of 0.05 is 5 % slower, or 5 % more bits per byte. A point of a history is an occasion: the mean (speed: median) of its seeds.
"""

import math
import sys
import time
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parent))

import numpy as np
from detection_tables import seen, tables
from made_up import BITS, MEMORY, NOISES, SPEED, group

from superblock.reporting.changepoint import LEVEL
from superblock.reporting.comparing import compare
from superblock.reporting.content import Group
from superblock.reporting.history import judge
from superblock.reporting.metrics import METRICS, MINIMUM_EFFECT
from superblock.tracking.files import write_json
from superblock.tracking.provenance import code_state

RECORDS = Path(__file__).parents[2] / "reports" / "records"
HISTORIES, REPORTS = 1000, 1000
LENGTHS = (5, 10, 20, 50)
SPREADS = {"speed": (0.005, 0.01, 0.02, 0.05), "quality": (0.001, 0.002, 0.004, 0.01)}
METRIC = {"speed": SPEED, "quality": BITS}
STAGES = ("mvp1", "mvp2", "mvp3", "mvp4")


def alarms(
    kind: str, noise: str, spread: float, length: int, *, change: float = 0.0, after: int = 3, count: int = HISTORIES
) -> float:
    """Share of histories with an alarm.

    Args:
        kind: speed or quality.
        noise: one of NOISES.
        spread: its deviation.
        length: points.
        change: size of a planted change to the worse.
        after: points behind it.
        count: histories.
    """
    rng = np.random.default_rng([length, after, int(1e6 * spread), list(NOISES).index(noise), int(1e6 * change)])
    metric = METRICS[METRIC[kind]]
    worse = 1 if metric.better == "lower" else -1
    found = 0
    for _ in range(count):
        # outliers are to the worse for quality too: a run that diverged
        logs = -worse * spread * NOISES[noise](rng, length)
        logs[length - after :] += math.log1p(worse * change)
        found += judge(logs.tolist(), metric, MINIMUM_EFFECT[metric.kind]).alarm
    return found / count


def history_rows() -> Iterator[dict[str, Any]]:
    """Every cell of the histories' table."""
    for kind in SPREADS:
        for noise in NOISES:
            for spread in SPREADS[kind][1:] if kind == "speed" else SPREADS[kind][-1:]:
                yield _row(kind, noise, spread, 0.0, 0, LENGTHS)
    for kind, least in (("speed", 0.05), ("quality", 0.01)):
        for noise in ("normal", "heavy_tail", "outliers"):
            for spread in SPREADS[kind]:
                yield _row(kind, noise, spread, least, 3, LENGTHS)
    for noise in ("normal", "outliers"):
        for spread in SPREADS["speed"]:
            yield _row("speed", noise, spread, 0.05, 6, (20,))
    for kind, change in (("speed", 0.01), ("speed", 0.02), ("speed", 0.1), ("quality", 0.02), ("quality", 0.05)):
        for spread in SPREADS[kind]:
            yield _row(kind, "normal", spread, change, 3, (10, 20))


def _row(kind: str, noise: str, spread: float, change: float, after: int, lengths: tuple[int, ...]) -> dict[str, Any]:
    share = {str(n): alarms(kind, noise, spread, n, change=change, after=after) for n in lengths}
    return {
        "metric": kind,
        "noise": noise,
        "deviation": spread,
        "change": change,
        "points_behind": after,
        "alarms": share,
    }


def report_row(
    noise: str, share: float, seeds: int, change: float, stages: int, count: int = REPORTS
) -> dict[str, Any]:
    """Reports that compare four stages in three metrics with a baseline.

    Args:
        noise: of a seed's change; see NOISES.
        share: its deviation, in minimum effects: 0.2 is 0.2 % of quality, 1 % of speed and memory.
        seeds: pairs.
        change: planted, to the worse, in minimum effects, in quality and speed.
        stages: how many of the four stages have it.
        count: reports.

    Returns:
        Shares of reports: `wrong` calls something improved, or regressed that had no planted change; `caught` calls a planted
        one regressed; `each` is the share of planted changes that are; `missed` those called unchanged.
    """
    rng = np.random.default_rng([seeds, int(1000 * share), list(NOISES).index(noise), int(1000 * change), stages])
    wrong = caught = each = missed = 0
    for _ in range(count):
        changes = compare(*_groups(rng, noise, share, seeds, change, stages))
        planted = {(f"mini/{stage}/default", metric) for stage in STAGES[:stages] for metric in (BITS, SPEED) if change}
        verdicts = {(one.group, one.metric): one.verdict for one in changes}
        called = {key for key, word in verdicts.items() if word in ("improved", "regressed")}
        right = {key for key in planted if verdicts[key] == "regressed"}
        wrong += bool(called - right)
        caught += bool(right)
        each += len(right)
        missed += sum(verdicts[key] == "unchanged" for key in planted)
    planted_count = 2 * stages * bool(change)
    rates = {"wrong": wrong / count}
    if planted_count:
        rates |= {
            "caught": caught / count,
            "each": each / count / planted_count,
            "missed": missed / count / planted_count,
        }
    return {"noise": noise, "deviation": share, "seeds": seeds, "change": change, "stages": stages, **rates}


def _groups(
    rng: np.random.Generator, noise: str, share: float, seeds: int, change: float, stages: int
) -> tuple[dict[str, Group], dict[str, Group]]:
    before, after = {}, {}
    for number, stage in enumerate(STAGES):
        old, new = {}, {}
        for metric in (BITS, SPEED, MEMORY):
            effect = MINIMUM_EFFECT[METRICS[metric].kind]
            worse = 1 if METRICS[metric].better == "lower" else -1
            level = 0.005 * rng.standard_normal(seeds)
            moved = math.log1p(worse * change * effect) if number < stages and metric != MEMORY else 0.0
            old[metric] = level.tolist()
            new[metric] = (level + moved + share * effect * NOISES[noise](rng, seeds)).tolist()
        key = f"mini/{stage}/default"
        before[key], after[key] = group(old, stage=stage), group(new, stage=stage)
    return before, after


def report_rows() -> Iterator[dict[str, Any]]:
    """Every cell of the comparisons' table."""
    for seeds in (3, 5):
        for noise in ("normal", "heavy_tail", "outliers"):
            for share in (0.5, 2.0):
                yield report_row(noise, share, seeds, 0.0, 4)
        for share in (0.1, 0.2, 0.4):
            yield report_row("normal", share, seeds, 1.0, 4)
        yield report_row("normal", 0.1, seeds, 1.0, 1)


def main() -> None:
    began, day = time.process_time(), datetime.now(UTC).strftime("%Y-%m-%d")
    folder = Path(sys.argv[1]) if len(sys.argv) > 1 else RECORDS
    folder.mkdir(parents=True, exist_ok=True)
    histories, reports = list(history_rows()), list(report_rows())
    code = code_state()
    record = {
        "what": "false alarms and found changes of reporting/history.py and reporting/comparing.py on made-up data",
        "date": day, "command": "python tests/reporting/detection_rates.py", "commit": code.commit, "dirty": code.dirty,
        "minimum_effects": dict(MINIMUM_EFFECT), "level_of_a_change": LEVEL, "seen": seen(RECORDS),
        "histories": {"each": HISTORIES, "rows": histories}, "reports": {"each": REPORTS, "rows": reports},
        "processor_seconds": round(time.process_time() - began, 1),
    }  # fmt: skip
    path = folder / f"{day}-detection.json"
    unfinished = path.with_suffix(".md.tmp")
    unfinished.write_text(tables(record), encoding="utf-8")
    unfinished.replace(path.with_suffix(".md"))
    write_json(path, record)
    print(f"{path}: {len(histories) + len(reports)} rows in {record['processor_seconds']} s")


if __name__ == "__main__":
    main()
