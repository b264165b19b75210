"""The one object through which training and its callbacks record anything.

A call appends to the run's spool and returns; MLflow follows in a thread. Names of metrics have a section before the
first slash (`train/loss`, `val/perplexity`, `test/bits_per_byte`, `speed/tokens_per_second`), which MLflow shows as a
section of charts.
"""

import math
import os
from collections.abc import Callable, Mapping
from pathlib import Path, PurePosixPath
from types import TracebackType
from typing import Any, Literal, Self

from superblock.config.fields import ConfigError
from superblock.tracking import identity, provenance
from superblock.tracking.files import read_json, write_json
from superblock.tracking.mlflow_sender import Sender, to_stderr
from superblock.tracking.runs import read_run
from superblock.tracking.spool import FILE_NAME, Spool, read_spool
from superblock.tracking.store import store_uri
from superblock.tracking.system_metrics import SystemMetrics

Status = Literal["FINISHED", "FAILED", "KILLED"]
ARTIFACTS = "artifacts"


class Tracker:
    """Records one run. Made by `Tracker.start`; as a context manager it also notes how the run ended.

    On ranks above 0 every method returns at once. No method waits for MLflow except `finish`, and none raises because
    of it or of a full disk.
    """

    def __init__(self, run_folder: Path, spool: Spool | None, sender: Sender | None, timeout: float) -> None:
        self.run_folder = run_folder
        self._spool, self._sender, self._timeout = spool, sender, timeout
        self._system: SystemMetrics | None = None
        self._results: dict[str, float] = {}
        self._diverged = False
        self._over = False  # the run ended before this tracker was made
        self._report: Callable[[str], None] = to_stderr

    @classmethod
    def start(
        cls,
        config: identity.Recorded,
        *,
        run_folder: Path,
        run_name: str,
        resume: bool,
        rank: int,
        suite: str = "training",
        report: Callable[[str], None] = to_stderr,
    ) -> Self:
        """Opens the spool, notes who and what runs, and starts delivery in the background.

        Args:
            config: the resolved configuration of a run or a benchmark.
            run_folder: the run's own folder, made if needed.
            run_name: its name in MLflow.
            resume: continue the MLflow run noted in the folder; call `rewind` with the checkpoint's step afterwards.
            rank: only rank 0 records.
            suite: tag that holds runs of one experiment together.
            report: shows a line to the user.

        Raises:
            ConfigError: if `tracking.uri` cannot be an address.
        """
        if rank > 0:
            return cls(run_folder, None, None, 0)
        uri = store_uri(config.tracking)
        spool = Spool(run_folder)
        attempt = identity.write_identity(config, run_folder, run_name, suite, resume=resume)
        sender = None
        if uri is not None:
            tracking = config.tracking
            sender = Sender(
                run_folder, uri=uri, experiment=tracking.experiment, flush_seconds=tracking.flush_seconds, report=report
            )
        tracker = cls(run_folder, spool, sender, config.tracking.timeout_seconds)
        tracker._report = report
        if resume:
            tracker._results = _results_so_far(spool.path)
        spool.append("status", {"status": "RUNNING"})
        tracker._describe(config, suite, attempt)
        if config.tracking.system_metrics:
            tracker._system = SystemMetrics(spool)
            tracker._system.start()
        if sender:
            sender.start()
        return tracker

    @classmethod
    def reopen(cls, run_folder: Path, config: identity.Recorded, *, report: Callable[[str], None] = to_stderr) -> Self:
        """Adds tags, results, texts and artifacts to a run that is over; how and when it ended stays as it is.

        What is added goes to the run's own MLflow run. If somebody deleted that, it is not recorded anew.

        Args:
            run_folder: the run's own folder.
            config: says where results go; with `tracking=none`, or while the store is away, the spool keeps them.
            report: shows a line to the user.

        Raises:
            ConfigError: if there is no run in the folder, or it is still running.
        """
        record = read_run(run_folder)
        if record is None or record.status == "RUNNING":
            fault = "holds no run" if record is None else "is still running in another process"
            raise ConfigError(f"{run_folder}: {fault}; nothing can be added to it")
        tracking, uri, sender = config.tracking, store_uri(config.tracking), None
        if uri is not None:
            sender = Sender(
                run_folder, uri=uri, experiment=tracking.experiment, flush_seconds=tracking.flush_seconds, renew=False,
                report=report,
            )  # fmt: skip
        tracker = cls(run_folder, Spool(run_folder), sender, tracking.timeout_seconds)
        tracker._report, tracker._over = report, True
        tracker._results = _results_so_far(run_folder / FILE_NAME)
        return tracker

    @property
    def active(self) -> bool:
        """Whether this rank records."""
        return self._spool is not None

    @property
    def mlflow_run_id(self) -> str | None:
        """The run's id in MLflow; None until the background thread has reached the store."""
        return read_json(self.run_folder / identity.IDENTITY_FILE).get("mlflow_run_id")

    def metrics(self, values: Mapping[str, float], step: int) -> None:
        """Points of curves. A value that is not finite marks the run with the tag `diverged`."""
        if self._spool is None or not values:
            return
        self._spool.metrics(values, step)
        if not self._diverged:
            bad = next((k for k, v in values.items() if not math.isfinite(v)), None)
            if bad is not None:
                self._diverged = True
                self.tags({"diverged": "true", "diverged.first": f"{bad}={float(values[bad])} at step {step}"})

    def result(self, values: Mapping[str, float]) -> None:
        """Single numbers of the whole run: MLflow draws a bar for what is recorded at step 0 alone."""
        new = {k: float(v) for k, v in values.items() if self._results.get(k) != float(v)}
        self._results.update(new)
        self.metrics(new, 0)

    def rewind(self, step: int) -> None:
        """Training continues from a checkpoint at `step`: what was recorded after it will be recorded again."""
        if self._spool is not None:
            self._spool.rewind(step)

    def params(self, values: Mapping[str, object]) -> None:
        """Facts known before training that runs are compared by."""
        if self._spool is not None and values:
            self._spool.append("params", {"values": {k: identity.show(v) for k, v in values.items()}})

    def tags(self, values: Mapping[str, object]) -> None:
        """Labels; they may change during a run."""
        if self._spool is not None and values:
            self._spool.append("tags", {"values": {k: identity.show(v) for k, v in values.items()}})

    def artifact(self, path: Path, folder: str | None = None) -> None:
        """A file or folder to keep with the run. It is copied later, so it must stay where it is."""
        if self._spool is not None:
            path, home = path.resolve(), self.run_folder.resolve()
            shown = path.relative_to(home).as_posix() if path.is_relative_to(home) else str(path)
            self._spool.append("artifact", {"path": shown, "folder": folder})

    def text(self, text: str, name: str) -> None:
        """A text under a name such as `samples/step-200.txt`."""
        if self._spool is not None:
            self._write(name, lambda path: path.write_text(text, encoding="utf-8"))

    def figure(self, figure: Any, name: str) -> None:
        """A matplotlib figure under a name such as `plots/learning.png`; the suffix decides the format."""
        if self._spool is not None:
            self._write(name, lambda path: figure.savefig(path, bbox_inches="tight", dpi=120))

    def dataset(self, name: str, digest: str, context: str, description: str) -> None:
        """The data a run reads, in a role such as `training`."""
        if self._spool is not None:
            data = {"name": name, "digest": digest, "context": context, "description": description}
            self._spool.append("dataset", data)

    def finish(self, status: Status) -> None:
        """Ends the record, waiting at most `tracking.timeout_seconds` for values that MLflow does not have yet.

        A reopened run keeps the status it had.
        """
        if self._spool is None:
            return
        if self._system:
            self._system.stop()
        if not self._over:
            self._spool.append("status", {"status": status})
        spool, self._spool = self._spool, None
        spool.close()
        if not self._over:
            identity.write_status(self.run_folder, status)
        if self._sender and self._over:
            self._sender.start()  # only now: all of it is delivered at once
        left = self._sender.close(self._timeout) if self._sender else 0
        if left:
            self._report(f"tracking: {left} values not delivered yet; they are in {spool.path}")

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if kind is None:
            self.finish("FINISHED")
        else:
            stopped = issubclass(kind, KeyboardInterrupt | SystemExit)
            self.finish("KILLED" if stopped else "FAILED")

    def _write(self, name: str, write: Callable[[Path], object]) -> None:
        """Writes a file below `artifacts/` under a temporary name, moves it into place and records it."""
        relative = PurePosixPath(name)
        assert not relative.is_absolute() and ".." not in relative.parts, name
        path = self.run_folder / ARTIFACTS / relative
        temporary = path.with_name(f".{path.name}{path.suffix}")
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            write(temporary)
            os.replace(temporary, path)
        except OSError as error:
            self._report(f"tracking: cannot write {path}: {error}; training goes on without it")
            return
        parent = relative.parent.as_posix()
        self.artifact(path, None if parent == "." else parent)

    def _describe(self, config: identity.Recorded, suite: str, attempt: int) -> None:
        """Tags, compared settings, the configuration and the provenance of this start of the run."""
        code, machine = provenance.code_state(), provenance.hardware()
        suffix = "" if attempt == 1 else f"-{attempt}"  # a resumed run keeps what its earlier starts recorded
        self.tags(identity.identity_tags(config, suite) | identity.provenance_tags(code, machine) | {"starts": attempt})
        self.tags({"mlflow.note.content": identity.note(config, self.run_folder, code, machine)})
        self.params(identity.compared_settings(config))
        self.text(identity.config_yaml(config), f"config{suffix}.yaml")
        record = provenance.describe(code, machine)
        write_json(self.run_folder / f"provenance{suffix}.json", record)
        self.artifact(self.run_folder / f"provenance{suffix}.json")
        if code.diff:
            self.text(code.diff, f"uncommitted{suffix}.diff")


def _results_so_far(path: Path) -> dict[str, float]:
    """Single results that earlier starts of the run recorded, so that equal ones are not recorded twice."""
    results: dict[str, float] = {}
    for event in read_spool(path):
        if event.kind == "metrics" and event.data["step"] == 0:
            results.update(event.data["values"])
    return results
