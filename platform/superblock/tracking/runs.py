"""What was run in this folder, read from the runs' own files: no server, no MLflow."""

import socket
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from superblock.tracking.files import read_json
from superblock.tracking.identity import IDENTITY_FILE, STATUS_FILE
from superblock.tracking.spool import FILE_NAME

SUMMARY_FILE = "summary.json"
INTERRUPTED = "INTERRUPTED"
SILENCE = 600.0  # seconds after which a run on another machine counts as interrupted; it samples that machine every 10


@dataclass(frozen=True)
class RunRecord:
    """One run. `status` is RUNNING, FINISHED, FAILED, KILLED, or INTERRUPTED when its process died without a word."""

    name: str
    folder: Path
    stage: str
    scale: str
    arm: str
    seed: int
    fingerprint: str
    status: str
    mlflow_run_id: str | None
    started: float  # seconds since 1970
    summary: dict[str, Any] = field(default_factory=dict)

    @property
    def resumable(self) -> bool:
        """Ended before its budget did, so that `resume=auto` may continue it."""
        return self.status in (INTERRUPTED, "KILLED", "FAILED")


def runs_root() -> Path:
    """The folder that holds every run of the current folder."""
    return Path("runs")


def read_run(folder: Path) -> RunRecord | None:
    """The run in a folder; None if the folder holds none."""
    known = read_json(folder / IDENTITY_FILE)
    if "uid" not in known:
        return None
    return RunRecord(
        name=folder.name,
        folder=folder,
        stage=known.get("stage", ""),
        scale=known.get("scale", ""),
        arm=known.get("arm", ""),
        seed=int(known.get("seed", 0)),
        fingerprint=known.get("fingerprint", ""),
        status=_status(folder),
        mlflow_run_id=known.get("mlflow_run_id"),
        started=float(known.get("started", 0)),
        summary=read_json(folder / SUMMARY_FILE),
    )


def list_runs(
    root: Path | None = None, *, stage: str | None = None, scale: str | None = None, fingerprint: str | None = None
) -> list[RunRecord]:
    """Every run below `root`, newest first, of a stage, a scale or a configuration if given."""
    wanted = {"stage": stage, "scale": scale, "fingerprint": fingerprint}
    found = [
        run
        for run in _all_runs(root or runs_root())
        if all(value is None or getattr(run, key) == value for key, value in wanted.items())
    ]
    return sorted(found, key=lambda run: run.started, reverse=True)


def find_run(text: str, root: Path | None = None) -> RunRecord | None:
    """The run a user means by `newest`, a name, an MLflow id (or its first 6 or more digits) or a stage (its newest)."""
    runs = list_runs(root)
    if text == "newest":
        return runs[0] if runs else None
    for matches in (
        lambda run: run.name == text,
        lambda run: len(text) >= 6 and (run.mlflow_run_id or "").startswith(text),
        lambda run: run.stage == text,
    ):
        if found := next(filter(matches, runs), None):
            return found
    return None


def newest_resumable(fingerprint: str, root: Path | None = None) -> RunRecord | None:
    """The run that `resume=auto` continues: the newest of this configuration, unless it is finished or still running."""
    runs = list_runs(root, fingerprint=fingerprint)
    return runs[0] if runs and runs[0].resumable else None


def _all_runs(root: Path) -> Iterator[RunRecord]:
    for path in root.glob(f"*/{IDENTITY_FILE}"):
        run = read_run(path.parent)
        if run:
            yield run


def _status(folder: Path) -> str:
    noted = read_json(folder / STATUS_FILE)
    status = str(noted.get("status", INTERRUPTED))
    return status if status != "RUNNING" or _is_alive(noted, folder) else INTERRUPTED


def _is_alive(noted: dict[str, Any], folder: Path) -> bool:
    """Whether the noted process still runs. Another machine's cannot be asked, so its last sign of life decides."""
    if noted.get("host") != socket.gethostname():
        spool = folder / FILE_NAME
        return spool.exists() and time.time() - spool.stat().st_mtime < SILENCE
    import psutil

    try:
        process = psutil.Process(int(noted["pid"]))
        same = abs(process.create_time() - float(noted["process_started"])) < 2  # else the number was given out again
        return same and process.status() != psutil.STATUS_ZOMBIE
    except (psutil.Error, KeyError, ValueError):
        return False
