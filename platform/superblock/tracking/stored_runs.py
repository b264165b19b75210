"""The runs of an MLflow store: from a local store's tables without MLflow, which is quick, from a server by its client.

Only reading happens here, and a local store that does not exist is not made. The tables are MLflow's own business: where
they are not as expected, its client is asked here too.
"""

import json
import math
import sqlite3
import tempfile
from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping
from contextlib import closing, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol
from urllib.parse import unquote, urlsplit

from superblock.tracking.store import database_path, prepare_environment, reason_of, without_password
from superblock.tracking.versions import StoreAway

if TYPE_CHECKING:
    from mlflow import MlflowClient

PAGE = 500
Points = list[tuple[int, float]]
"""(step, value) in order of step, one per step; values may be NaN."""


@dataclass(frozen=True)
class StoredRun:
    """One run as the store knows it."""

    run_id: str
    experiment_id: str
    name: str
    status: str
    started: float
    """Seconds since 1970."""
    ended: float | None
    artifacts: str
    """Address of its artifacts."""
    tags: Mapping[str, str]
    params: Mapping[str, str]
    latest: Mapping[str, float]
    """Last value of every metric."""
    data: str
    """The training text in words."""


class RunStore(Protocol):
    """Something that runs can be read from; every method may raise `StoreAway`."""

    def runs(self) -> list[StoredRun]:
        """Every run of the experiment that is not deleted."""

    def history(self, run: StoredRun, metric: str) -> Points:
        """A metric of a run."""

    def artifact(self, run: StoredRun, name: str) -> str | None:
        """The text of an artifact, what is not UTF-8 replaced; None if there is none of that name."""


def run_store(uri: str, experiment: str) -> RunStore:
    """The store behind an address from `store_uri`.

    Raises:
        StoreAway: if a local store has no file, or tables that neither we nor MLflow can read.
    """
    database = database_path(uri)
    if database is None:
        return ClientStore(uri, experiment)
    if not database.exists():
        raise StoreAway(f"{database.name} is not there")
    store = DatabaseStore(database, experiment)
    try:
        if not store.empty():
            store.probe()
    except sqlite3.OperationalError:
        return ClientStore(uri, experiment)
    except sqlite3.Error as error:
        raise StoreAway(f"{database.name} cannot be read ({error})") from error
    return store


@dataclass(frozen=True)
class DatabaseStore:
    """A local store's tables; `workspace` is left out, because a local store has one."""

    database: Path
    experiment: str

    def empty(self) -> bool:
        """Whether the file exists and its tables do not yet; MLflow's client would make them."""
        with closing(self._open()) as connection:
            return connection.execute("SELECT 1 FROM sqlite_master").fetchone() is None

    def probe(self) -> None:
        """Asks for every column that is read later, of no row.

        Raises:
            sqlite3.Error: if the tables are others.
        """
        with closing(self._open()) as connection:
            for statement in (_RUNS, _TAGS, _PARAMS, _LATEST, _DATA):
                connection.execute(f"{statement} LIMIT 0", ("",))
            connection.execute(f"{_HISTORY} LIMIT 0", ("", ""))

    def runs(self) -> list[StoredRun]:
        if self.empty():
            return []
        with self._reading() as connection:
            rows = connection.execute(_RUNS, (self.experiment,)).fetchall()
            tags, params = (self._tables(connection, statement) for statement in (_TAGS, _PARAMS))
            latest: dict[str, dict[str, float]] = defaultdict(dict)
            for run_id, key, value, is_nan in connection.execute(_LATEST, (self.experiment,)):
                latest[run_id][key] = math.nan if is_nan else float(value)
            data = dict(connection.execute(_DATA, (self.experiment,)).fetchall())
        return [
            StoredRun(
                run_id, str(experiment_id), name or "", status or "", (started or 0) / 1000, ended / 1000 if ended else None,
                artifacts or "", tags[run_id], params[run_id], latest[run_id], _words(data.get(run_id)),
            )
            for run_id, experiment_id, name, status, started, ended, artifacts in rows
        ]  # fmt: skip

    def history(self, run: StoredRun, metric: str) -> Points:
        with self._reading() as connection:
            rows = connection.execute(_HISTORY, (run.run_id, metric))
            return list({step: math.nan if is_nan else value for step, value, is_nan in rows}.items())

    def artifact(self, run: StoredRun, name: str) -> str | None:
        return _local_text(run.artifacts, name)

    @contextmanager
    def _reading(self) -> Iterator[sqlite3.Connection]:
        """A connection of which every error is `StoreAway`: a damaged page shows when its rows are read, not before."""
        try:
            with closing(self._open()) as connection:
                yield connection
        except sqlite3.Error as error:
            raise StoreAway(f"{self.database.name} cannot be read ({error})") from error

    def _open(self) -> sqlite3.Connection:
        return sqlite3.connect(f"{self.database.resolve().as_uri()}?mode=ro", uri=True, timeout=20)

    def _tables(self, connection: sqlite3.Connection, statement: str) -> dict[str, dict[str, str]]:
        found: dict[str, dict[str, str]] = defaultdict(dict)
        for run_id, key, value in connection.execute(statement, (self.experiment,)):
            found[run_id][key] = value or ""
        return found


