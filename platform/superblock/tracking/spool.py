"""Everything a run records, first of all in its own folder.

`spool.jsonl` holds one event per line and is only ever appended to, so whatever happens to the process, the disk holds
everything up to the last whole line. Delivery to MLflow reads the same file (`mlflow_sender`), so an absent server costs
training nothing and loses nothing; reports can read it without MLflow.

Kinds and their data:
    metrics   {"step": int, "values": {key: float}}
    params    {"values": {key: str}}
    tags      {"values": {key: str}}
    artifact  {"path": str, "folder": str | None}     path is relative to the run's folder, or absolute
    dataset   {"name": str, "digest": str, "context": str, "description": str}
    status    {"status": "RUNNING" | "FINISHED" | "FAILED" | "KILLED"}
    rewind    {"step": int}                           training continues after this step; later metrics no longer count
"""

import hashlib
import json
import math
import os
import re
import sys
import threading
import time
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

FILE_NAME = "spool.jsonl"
SYSTEM_PREFIX = "system/"
"""Metrics of the machine: their step counts samples, not training steps, so they are never rewound."""

MAX_KEY = 250
MAX_PARAM = 6000
MAX_TAG = 8000
_FORBIDDEN = re.compile(r"[^\w/.\- ]")
_NOT_FINITE = {"nan": math.nan, "inf": math.inf, "-inf": -math.inf}


@dataclass(frozen=True)
class Event:
    """One line of the spool."""

    kind: str
    time: int  # milliseconds since 1970
    data: dict[str, Any]
    start: int  # byte offset of the line
    end: int  # byte offset after it

    def count(self) -> int:
        """How many values the event carries."""
        return len(self.data["values"]) if "values" in self.data else 1


class Spool:
    """Appends events to `<folder>/spool.jsonl`; safe to call from several threads.

    A call is one `write` to the operating system, which keeps it when the process is killed (not when the power fails:
    a synchronisation per line would cost more than a training step). A full disk never stops training: the events are
    counted in `lost` and reported once.
    """

    def __init__(self, folder: Path) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        self.path = folder / FILE_NAME
        self.lost = 0
        self._lock = threading.Lock()
        self._file = open(self.path, "ab", buffering=0)  # noqa: SIM115 - open as long as the run
        self._torn = not _ends_with_newline(self.path)

    def append(self, kind: str, data: Mapping[str, Any]) -> None:
        """Adds one event. Floats that JSON cannot hold are written as "nan", "inf" and "-inf"."""
        record = {"kind": kind, "time": time.time_ns() // 1_000_000, **data}
        line = json.dumps(record, separators=(",", ":"), allow_nan=False).encode() + b"\n"
        with self._lock:
            if self._file.closed:
                return
            try:
                if self._torn:  # a line cut short by a kill or a full disk must not swallow this one
                    line = b"\n" + line
                self._torn = self._file.write(line) != len(line)
            except OSError as error:
                self._torn = True
                self._lose(error)

    def metrics(self, values: Mapping[str, float], step: int) -> None:
        """Adds metrics of one step; keys are made valid for MLflow."""
        self.append("metrics", {"step": step, "values": {clean_key(k): _to_json(float(v)) for k, v in values.items()}})

    def rewind(self, step: int) -> None:
        """Declares every training metric after `step` void, because training continues from a checkpoint there."""
        self.append("rewind", {"step": step})

    def close(self) -> None:
        """Ends writing; later calls are ignored."""
        with self._lock:
            self._file.close()

    def _lose(self, error: OSError) -> None:
        if not self.lost:
            print(f"tracking: cannot write {self.path}: {error}; training goes on, values are lost", file=sys.stderr)
        self.lost += 1


def scan(path: Path, start: int = 0, end: int | None = None) -> Iterator[Event]:
    """Yields every whole event between two byte offsets as written, void ones too.

    Lines that are not JSON objects (cut short by a kill) are passed over; an unfinished last line is left for later.
    """
    if not path.exists():
        return
    with open(path, "rb") as file:
        file.seek(start)
        position = start
        for line in file:
            if not line.endswith(b"\n") or (end is not None and position >= end):
                return
            begin, position = position, position + len(line)
            event = _parse(line, begin, position)
            if event:
                yield event


def read_spool(path: Path) -> list[Event]:
    """The events that count, in order: metrics that a later rewind made void are left out.

    Args:
        path: the spool file or the run's folder.
    """
    return drop_void(scan(path / FILE_NAME if path.is_dir() else path))


def drop_void(events: Iterable[Event]) -> list[Event]:
    """Without rewinds and the training metrics they made void."""
    kept: list[Event] = []
    for event in events:
        if event.kind == "rewind":
            kept = [e for e in kept if not _is_after(e, event.data["step"])]
        else:
            kept.append(event)
    return kept


def metric_history(path: Path) -> dict[str, list[tuple[int, float]]]:
    """For every metric its (step, value) pairs in order of step, one per step: the value recorded last."""
    series: dict[str, dict[int, float]] = {}
    for event in read_spool(path):
        if event.kind == "metrics":
            for key, value in event.data["values"].items():
                series.setdefault(key, {})[event.data["step"]] = value
    return {key: sorted(points.items()) for key, points in series.items()}


def last_values(path: Path, kind: str) -> dict[str, str]:
    """The last value of every key among all `params` or `tags`."""
    values: dict[str, str] = {}
    for event in read_spool(path):
        if event.kind == kind:
            values.update(event.data["values"])
    return values


@lru_cache(maxsize=4096)
def clean_key(key: str) -> str:
    """The nearest name MLflow takes on every system: letters, digits and `_ / . - space`, a plain relative path."""
    parts = (part for part in _FORBIDDEN.sub("_", key).split("/") if part not in ("", ".", ".."))
    name = "/".join(parts) or "_"
    if len(name) > MAX_KEY:
        name = name[: MAX_KEY - 9] + "-" + hashlib.sha256(name.encode()).hexdigest()[:8]
    return name


def cut(value: object, limit: int) -> str:
    """Text of at most `limit` characters; what was cut off is marked."""
    text = str(value)
    return text if len(text) <= limit else text[: limit - 4] + " ..."


def _is_after(event: Event, step: int) -> bool:
    """Whether the event holds training metrics of a later step."""
    if event.kind != "metrics" or event.data["step"] <= step:
        return False
    return not all(key.startswith(SYSTEM_PREFIX) for key in event.data["values"])


def _to_json(value: float) -> float | str:
    return value if math.isfinite(value) else str(value)


def _parse(line: bytes, start: int, end: int) -> Event | None:
    try:
        record = json.loads(line)
        kind, stamp = record.pop("kind"), record.pop("time")
    except (ValueError, AttributeError, KeyError):
        return None
    if kind == "metrics":
        record["values"] = {key: _NOT_FINITE.get(value, value) for key, value in record["values"].items()}
    return Event(kind, stamp, record, start, end)


def _ends_with_newline(path: Path) -> bool:
    with open(path, "rb") as file:
        if file.seek(0, os.SEEK_END) == 0:
            return True
        file.seek(-1, os.SEEK_END)
        return file.read(1) == b"\n"
