"""Does the runs of an experiment, each once: alone or beside other processes with the same command."""

import shutil
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import redirect_stdout
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from superblock.benchmarks.ablation.plan import Compose, Run
from superblock.benchmarks.ablation.record import Record, RecordFile, finish
from superblock.benchmarks.ablation.screen import Lines
from superblock.config.fields import ConfigError
from superblock.config.run import RunConfig
from superblock.config.tracking import TrackingConfig
from superblock.evaluation.summary import RunSummary
from superblock.tracking.provenance import Code
from superblock.tracking.runs import read_run, runs_root

Train = Callable[..., RunSummary | None]
"""`training.loop.train`."""
PAUSE = 2.0
"""Seconds between two looks for work while other processes do the rest."""


@dataclass
class Worker:
    """This process's part in an experiment."""

    file: RecordFile
    runs: Sequence[Run]
    """All that are to be done, in the order in which they are worth doing."""
    common: Sequence[str]
    compose: Compose
    train: Train
    tracking: TrackingConfig
    lines: Lines
    code: Code
    machine: str
    conclude: Callable[[Record], None]
    """Brings the record's results up to date after a run."""
    minutes: float = float("inf")
    """No run begins after this time."""
    pause: float = PAUSE
    needed: frozenset[str] = frozenset()
    """Runs whose checkpoints others begin from."""
    _began: float = field(default_factory=time.time)
    _mine: int = 0

    def work(self) -> Record:
        """Until every run is recorded, has failed, or waits for one that has; or until the time is up."""
        waiting = False
        while True:
            record = self.file.update(finish)
            open_runs = self._open(record)
            if not open_runs or time.time() - self._began > 60 * self.minutes:
                return record
            ready = [run for run in open_runs if set(run.needs) <= set(record.runs)]
            if any(self._take(run) for run in ready):
                waiting = False
                continue
            if not waiting:
                self.lines.waiting(len(open_runs))
            waiting = True
            time.sleep(self.pause)

    def _open(self, record: Record) -> list[Run]:
        """What can still be done since this process started: a failure of an earlier start is tried once more."""
        lost = {name for name, failure in record.failed.items() if failure["time"] > self._began}
        for run in self.runs:  # a run stands behind those it needs
            if set(run.needs) & lost:
                lost.add(run.name)
        return [run for run in self.runs if run.name not in record.runs and run.name not in lost]

    def _take(self, run: Run) -> bool:
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
                entry = self._do(run, record)
            except Exception as error:
                reason = f"{type(error).__name__}: {' '.join(str(error).split())[:300]}"
                record = self.file.update(lambda record: self._note_failure(record, run, reason))
                self.lines.failed(run, reason, record)
                return True
            record = self.file.update(lambda record: self._note(record, run, entry))
            self._mine += 1
            self.lines.done(run, entry, record)
            return True

    def _do(self, run: Run, record: Record) -> dict[str, Any]:
        """Trains; the entry of the record."""
        words = run.command_line(record.name, self.common, record.runs)
        config = self.compose(words)
        config.tracking = replace(self.tracking, arm=run.arm)
        folder = runs_root() / run.folder(record.name)
        discard(folder)
        wall, processor = time.perf_counter(), time.process_time()
        tags = {"suite": self.file.suite, "arm": run.arm, "group": run.group, "experiment": record.name}
        summary = self._quietly(run, config, tags)
        if run.name not in self.needed:
            shutil.rmtree(folder / "checkpoints", ignore_errors=True)
        return entry_of(run, summary) | {
            "overrides": words,
            "seconds_in_all": round(time.perf_counter() - wall, 2),
            "processor_seconds": round(time.process_time() - processor, 2),
            "machine": self.machine,
            "commit": self.code.commit,
            "dirty": self.code.dirty,
            "time": time.time(),
        }

    def _quietly(self, run: Run, config: RunConfig, tags: Mapping[str, str]) -> RunSummary:
        """Trains with its lines in a file beside the record, which also has them if it fails."""
        logs = self.file.folder / "logs"
        logs.mkdir(exist_ok=True)
        with (logs / f"{run.name.replace('/', '-')}.txt").open("w", encoding="utf-8") as log, redirect_stdout(log):
            summary = self.train(config, tags=tags)
        assert summary is not None
        return summary

    def _note(self, record: Record, run: Run, entry: dict[str, Any]) -> None:
        record.runs[run.name] = entry
        record.failed.pop(run.name, None)
        finish(record)
        self.conclude(record)

    def _note_failure(self, record: Record, run: Run, reason: str) -> None:
        record.failed[run.name] = {"time": time.time(), "reason": reason}
        self.conclude(record)


def entry_of(run: Run, summary: RunSummary) -> dict[str, Any]:
    """What the record keeps of a summary."""
    test, val = summary.splits["test"], summary.splits["validation"]
    return {
        "group": run.group,
        "arm": run.arm,
        "seed": run.seed,
        "superblocks": run.superblocks,
        "run": summary.name,
        "parent": summary.parent,
        "steps": summary.steps,
        "tokens": summary.tokens,
        "flops": summary.flops,
        "lineage_flops": summary.lineage_flops,
        "val": val.bits_per_byte,
        "test": test.bits_per_byte,
        "exits": {depth: result["bits_per_byte"] for depth, result in summary.exits.items()},
        "growth": summary.growth,
        "seconds": round(60 * summary.minutes, 2),
        "data": summary.data_digest,
    }


def discard(folder: Path) -> None:
    """Removes what an interrupted start of a run left, so that it begins again.

    Raises:
        ConfigError: if another process trains there, or the folder holds something else than a run.
    """
    if not folder.exists():
        return
    found = read_run(folder)
    if found is None and any(folder.iterdir()):
        raise ConfigError(f"{folder}: holds something that is no run; move it away, or choose another name=")
    if found is not None and found.status == "RUNNING":
        raise ConfigError(f"{folder}: is being trained by another process")
    shutil.rmtree(folder)
