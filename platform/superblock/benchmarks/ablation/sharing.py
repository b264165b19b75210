"""Does what an experiment's record is to hold, each thing once: alone or beside other processes with the same command."""

import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Generic, Protocol, TypeVar

from superblock.benchmarks.ablation.record import Record, RecordFile, finish

PAUSE = 2.0
"""Seconds between two looks for work while other processes do the rest."""


class Doable(Protocol):
    """What leads to one entry of the record."""

    @property
    def name(self) -> str: ...

    @property
    def needs(self) -> tuple[str, ...]:
        """Names of those that must have finished before it begins."""
        ...


R = TypeVar("R", bound=Doable)
Shown = TypeVar("Shown", bound=Doable, contravariant=True)


class Telling(Protocol[Shown]):
    """What a person sees of it."""

    def begin(self, run: Shown) -> None: ...

    def done(self, run: Shown, entry: Mapping[str, Any], record: Record) -> None: ...

    def failed(self, run: Shown, reason: str, record: Record) -> None: ...

    def waiting(self, count: int) -> None: ...


class Sharing(Generic[R]):
    """This process's part in an experiment; how a run is done is the subclass's, a dataclass with these fields."""

    file: RecordFile
    runs: Sequence[R]
    """All that are to be done, in the order in which they are worth doing."""
    lines: Telling[R]
    conclude: Callable[[Record], None]
    """Brings the record's results up to date after a run."""
    minutes: float
    """No run begins after this time."""
    pause: float
    began: float
    """When this process started."""

    def do(self, run: R, record: Record) -> dict[str, Any]:
        """The entry of the record; whatever it raises is noted as the run's failure."""
        raise NotImplementedError

    def work(self) -> Record:
        """Until every run is recorded, has failed, or waits for one that has; or until the time is up."""
        waiting = False
        while True:
            record = self.file.update(finish)
            open_runs = self._open(record)
            if not open_runs or time.time() - self.began > 60 * self.minutes:
                return record
            ready = [run for run in open_runs if set(run.needs) <= set(record.runs)]
            if any(self._take(run) for run in ready):
                waiting = False
                continue
            if not waiting:
                self.lines.waiting(len(open_runs))
            waiting = True
            time.sleep(self.pause)

    def _open(self, record: Record) -> list[R]:
        """What can still be done since this process started: a failure of an earlier start is tried once more."""
        lost = {name for name, failure in record.failed.items() if failure["time"] > self.began}
        for run in self.runs:  # a run stands behind those it needs
            if set(run.needs) & lost:
                lost.add(run.name)
        return [run for run in self.runs if run.name not in record.runs and run.name not in lost]

    def _take(self, run: R) -> bool:
        """Does a run unless another process has it or has just done it."""
        with self.file.claimed(run.name) as mine:
            if not mine:
                return False
            record = self.file.read()
            assert record is not None
            if run not in self._open(record):
                return True
            self.lines.begin(run)
            try:
                entry = self.do(run, record)
            except Exception as error:
                reason = f"{type(error).__name__}: {' '.join(str(error).split())[:300]}"
                record = self.file.update(lambda record: self._note_failure(record, run, reason))
                self.lines.failed(run, reason, record)
                return True
            record = self.file.update(lambda record: self._note(record, run, entry))
            self.lines.done(run, entry, record)
            return True

    def _note(self, record: Record, run: R, entry: dict[str, Any]) -> None:
        record.runs[run.name] = entry
        record.failed.pop(run.name, None)
        finish(record)
        self.conclude(record)

    def _note_failure(self, record: Record, run: R, reason: str) -> None:
        record.failed[run.name] = {"time": time.time(), "reason": reason}
        self.conclude(record)
