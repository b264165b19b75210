"""What an experiment leaves behind: one JSON file with a version, which the processes that share it write in turns.

schema       "superblock.ablation/1"
suite name fingerprint status started finished
settings     the configuration, without where results go
planned      by run: FLOPs of its training, and steps
runs         by name of the run (`1-3/identity/s2`): group, arm, seed, superblocks; overrides of `run` that train it; run
             (its folder) and parent; steps, tokens, flops, lineage_flops; bits per byte `val` and `test`, and of every
             exit; seconds of training and in all, processor seconds; machine, commit, dirty; digest of the data
failed       by name: time, reason
results      tables and comparisons: see each suite
says         what follows, in words
provenance   tracking.provenance of the start that made the file
"""

import math
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from filelock import FileLock

from superblock.benchmarks.records import COMPLETE, PARTIAL
from superblock.config.fields import ConfigError, differences
from superblock.tracking.files import read_json, write_json

SCHEMA = "superblock.ablation/1"
WAIT = 60.0
"""Seconds to wait for another process that writes the file, which takes milliseconds."""


@dataclass
class Record:
    """One experiment, finished or not."""

    suite: str
    name: str
    fingerprint: str
    settings: dict[str, Any]
    planned: dict[str, dict[str, float]] = field(default_factory=dict)
    runs: dict[str, dict[str, Any]] = field(default_factory=dict)
    failed: dict[str, dict[str, Any]] = field(default_factory=dict)
    results: dict[str, Any] = field(default_factory=dict)
    says: list[str] = field(default_factory=list)
    provenance: dict[str, Any] = field(default_factory=dict)
    status: str = PARTIAL
    started: float = field(default_factory=time.time)
    finished: float | None = None
    schema: str = SCHEMA

    @property
    def commits(self) -> list[str]:
        """The commits that its runs were trained with, one unless somebody changed the code in between."""
        return sorted({entry["commit"] + ("+changes" if entry["dirty"] else "") for entry in self.runs.values()})


@dataclass(frozen=True)
class RecordFile:
    """The file of an experiment that several processes may share."""

    folder: Path
    suite: str
    kind: type[Record] = Record

    @property
    def path(self) -> Path:
        return self.folder / f"{self.suite}.json"

    def read(self) -> Record | None:
        """The record; None if there is none yet.

        Raises:
            ConfigError: if the file holds something else.
        """
        data = read_json(self.path)
        if not data and not self.path.exists():
            return None
        try:
            return self.kind(**data) if data.get("schema") == self.kind.schema else _refuse(self.path)
        except TypeError:
            return _refuse(self.path)

    def begin(self, fresh: Record) -> Record:
        """The record to go on with: what is there, or else `fresh`, which is then written.

        Raises:
            ConfigError: if what is there was begun with other settings.
        """
        self.folder.mkdir(parents=True, exist_ok=True)
        with self._locked():
            there = self.read()
            if there is None:
                self._write(fresh)
                return fresh
        if there.fingerprint != fresh.fingerprint:
            found = ", ".join(f"{key.removeprefix('.')}={value}" for key, value, _ in _changed(there, fresh))
            raise ConfigError(
                f"name={fresh.name}: {self.path} holds an experiment with other settings ({found} there); choose another name"
            )
        return there

    def update(self, change: Callable[[Record], None]) -> Record:
        """Changes the record while no other process does."""
        with self._locked():
            record = self.read()
            assert record is not None, f"{self.path} was removed while the experiment ran"
            change(record)
            self._write(record)
            return record

    @contextmanager
    def claimed(self, run: str) -> Iterator[bool]:
        """Whether a run is this process's for as long as the context lasts; a process that dies gives its claim back."""
        folder = self.folder / "claims"
        folder.mkdir(parents=True, exist_ok=True)
        lock = FileLock(folder / f"{run.replace('/', '-')}.lock", blocking=False)
        try:
            lock.acquire()
        except TimeoutError:  # filelock's Timeout is one
            yield False
            return
        try:
            yield True
        finally:
            lock.release()

    def _locked(self) -> FileLock:
        return FileLock(self.folder / f".{self.suite}.lock", timeout=WAIT)

    def _write(self, record: Record) -> None:
        write_json(self.path, plain(asdict(record)))


def finish(record: Record) -> None:
    """Notes whether all that was planned has a result."""
    record.status = COMPLETE if set(record.planned) <= set(record.runs) else PARTIAL
    if record.status == COMPLETE and record.finished is None:
        record.finished = time.time()


def plain(value: Any) -> Any:
    """As JSON knows it: infinite bounds of an interval, and what else is not finite, become null."""
    if isinstance(value, dict):
        return {key: plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [plain(item) for item in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def _changed(there: Record, fresh: Record) -> list[tuple[str, Any, Any]]:
    """The first settings that differ, one at least."""
    found = list(differences(there.settings, fresh.settings, ""))[:4]
    return found or [("version", "another", "")]


def _refuse(path: Path) -> Record:
    raise ConfigError(f"{path}: is no record of this version; choose another name, or remove it")
