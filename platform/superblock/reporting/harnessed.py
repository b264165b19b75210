"""What the records of lm-evaluation-harness say, in a report's rows."""

import math
from collections.abc import Iterable, Iterator

from superblock.reporting.benchmarked import record_name
from superblock.reporting.content import HarnessRow
from superblock.reporting.facts import RecordFacts

SCHEMA = "superblock.harness/1"


def limit_of(record: RecordFacts) -> int | None:
    """How many examples of each task were asked at most; None is all."""
    known = (record.content.get("settings") or {}).get("limit")
    return None if known is None else int(known)


def harness_rows(records: Iterable[RecordFacts]) -> tuple[HarnessRow, ...]:
    """A row for each metric of each task of each model; a perplexity beyond all numbers has none."""
    return tuple(row for record in records if record.content["schema"] == SCHEMA for row in _rows(record))


def _rows(record: RecordFacts) -> Iterator[HarnessRow]:
    for task, entry in (record.content.get("tasks") or {}).items():
        for metric, one in entry["metrics"].items():
            if not math.isfinite(one["value"]):
                continue
            chance = entry.get("chance") if metric.startswith("acc") else None
            yield HarnessRow(
                task, metric, float(one["value"]), one["stderr"], chance, int(entry["examples"]), limit_of(record),
                str(record.content["run"]), record_name(record),
            )  # fmt: skip
