"""Records of benchmarks, wherever they lie."""

import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from superblock.reporting.benchmarked import ABLATION, PROBES, ablation_rows, probe_rows, speed_rows
from superblock.reporting.current_records import current
from superblock.reporting.facts import RecordFacts
from superblock.reporting.harnessed import SCHEMA as HARNESS
from superblock.reporting.harnessed import harness_rows
from superblock.reporting.sources import sources
from superblock.tracking.provenance import Hardware

Problem = Callable[[str], None]
SCHEMAS = ("superblock.benchmark/1", ABLATION, PROBES, HARNESS)
"""Those that are understood here."""


def read_records(places: Sequence[str], problem: Problem) -> tuple[RecordFacts, ...]:
    """The records that a report shows, see `current_records`, oldest first.

    Args:
        places: files, and folders that hold records at any depth; what is not there is passed over if it is a folder's
            default, and told if it is a file.
        problem: is told what cannot be read.
    """
    read = (_read(path, named, problem) for path, named in _files(places, problem))
    return current([record for record in read if record is not None], problem)


def _files(places: Sequence[str], problem: Problem) -> Iterator[tuple[Path, bool]]:
    """Files that may be records; the second tells whether somebody named the file itself."""
    for place in map(Path, places):
        if place.is_dir():
            yield from ((path, False) for path in sorted(place.rglob("*.json")) if not _hidden(path, place))
        elif place.exists() or place.suffix:
            yield place, True


def _hidden(path: Path, place: Path) -> bool:
    return any(part.startswith(".") for part in path.relative_to(place).parts)


def _read(path: Path, named: bool, problem: Problem) -> RecordFacts | None:
    try:
        content = json.loads(path.read_text("utf-8"))
    except (OSError, ValueError) as error:
        problem(f"{path} cannot be read ({type(error).__name__})")
        return None
    schema = content.get("schema") if isinstance(content, dict) else None
    if schema not in SCHEMAS:
        if named or (isinstance(schema, str) and schema.rpartition("/")[0] in {s.rpartition("/")[0] for s in SCHEMAS}):
            problem(
                f"{path} is no record that this version understands (schema {schema}, known are {', '.join(SCHEMAS)})"
            )
        return None
    try:
        record = _facts(content)
        _shown(record)
        return record
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        problem(f"{path} is not a whole record ({type(error).__name__}: {error})")
        return None


def _facts(content: Mapping[str, Any]) -> RecordFacts:
    provenance = content.get("provenance") or {}
    code, hardware = provenance.get("code") or {}, provenance.get("hardware") or {}
    finished = content.get("finished")
    return RecordFacts(
        suite=str(content["suite"]), name=str(content["name"]), started=float(content["started"]),
        finished=None if finished is None else float(finished), commit=str(content.get("commit") or code.get("commit", "")),
        machine=str(content.get("machine") or hardware.get("fingerprint", "")), hardware=_hardware(hardware), content=content,
    )  # fmt: skip


def _shown(record: RecordFacts) -> None:
    """Makes the rows that a report makes of the record, so that one that it cannot be made of is told here with its file.

    Raises:
        KeyError, TypeError, ValueError, AttributeError: if a part is of another kind.
    """
    probe_rows([record])
    speed_rows([record])
    ablation_rows([record])
    harness_rows([record])
    sources([], [record], [])


def _hardware(known: Mapping[str, Any]) -> str:
    try:
        return Hardware(known["cpu"], known["cores"], known["memory_gib"], list(known["gpus"])).describe()
    except KeyError:
        return ""
