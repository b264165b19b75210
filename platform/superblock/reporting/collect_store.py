"""Runs from an MLflow store."""

import json
from collections.abc import Callable, Collection, Iterator
from typing import Any

from superblock.reporting.collect_folders import LANGUAGE_FILE, SAMPLES_FILE, STATEMENTS_FILE
from superblock.reporting.metrics import CURVES
from superblock.reporting.run_facts import TRAINING, Told
from superblock.reporting.thinning import thin
from superblock.tracking.mlflow_sender import UID_TAG
from superblock.tracking.runs import SUMMARY_FILE
from superblock.tracking.stored_runs import RunStore, StoredRun, run_store

Problem = Callable[[str], None]


def read_store(uri: str, experiment: str, known: Collection[str], problem: Problem) -> Iterator[Told]:
    """Every run of an experiment but those that are known.

    Args:
        uri: of the store, from `store_uri`.
        experiment: its name.
        known: uids and MLflow ids of runs that were read elsewhere.
        problem: is told what cannot be read.

    Raises:
        StoreAway: if the store does not answer, or cannot be read.
    """
    store = run_store(uri, experiment)
    for run in sorted(store.runs(), key=lambda run: (run.started, run.name, run.run_id)):
        if run.run_id not in known and run.tags.get(UID_TAG) not in known:
            yield _read(store, run, problem)


def _read(store: RunStore, run: StoredRun, problem: Problem) -> Told:
    over = run.status == "FINISHED" and run.tags.get("suite", TRAINING) == TRAINING

    def table(name: str) -> dict[str, Any]:
        text = store.artifact(run, name) if over else None
        try:
            found = json.loads(text) if text is not None else {}
        except ValueError:
            found = None
        if not isinstance(found, dict):
            problem(f"{name} of {run.name} in MLflow is not a JSON object")
            return {}
        return found

    return Told(
        name=run.name, status=run.status, started=run.started, ended=run.ended if over else None, tags=run.tags,
        params=run.params, latest=run.latest, data=run.data, uid=run.tags.get(UID_TAG, ""),
        curves={name: thin(store.history(run, name)) for name in CURVES if over and name in run.latest},
        mlflow_run_id=run.run_id, experiment_id=run.experiment_id, summary=table(SUMMARY_FILE),
        statements=table(STATEMENTS_FILE), language=table(LANGUAGE_FILE),
        samples=store.artifact(run, SAMPLES_FILE) if over else None,
    )  # fmt: skip
