"""Copies a run's spool to MLflow from a thread of its own, so that training neither waits for it nor fails with it.

The spool file is the queue and a byte offset is the position in it, saved in `delivered.json` after every delivery. What
was interrupted is simply repeated: MLflow stores a metric with equal key, value, time and step once. A point cannot be
taken back from MLflow, so where a resumed run passes a step again, MLflow keeps the value it was given first; the spool
has both.
"""

import json
import logging
import math
import os
import sys
import threading
from collections.abc import Callable, Iterator
from itertools import groupby, islice
from pathlib import Path
from typing import TYPE_CHECKING, Any

from superblock.config.tracking import TrackingConfig
from superblock.tracking import run_model
from superblock.tracking.files import read_json, write_json
from superblock.tracking.identity import IDENTITY_FILE
from superblock.tracking.runs import INTERRUPTED, list_runs
from superblock.tracking.spool import FILE_NAME, MAX_PARAM, MAX_TAG, Event, clean_key, cut, scan
from superblock.tracking.store import open_store, prepare_environment, reason_of, store_uri, without_password

if TYPE_CHECKING:
    from mlflow import MlflowClient
    from mlflow.entities import Metric

POSITION = "delivered.json"
UID_TAG = "superblock.uid"
METRICS_PER_CALL = 1000
PARAMS_PER_CALL = 100
EVENTS_PER_READ = 1000
LONGEST_PAUSE = 30.0  # seconds between two attempts while the store is away


def _yield_to_training() -> None:
    """Gives this thread the lowest priority, where threads have one of their own: training's threads wait for each other,
    so that each of them is as slow as the one whose processor is taken away."""
    if sys.platform == "linux":
        os.setpriority(os.PRIO_PROCESS, threading.get_native_id(), 19)


def to_stderr(line: str) -> None:
    """Shows a line without touching what a command prints as its result."""
    print(line, file=sys.stderr, flush=True)


