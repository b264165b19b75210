"""What the harness suite leaves behind: one JSON file with a version.

schema       "superblock.harness/1"
suite name run checkpoint commit machine started finished
settings     which tasks were asked for, and how
tasks        by name: metrics by name (value, stderr or null), examples, version of the task, shots, chance (accuracy of
             guessing; null where it is not known)
provenance   tracking.provenance
"""

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from superblock.tracking.files import write_json

SCHEMA = "superblock.harness/1"


@dataclass(frozen=True, kw_only=True)
class Record:
    """One call of the suite."""

    name: str
    run: str
    """Name of the run, or the folder of a checkpoint without one."""
    checkpoint: str
    commit: str
    machine: str
    settings: Mapping[str, Any]
    tasks: Mapping[str, Mapping[str, Any]]
    provenance: Mapping[str, Any]
    started: float
    finished: float
    suite: str = "harness"
    schema: str = field(default=SCHEMA)

    def save(self, path: Path) -> None:
        """Writes the file; it is either old or new, never half."""
        path.parent.mkdir(parents=True, exist_ok=True)
        write_json(path, asdict(self))


def metrics(record: Record) -> dict[str, float]:
    """The single results that the tracker records: `harness/<task>/<metric>`, and `_stderr` behind it."""
    found: dict[str, float] = {}
    for task, entry in record.tasks.items():
        for metric, one in entry["metrics"].items():
            found[f"harness/{task}/{metric}"] = one["value"]
            if one["stderr"] is not None:
                found[f"harness/{task}/{metric}_stderr"] = one["stderr"]
    return found