_OURS = "JOIN experiments e ON e.experiment_id = r.experiment_id WHERE e.name = ? AND r.lifecycle_stage = 'active'"
_RUNS = f"SELECT r.run_uuid, r.experiment_id, r.name, r.status, r.start_time, r.end_time, r.artifact_uri FROM runs r {_OURS}"
_TAGS = f"SELECT t.run_uuid, t.key, t.value FROM tags t JOIN runs r ON r.run_uuid = t.run_uuid {_OURS}"
_PARAMS = _TAGS.replace("FROM tags", "FROM params")
_LATEST = (
    f"SELECT m.run_uuid, m.key, m.value, m.is_nan FROM latest_metrics m JOIN runs r ON r.run_uuid = m.run_uuid {_OURS}"
)
_HISTORY = "SELECT step, value, is_nan FROM metrics WHERE run_uuid = ? AND key = ? ORDER BY step, timestamp"
_DATA = (
    "SELECT r.run_uuid, d.dataset_source FROM datasets d JOIN inputs i ON i.source_id = d.dataset_uuid "
    "JOIN input_tags g ON g.input_uuid = i.input_uuid AND g.name = 'mlflow.data.context' AND g.value = 'training' "
    f"JOIN runs r ON r.run_uuid = i.destination_id {_OURS}"
)


class ClientStore:
    """Any store by MLflow's client, a call per history: minutes where the tables take seconds."""

    def __init__(self, uri: str, experiment: str) -> None:
        self.uri, self.experiment = uri, experiment
        self._known: MlflowClient | None = None

    def runs(self) -> list[StoredRun]:
        found: list[StoredRun] = []
        with _Reaching(self.uri):
            experiment, token = self._client.get_experiment_by_name(self.experiment), None
            while experiment:
                page = self._client.search_runs([experiment.experiment_id], max_results=PAGE, page_token=token)
                found += map(_from_client, page)
                if not (token := page.token):
                    break
        return found

    def history(self, run: StoredRun, metric: str) -> Points:
        with _Reaching(self.uri):
            points = self._client.get_metric_history(run.run_id, metric)
        return list({p.step: p.value for p in sorted(points, key=lambda p: (p.step, p.timestamp))}.items())

    def artifact(self, run: StoredRun, name: str) -> str | None:
        if urlsplit(run.artifacts).scheme in ("", "file"):
            return _local_text(run.artifacts, name)
        with _Reaching(self.uri), tempfile.TemporaryDirectory() as folder:
            if name not in {one.path for one in self._client.list_artifacts(run.run_id)}:
                return None
            return Path(self._client.download_artifacts(run.run_id, name, folder)).read_text("utf-8", "replace")

    @property
    def _client(self) -> "MlflowClient":
        if self._known is None:
            prepare_environment()
            from mlflow import MlflowClient

            self._known = MlflowClient(tracking_uri=self.uri)
        return self._known


class _Reaching:
    """Whatever goes wrong on the way to a store becomes `StoreAway`."""

    def __init__(self, uri: str) -> None:
        self.uri = uri

    def __enter__(self) -> None:
        return None

    def __exit__(self, kind: object, error: BaseException | None, trace: object) -> None:
        if isinstance(error, Exception):
            raise StoreAway(f"{without_password(self.uri)} does not answer ({reason_of(error)})") from error


def _from_client(run: Any) -> StoredRun:
    inputs: Iterable[Any] = run.inputs.dataset_inputs if run.inputs else ()
    contexts = {tag.value: one.dataset.source for one in inputs for tag in one.tags if tag.key == "mlflow.data.context"}
    info = run.info
    return StoredRun(
        info.run_id, info.experiment_id, info.run_name or "", info.status, info.start_time / 1000,
        info.end_time / 1000 if info.end_time else None, info.artifact_uri or "", run.data.tags, run.data.params,
        run.data.metrics, _words(contexts.get("training")),
    )  # fmt: skip


def _words(source: str | None) -> str:
    """The description that the sender put into a data set's source."""
    try:
        return str(json.loads(source or "{}").get("description", ""))
    except (ValueError, AttributeError):
        return ""


def _local_text(artifacts: str, name: str) -> str | None:
    parts = urlsplit(artifacts)
    if parts.scheme not in ("", "file"):
        return None
    try:
        return (Path(unquote(parts.path)) / name).read_text("utf-8", "replace")
    except (FileNotFoundError, NotADirectoryError):
        return None
    except OSError as error:
        raise StoreAway(f"{name} cannot be read ({reason_of(error)})") from error