class Sender(threading.Thread):
    """Delivers one run's spool until `close`. MLflow is imported inside the thread.

    Args:
        folder: the run's folder with `spool.jsonl` and `run.json`.
        uri: address of the store, see `store_uri`.
        experiment: name of the experiment.
        flush_seconds: pause between two deliveries, and before the first one: the start of training comes first.
        renew: record the run anew if somebody deleted it from the store; else what is new stays in the spool.
        report: shows a line to the user.
    """

    def __init__(
        self,
        folder: Path,
        *,
        uri: str,
        experiment: str,
        flush_seconds: float,
        renew: bool = True,
        report: Callable[[str], None] = to_stderr,
    ) -> None:
        super().__init__(name="mlflow-sender", daemon=True)
        self.folder, self.uri, self.experiment = folder, uri, experiment
        self.flush_seconds, self.renew, self.report = flush_seconds, renew, report
        self.refused = 0
        self.failure: str | None = None
        self._spool = folder / FILE_NAME
        self._client: MlflowClient | None = None
        self._run_id = ""
        self._sent = int(read_json(folder / POSITION).get("sent", 0))
        self._repeated: set[tuple[str, int]] = set()
        self._experiment_id = ""
        self._datasets: dict[str, tuple[str, str]] = {}
        self._model: str | None = None
        self._no_models = False
        self._closing = threading.Event()
        self._given_up = threading.Event()

    def run(self) -> None:
        """Delivers, pauses, delivers; pauses grow while the store is away."""
        _yield_to_training()
        prepare_environment()
        # a warning per retry would flood the screen
        logging.getLogger("urllib3.connectionpool").setLevel(logging.ERROR)
        failures = 0
        self._closing.wait(self.flush_seconds)
        while True:
            closing = self._closing.is_set()  # asked first: all that was recorded before `close` is delivered below
            failures = 0 if self._attempt() else failures + 1
            if self._given_up.is_set() or (closing and not failures):
                return
            pause = min(self.flush_seconds * 2 ** min(failures, 10), LONGEST_PAUSE)
            if closing:
                self._given_up.wait(min(pause, 0.5))
            else:
                self._closing.wait(pause)

    def close(self, timeout: float) -> int:
        """Waits up to `timeout` seconds for the rest and returns how many values are still undelivered."""
        self._closing.set()
        self.join(timeout)
        self._given_up.set()
        return self.pending() if self.is_alive() else 0

    def pending(self) -> int:
        """Values in the spool after the last delivery."""
        return sum(event.count() for event in scan(self._spool, self._sent) if event.kind not in ("rewind", "status"))

    def _attempt(self) -> bool:
        """One delivery of everything there is. Whatever goes wrong stays here, and is tried again later."""
        try:
            if self._client is None:
                self._client = self._connect()
            while events := list(islice(scan(self._spool, self._sent), EVENTS_PER_READ)):
                for kind, group in groupby(events, key=lambda event: event.kind):
                    same = list(group)
                    getattr(self, f"_send_{kind}")(same)
                    self._move_to(same[-1].end)
        except Exception as error:
            self._note_failure(error)
            return False
        if self.failure:
            self.report(f"tracking: {without_password(self.uri)} answers again")
            self.failure = None
        return True

    def _note_failure(self, error: Exception) -> None:
        if self.failure is None:
            reason = reason_of(error)
            goes_on = "training goes on; " if self.renew else ""
            self.report(
                f"tracking: cannot deliver to {without_password(self.uri)}: {reason}\n"
                f"tracking: {goes_on}values wait in {self._spool}"
            )
        self.failure = type(error).__name__

    # -- the run ------------------------------------------------------------------------------------------------------

    def _connect(self) -> "MlflowClient":
        """Opens the store and finds this run in it, or makes the run."""
        client, experiment_id = open_store(self.uri, self.experiment)
        _end_dead_runs(client, self.folder, without_password(self.uri))
        identity = read_json(self.folder / IDENTITY_FILE)
        place = without_password(self.uri)
        known = identity.get("mlflow_run_id") if identity.get("tracking_uri") == place else None
        active = _active_run(client, known)
        if known and not active and not self.renew:
            self._given_up.set()
            raise LookupError(f"run {identity['name']} was deleted there")
        self._run_id = active or _make_run(client, experiment_id, identity)
        mlflow_keys = {"mlflow_run_id": self._run_id, "experiment_id": experiment_id, "tracking_uri": place}
        write_json(self.folder / IDENTITY_FILE, {**identity, **mlflow_keys})
        position = read_json(self.folder / POSITION)
        self._sent = int(position["sent"]) if position.get("run_id") == self._run_id else 0
        self._repeated = _repeated_points(self._spool, self._sent)
        self._experiment_id = experiment_id
        self._datasets = {
            event.data["context"]: run_model.dataset_name(event)
            for event in scan(self._spool, 0, self._sent)
            if event.kind == "dataset"
        }
        return client

    def _move_to(self, offset: int) -> None:
        self._sent = offset
        write_json(self.folder / POSITION, {"run_id": self._run_id, "sent": offset})

    # -- one method per kind of event ---------------------------------------------------------------------------------

    def _send_metrics(self, events: list[Event]) -> None:
        points = [
            self._point(key, value if math.isfinite(value) else math.nan, event)
            for event in events
            for key, value in event.data["values"].items()
            if (key, event.data["step"]) not in self._repeated
        ]
        self._log(points, METRICS_PER_CALL, "metrics")

    def _point(self, key: str, value: float, event: Event) -> "Metric":
        """A value; with the run's model and the data set if it was measured on one."""
        from mlflow.entities import Metric

        dataset = run_model.measured_on(key, self._datasets)
        model = self._own_model() if dataset else None
        name, digest = dataset if dataset and model else (None, None)
        return Metric(key, value, event.time, event.data["step"], model, name, digest, self._run_id)

    def _own_model(self) -> str | None:
        """The id of this run's model; None if the server is too old to know models."""
        from mlflow.exceptions import MlflowException

        assert self._client
        if self._model is None and not self._no_models:
            identity = read_json(self.folder / IDENTITY_FILE)
            try:
                self._model = run_model.find_or_make(self._client, self._experiment_id, self._run_id, identity)
            except MlflowException as error:
                if error.error_code in run_model.PASSING:
                    raise
                self._no_models = True
                self._refuse("the model of this run", error)
        return self._model

    def _send_params(self, events: list[Event]) -> None:
        from mlflow.entities import Param

        values = _merged(events)
        self._log([Param(clean_key(k), cut(v, MAX_PARAM)) for k, v in values.items()], PARAMS_PER_CALL, "params")

    def _send_tags(self, events: list[Event]) -> None:
        from mlflow.entities import RunTag

        values = _merged(events)
        self._log([RunTag(clean_key(k), cut(v, MAX_TAG)) for k, v in values.items()], PARAMS_PER_CALL, "tags")

    def _send_artifact(self, events: list[Event]) -> None:
        assert self._client
        for event in events:
            path = self.folder / event.data["path"]
            try:
                self._client.log_artifact(self._run_id, str(path), event.data["folder"])
            except (FileNotFoundError, NotADirectoryError, PermissionError) as error:
                # the file is gone or the store's folder is not ours: no later attempt would do better
                self._refuse(f"artifact {path.name}", error)

    def _send_dataset(self, events: list[Event]) -> None:
        from mlflow.entities import Dataset, DatasetInput, InputTag

        assert self._client
        for event in events:
            data = event.data
            source = json.dumps({"description": data["description"]})
            self._datasets[data["context"]] = name, digest = run_model.dataset_name(event)
            dataset = Dataset(name, digest, "local", source, profile=source)
            inputs = [DatasetInput(dataset, [InputTag("mlflow.data.context", data["context"])])]
            self._client.log_inputs(self._run_id, inputs)

    def _send_status(self, events: list[Event]) -> None:
        assert self._client
        last = events[-1]
        if last.data["status"] == "RUNNING":
            self._client.update_run(self._run_id, status="RUNNING")
        else:
            self._client.set_terminated(self._run_id, last.data["status"], end_time=last.time)
            if self._datasets and (model := self._own_model()):
                run_model.end(self._client, model, last.data["status"])

    def _send_rewind(self, events: list[Event]) -> None:
        self._repeated = _repeated_points(self._spool, events[-1].end)

    # -- calls --------------------------------------------------------------------------------------------------------

    def _log(self, items: list[Any], size: int, field: str) -> None:
        for start in range(0, len(items), size):
            self._log_or_halve(items[start : start + size], field)

    def _log_or_halve(self, items: list[Any], field: str) -> None:
        """One call; if MLflow refuses a value for good, the others are delivered without it."""
        from mlflow.exceptions import MlflowException

        assert self._client
        try:
            self._client.log_batch(self._run_id, **{field: items})  # type: ignore[arg-type]
        except MlflowException as error:
            if error.error_code != "INVALID_PARAMETER_VALUE":
                raise
            if len(items) > 1:
                self._log_or_halve(items[: len(items) // 2], field)
                self._log_or_halve(items[len(items) // 2 :], field)
            elif field == "params":  # set before to another value, as a resumed run may; MLflow never changes one
                self._client.set_tag(self._run_id, f"changed/{items[0].key}", cut(items[0].value, MAX_TAG))
            else:
                self._refuse(f"{field} {items[0].key}", error)

    def _refuse(self, what: str, error: Exception) -> None:
        self.refused += 1
        if self.refused == 1:
            self.report(f"tracking: MLflow does not take {what}: {reason_of(error)}")


def deliver(folder: Path, config: TrackingConfig, *, timeout: float, report: Callable[[str], None] = to_stderr) -> int:
    """Delivers what an earlier process could not; returns how many values are left."""
    uri = store_uri(config)
    if uri is None:
        return 0
    sender = Sender(folder, uri=uri, experiment=config.experiment, flush_seconds=config.flush_seconds, report=report)
    sender.start()
    return sender.close(timeout)


def _active_run(client: "MlflowClient", run_id: str | None) -> str | None:
    """The id if the store still has the run; None if somebody deleted it."""
    from mlflow.exceptions import MlflowException

    if not run_id:
        return None
    try:
        return run_id if client.get_run(run_id).info.lifecycle_stage == "active" else None
    except MlflowException as error:
        if error.error_code == "RESOURCE_DOES_NOT_EXIST":
            return None
        raise


def _end_dead_runs(client: "MlflowClient", folder: Path, place: str | None) -> None:
    """Marks as KILLED what MLflow believes to be running, though its process died without a word."""
    for run in list_runs(folder.parent):
        known = read_json(run.folder / IDENTITY_FILE)
        if run.status != INTERRUPTED or run.folder == folder or known.get("tracking_uri") != place:
            continue
        run_id = _active_run(client, run.mlflow_run_id)
        if run_id and client.get_run(run_id).info.status == "RUNNING":
            client.set_terminated(run_id, "KILLED", end_time=int((run.folder / FILE_NAME).stat().st_mtime * 1000))


def _make_run(client: "MlflowClient", experiment_id: str, identity: dict[str, Any]) -> str:
    """A new run, unless an earlier attempt made it and was cut off before it could note the id."""
    found = client.search_runs([experiment_id], f"tags.`{UID_TAG}` = '{identity['uid']}'", max_results=1)
    if found:
        return str(found[0].info.run_id)
    started = int(identity["started"] * 1000)
    run = client.create_run(experiment_id, started, {UID_TAG: identity["uid"]}, run_name=identity["name"])
    return str(run.info.run_id)


def _repeated_points(path: Path, until: int) -> set[tuple[str, int]]:
    """(key, step) pairs that were recorded before the last rewind and lie after the earliest one's step."""
    rewinds = [event for event in scan(path, 0, until) if event.kind == "rewind"]
    if not rewinds:
        return set()
    lowest = min(event.data["step"] for event in rewinds)
    return set(_points(scan(path, 0, rewinds[-1].start), lowest))


def _points(events: Iterator[Event], after: int) -> Iterator[tuple[str, int]]:
    for event in events:
        if event.kind == "metrics" and event.data["step"] > after:
            yield from ((key, event.data["step"]) for key in event.data["values"])


def _merged(events: list[Event]) -> dict[str, str]:
    values: dict[str, str] = {}
    for event in events:
        values.update(event.data["values"])
    return values
