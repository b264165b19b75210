"""How a run of an experiment is trained, and what is kept of it."""

import shutil
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import redirect_stdout
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from superblock.benchmarks.ablation.plan import Compose, Run
from superblock.benchmarks.ablation.record import Record, RecordFile
from superblock.benchmarks.ablation.screen import Lines
from superblock.benchmarks.ablation.sharing import PAUSE, Sharing
from superblock.config.fields import ConfigError
from superblock.config.run import RunConfig
from superblock.config.tracking import TrackingConfig
from superblock.evaluation.summary import RunSummary
from superblock.tracking.provenance import Code
from superblock.tracking.runs import RunRecord, read_run, runs_root
from superblock.tracking.spool import FILE_NAME, SYSTEM_PREFIX, last_values, read_spool

Train = Callable[..., RunSummary | None]
"""`training.loop.train`."""


@dataclass
class Worker(Sharing[Run]):
    """Trains this process's part of an experiment's runs."""

    file: RecordFile
    runs: Sequence[Run]
    common: Sequence[str]
    compose: Compose
    train: Train
    tracking: TrackingConfig
    lines: Lines
    code: Code
    machine: str
    conclude: Callable[[Record], None]
    minutes: float = float("inf")
    pause: float = PAUSE
    needed: frozenset[str] = frozenset()
    """Runs whose checkpoints others begin from."""
    began: float = field(default_factory=time.time)

    def do(self, run: Run, record: Record) -> dict[str, Any]:
        """Trains; the entry of the record."""
        words = run.command_line(record.name, self.common, record.runs)
        config = self.compose(words)
        config.tracking = replace(self.tracking, arm=run.arm)
        folder = runs_root() / run.folder(record.name)
        own = {"suite": self.file.suite, "experiment": record.name}
        discard(folder, own)
        wall, processor = time.perf_counter(), time.process_time()
        tags = own | {"arm": run.arm, "group": run.group}
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


def discard(folder: Path, own: Mapping[str, str]) -> bool:
    """Removes what an interrupted start of a run left, so that it begins again; whether there was anything.

    Args:
        folder: the run's.
        own: tags that such a run has. One that was ended before it recorded anything may lack them.

    Raises:
        ConfigError: if another process trains there, or the folder holds a run of somebody else's, or something else.
    """
    if not folder.exists():
        return False
    found = read_run(folder)
    if found is None and any(folder.iterdir()):
        raise ConfigError(f"{folder}: holds something that is no run; move it away, or choose another name=")
    if found is not None and found.status == "RUNNING":
        raise ConfigError(f"{folder}: is being trained by another process")
    if found is not None and not _is_own(found, own):
        belongs = ", ".join(f"{key}={value}" for key, value in own.items())
        raise ConfigError(f"{folder}: holds a run that is none of {belongs}; move it away, or choose another name")
    shutil.rmtree(folder)
    return True


def _is_own(run: RunRecord, own: Mapping[str, str]) -> bool:
    if own.items() <= last_values(run.folder / FILE_NAME, "tags").items():
        return True
    events = () if run.status == "FINISHED" else read_spool(run.folder)
    measured = (key for event in events if event.kind == "metrics" for key in event.data["values"])
    return run.status != "FINISHED" and all(key.startswith(SYSTEM_PREFIX) for key in measured)
