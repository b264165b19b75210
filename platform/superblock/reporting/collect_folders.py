"""Runs from their own folders: no MLflow, and of a long spool only the lines that a report shows are parsed."""

import json
import math
import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from superblock.reporting.metrics import CURVES, EXPERTS, is_result
from superblock.reporting.run_facts import Told
from superblock.reporting.thinning import chosen, thin
from superblock.tracking.files import read_json
from superblock.tracking.identity import IDENTITY_FILE
from superblock.tracking.run import ARTIFACTS
from superblock.tracking.runs import SUMMARY_FILE, read_run
from superblock.tracking.spool import FILE_NAME

Problem = Callable[[str], None]
STATEMENTS_FILE, LANGUAGE_FILE, SAMPLES_FILE = "statements.json", "language.json", "samples.md"
LABELS = ("stage", "scale", "arm", "seed", "fingerprint", "suite")
_METRICS = re.compile(rb'\{"kind":"metrics","time":\d+,"step":(\d+),"values":\{"([^/"]*)')
"""How `Spool` writes the head of such a line, up to the section of its first metric: a line holds one section's."""
_NOT_FINITE = {"nan": math.nan, "inf": math.inf, "-inf": -math.inf}


def read_folders(root: Path, problem: Problem) -> Iterator[Told]:
    """Every run below a folder, in order of name.

    Args:
        root: folder of the runs' folders.
        problem: is told what cannot be read.
    """
    for path in sorted(root.glob(f"*/{IDENTITY_FILE}")):
        try:
            told = _read(path.parent, problem)
        except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
            problem(f"{path.parent} cannot be read ({type(error).__name__}: {error})")
            continue
        if told:
            yield told


def _read(folder: Path, problem: Problem) -> Told | None:
    known, record = _json(folder / IDENTITY_FILE, problem), read_run(folder)
    if record is None:
        if known:
            problem(f"{folder / IDENTITY_FILE} names no run")
        return None
    over = record.status == "FINISHED"
    spool = read_spool(folder / FILE_NAME) if over else Spooled()
    if over and not spool.tags:
        problem(f"{folder / FILE_NAME} is missing or cannot be read")
    samples = folder / ARTIFACTS / SAMPLES_FILE
    return Told(
        name=record.name, status=record.status, started=math.floor(record.started * 1000) / 1000, ended=spool.ended,
        tags={**{key: str(known[key]) for key in LABELS if key in known}, **spool.tags}, params=spool.params,
        latest=spool.latest, curves=spool.curves, data=spool.data, uid=str(known["uid"]),
        mlflow_run_id=record.mlflow_run_id, experiment_id=known.get("experiment_id"),
        summary=_json(folder / SUMMARY_FILE, problem), statements=_json(folder / STATEMENTS_FILE, problem),
        language=_json(folder / LANGUAGE_FILE, problem),
        samples=samples.read_text("utf-8", errors="replace") if samples.is_file() else None,
    )  # fmt: skip


def _json(path: Path, problem: Problem) -> dict[str, Any]:
    found = read_json(path)
    if not found and path.exists():
        problem(f"{path} is not a JSON object")
    return found


@dataclass
class Spooled:
    """What a spool holds for a report."""

    tags: dict[str, str] = field(default_factory=dict)
    params: dict[str, str] = field(default_factory=dict)
    latest: dict[str, float] = field(default_factory=dict)
    curves: dict[str, Any] = field(default_factory=dict)
    data: str = ""
    ended: float | None = None


Place = tuple[int, int]
"""Step and byte offset of a line."""


def read_spool(path: Path) -> Spooled:
    """Reads a spool once, noting where the points lie, and parses those that are kept.

    A rewind makes the points after its step void, as in `tracking.spool`. Of two points with one step the later counts.
    """
    found = Spooled()
    places: dict[str, list[Place]] = {name: [] for name in (*CURVES, "experts")}
    marks = {name.partition("/")[0].encode(): (f'"{name}":'.encode(), name) for name in CURVES}
    marks[b"experts"] = (b"", "experts")
    if not path.exists():
        return found
    with open(path, "rb") as file:
        position = 0
        for line in file:
            begin, position = position, position + len(line)
            if not line.endswith(b"\n"):
                break
            head = _METRICS.match(line)
            if head is None:
                _other(line, found, places)
            elif (step := int(head[1])) == 0:
                found.latest.update((k, v) for k, v in _values(line).items() if is_result(k))
            elif (known := marks.get(head[2])) is not None and known[0] in line:
                places[known[1]].append((step, begin))
        for name in CURVES:
            _pick(file, name, places[name], found)
        if places["experts"]:
            _, values = _at(file, max(places["experts"]))
            found.latest.update((key, value) for key, value in values.items() if EXPERTS.fullmatch(key))
    return found


def _pick(file: Any, name: str, places: list[Place], found: Spooled) -> None:
    """Parses the points of a curve that are kept; what else the last one's line tells of the end is kept too."""
    once = sorted(dict(places).items())
    if not once:
        return
    read = [_at(file, once[i]) for i in chosen(len(once))]
    found.curves[name] = thin([(step, values[name]) for step, values in read if name in values])
    found.latest.update((key, value) for key, value in read[-1][1].items() if is_result(key))


def _at(file: Any, place: Place) -> tuple[int, dict[str, float]]:
    file.seek(place[1])
    return place[0], _values(file.readline())


def _values(line: bytes) -> dict[str, float]:
    try:
        return {key: _NOT_FINITE.get(value, value) for key, value in json.loads(line)["values"].items()}
    except (ValueError, KeyError, TypeError, AttributeError):  # cut short by a kill
        return {}


def _other(line: bytes, found: Spooled, places: dict[str, list[Place]]) -> None:
    """Everything but metrics."""
    try:
        event = json.loads(line)
        kind = event["kind"]
    except (ValueError, KeyError, TypeError):
        return
    if kind == "tags":
        found.tags.update((key, str(value)) for key, value in event["values"].items())
    elif kind == "params":
        for key, value in event["values"].items():
            found.params.setdefault(key, str(value))  # as in MLflow, where a resumed run cannot change one
    elif kind == "dataset" and event["context"] == "training":
        found.data = event["description"]
    elif kind == "status":
        found.ended = None if event["status"] == "RUNNING" else event["time"] / 1000
    elif kind == "rewind":
        for name, known in places.items():
            places[name] = [place for place in known if place[0] <= event["step"]]
