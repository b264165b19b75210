"""Runs from an MLflow store."""

import json
from collections.abc import Callable, Collection, Iterator
from dataclasses import dataclass
from typing import Any, TypeVar

from superblock.reporting.collect_folders import LANGUAGE_FILE, SAMPLES_FILE, STATEMENTS_FILE
from superblock.reporting.metrics import CURVES
from superblock.reporting.run_facts import TRAINING, Told
from superblock.reporting.thinning import thin
from superblock.tracking.mlflow_sender import UID_TAG
from superblock.tracking.runs import SUMMARY_FILE
from superblock.tracking.stored_runs import Points, RunStore, StoredRun, run_store
from superblock.tracking.versions import StoreAway

Problem = Callable[[str], None]
Answer = TypeVar("Answer")
PATIENCE = 3
"""Failures in a row after which a store is not asked any more."""


def read_store(uri: str, experiment: str, known: Collection[str], problem: Problem) -> Iterator[Told]:
    """Every run of an experiment but those that are known.

    Args:
        uri: of the store, from `store_uri`.
        experiment: its name.
        known: uids and MLflow ids of runs that were read elsewhere.
        problem: is told what cannot be read; the run is there all the same, without its part.

    Raises:
        StoreAway: if the store does not tell its runs.
    """
    store = run_store(uri, experiment)
    ask = _Asking(problem)
    for run in sorted(store.runs(), key=lambda run: (run.started, run.name, run.run_id)):
        if run.run_id not in known and run.tags.get(UID_TAG) not in known:
            yield _read(store, run, ask)


@dataclass
class _Asking:
    """Asks a store for what hangs on its runs, and tells what it does not get.

    A single file that cannot be fetched costs no run; where one after the other fails, waiting for each would take minutes.
    """

    problem: Problem
    failed: int = 0
    """Requests without an answer since the last that had one."""

    def __call__(self, what: str, request: Callable[[], Answer]) -> Answer | None:
        if self.failed >= PATIENCE:
            return None
        try:
            answer = request()
        except StoreAway as away:
            self.failed += 1
            last = f"; after {PATIENCE} such failures nothing more is asked" if self.failed == PATIENCE else ""
            self.problem(f"{what} in MLflow: {away}; it is missing here{last}")
            return None
        self.failed = 0
        return answer


def _read(store: RunStore, run: StoredRun, ask: _Asking) -> Told:
    over = run.status == "FINISHED" and run.tags.get("suite", TRAINING) == TRAINING

    def artifact(name: str) -> str | None:
        return ask(f"{name} of {run.name}", lambda: store.artifact(run, name)) if over else None

    def series(name: str) -> Points:
        return ask(f"{name} of {run.name}", lambda: store.history(run, name)) or []

    def table(name: str) -> dict[str, Any]:
        text = artifact(name)
        try:
            found = json.loads(text) if text is not None else {}
        except ValueError:
            found = None
        if not isinstance(found, dict):
            ask.problem(f"{name} of {run.name} in MLflow is not a JSON object")
            return {}
        return found

    return Told(
        name=run.name, status=run.status, started=run.started, ended=run.ended if over else None, tags=run.tags,
        params=run.params, latest=run.latest, data=run.data, uid=run.tags.get(UID_TAG, ""),
        curves={name: thin(series(name)) for name in CURVES if over and name in run.latest},
        mlflow_run_id=run.run_id, experiment_id=run.experiment_id, summary=table(SUMMARY_FILE),
        statements=table(STATEMENTS_FILE), language=table(LANGUAGE_FILE),
        samples=artifact(SAMPLES_FILE),
    )  # fmt: skip
