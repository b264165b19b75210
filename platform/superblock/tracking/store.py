"""Which MLflow store a configuration means, and its first use.

`mlflow` is imported inside the functions that need it: it costs about two seconds, which training must not wait for.
"""

import glob
import logging
import os
import re
import socket
import sqlite3
import uuid
from contextlib import closing
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING
from urllib.parse import urlsplit, urlunsplit

from superblock.config.fields import ConfigError
from superblock.config.tracking import TrackingConfig
from superblock.tracking.spool import cut

if TYPE_CHECKING:
    from mlflow import MlflowClient

POSTGRESQL = {"postgresql": "psycopg", "postgresql+psycopg": "psycopg", "postgresql+psycopg2": "psycopg2"}
"""Addresses of a PostgreSQL database, and the package each needs."""
PRIMARY_METRIC = "test/bits_per_byte"
EXPERIMENT_TAGS = {
    "mlflow.experimentKind": "custom_model_development",
    "mlflow.experiment.primaryMetric.name": PRIMARY_METRIC,
    "mlflow.experiment.primaryMetric.greaterIsBetter": "False",
    "mlflow.note.content": (
        "Runs of the superblock platform, one per training, all on one level. Group them by the tags `stage`, `scale` "
        "or `arm`; seeds of a group are then averaged. Curves have one section per prefix; single results are bars."
    ),
}
_SQLITE_FILES = ("-journal", "-wal", "-shm")
"""What SQLite keeps beside a database while it writes, and leaves there when it is killed."""
_ENVIRONMENT = {
    # With MLflow's own values a dead server holds a single call for four minutes.
    "MLFLOW_HTTP_REQUEST_MAX_RETRIES": "1",
    "MLFLOW_HTTP_REQUEST_TIMEOUT": "5",
    "MLFLOW_HTTP_REQUEST_BACKOFF_FACTOR": "1",
    "MLFLOW_DISABLE_TELEMETRY": "true",
    "MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR": "false",
    "GIT_PYTHON_REFRESH": "quiet",
}


def store_uri(config: TrackingConfig, folder: Path | None = None) -> str | None:
    """The absolute address of the store; None for `tracking=none`.

    Args:
        config: where results go.
        folder: what relative paths start from; by default the current folder.

    Raises:
        ConfigError: if `tracking.uri` is not an address that MLflow can take.
    """
    if config.store == "none":
        return None
    if config.store == "server":
        if not config.uri or urlsplit(config.uri).scheme not in ("http", "https"):
            raise ConfigError(
                f"tracking.uri={config.uri}: tracking=server needs an address such as http://127.0.0.1:5000"
            )
        return config.uri.rstrip("/")
    if config.store == "postgresql":
        return _postgresql_uri(config.uri)
    text = config.uri or "sqlite:///mlflow.db"
    if not text.startswith("sqlite:///") or text == "sqlite:///":
        raise ConfigError(f"tracking.uri={text}: tracking=sqlite needs a file such as sqlite:///mlflow.db")
    file = ((folder or Path.cwd()) / text.removeprefix("sqlite:///")).resolve()
    if config.uri and not file.parent.is_dir():
        raise ConfigError(f"tracking.uri={text}: there is no folder {file.parent}; make it, or name another file")
    return f"sqlite:///{file.as_posix()}"


def _postgresql_uri(uri: str | None) -> str:
    if not uri or urlsplit(uri).scheme not in POSTGRESQL or not urlsplit(uri).path.strip("/"):
        shown = without_password(uri)
        raise ConfigError(f"tracking.uri={shown}: tracking=postgresql needs postgresql://user@host:port/database")
    driver = POSTGRESQL[urlsplit(uri).scheme]
    if find_spec(driver) is None:
        raise ConfigError(f"tracking=postgresql: needs the package {driver}; python -m pip install -e '.[postgres]'")
    return uri


def is_database(uri: str) -> bool:
    """Whether MLflow works on the tables itself; else it asks a server."""
    return urlsplit(uri).scheme in ("sqlite", *POSTGRESQL)


def database_path(uri: str) -> Path | None:
    """The file behind a SQLite address; None for a server."""
    return Path(uri.removeprefix("sqlite:///")) if uri.startswith("sqlite:///") else None


def artifact_folder(database: Path | None) -> Path:
    """Where artifacts go when no server takes them: beside the database's file, else below the current folder.

    Never `mlruns`, which MLflow takes for a store of an older kind.
    """
    return (database.parent if database else Path.cwd()) / "runs" / "artifacts"


def without_password(uri: str | None) -> str | None:
    """An address that can be shown and recorded."""
    parts = urlsplit(uri or "")
    if not parts.username and not parts.password:
        return uri
    host = parts.netloc.rpartition("@")[2]
    return urlunsplit(parts._replace(netloc=f"***@{host}"))


def reason_of(error: Exception) -> str:
    """What went wrong in one line, without the password that an address in the text may hold."""
    text = re.sub(r"//[^/@\s]+@", "//***@", " ".join(str(error).split()))
    return cut(text or type(error).__name__, 160)


def find_experiment(database: Path, name: str) -> str | None:
    """The id of an experiment in a local store, read without MLflow; None if there is none."""
    with closing(sqlite3.connect(f"{database.as_uri()}?mode=ro", uri=True, timeout=20)) as connection:
        try:
            row = connection.execute("SELECT experiment_id FROM experiments WHERE name = ?", (name,)).fetchone()
        except sqlite3.OperationalError:  # the file exists, its tables do not yet
            return None
    return str(row[0]) if row else None


def has_run(database: Path, run_id: str) -> bool:
    """Whether a local store has a run, be it deleted in the interface; read without MLflow. No if it cannot be read."""
    try:
        with closing(sqlite3.connect(f"{database.as_uri()}?mode=ro", uri=True, timeout=20)) as connection:
            return connection.execute("SELECT 1 FROM runs WHERE run_uuid = ?", (run_id,)).fetchone() is not None
    except sqlite3.Error:
        return False


def prepare_environment() -> None:
    """Short timeouts and no telemetry, unless the user has set them. To be called before MLflow is imported."""
    for key, value in _ENVIRONMENT.items():
        os.environ.setdefault(key, value)


def open_store(uri: str, experiment: str) -> tuple["MlflowClient", str]:
    """A client and the id of the experiment, both made on first use.

    Several processes may come here at once with no database yet: each migrates the schema under a file lock, because
    MLflow itself lets them collide.

    Raises:
        mlflow.exceptions.MlflowException: if the store cannot be reached, or was written by a newer MLflow.
    """
    prepare_environment()
    from filelock import FileLock
    from mlflow import MlflowClient

    if not is_database(uri):
        client = MlflowClient(tracking_uri=uri)
        return client, _experiment_id(client, experiment, None)
    require_answer(uri)
    database = database_path(uri)
    artifacts = artifact_folder(database)
    artifacts.parent.mkdir(parents=True, exist_ok=True)
    with FileLock(artifacts.parent / f".{database.name if database else 'database'}.lock", timeout=120):
        _create_tables(uri, artifacts)
        client = MlflowClient(tracking_uri=uri)
        return client, _experiment_id(client, experiment, artifacts.as_uri())


def require_answer(uri: str) -> None:
    """Asks a database's host for a connection: MLflow itself would try for an hour before it says that there is none.

    Raises:
        OSError: if nobody answers there within 5 s.
    """
    parts = urlsplit(uri)
    if parts.scheme in POSTGRESQL and parts.hostname:
        socket.create_connection((parts.hostname, parts.port or 5432), timeout=5).close()


def _create_tables(uri: str, artifacts: Path) -> None:
    """Brings a new database to the current schema; its first experiment must not point at a folder `mlruns`.

    A new file gets its tables under another name: MLflow makes them in some fifty steps, and nobody can go on from where it was
    killed between two of them.
    """
    from mlflow.store.tracking.sqlalchemy_store import SqlAlchemyStore

    for name in ("mlflow.store.db.utils", "alembic"):  # a line per migration, some fifty
        logging.getLogger(name).setLevel(logging.WARNING)
    database = database_path(uri)
    if database and not (database.exists() and database.stat().st_size):
        for left in database.parent.glob(f".{glob.escape(database.name)}.*.new*"):
            left.unlink()
        # never the same name twice: MLflow keeps connections by address
        new = database.with_name(f".{database.name}.{uuid.uuid4().hex[:8]}.new")
        SqlAlchemyStore(f"sqlite:///{new.as_posix()}", artifacts.as_uri()).engine.dispose()
        for suffix in _SQLITE_FILES:  # of an empty file; SQLite would apply them to the new one
            Path(f"{database}{suffix}").unlink(missing_ok=True)
        os.replace(new, database)
    SqlAlchemyStore(uri, artifacts.as_uri())


def _experiment_id(client: "MlflowClient", name: str, artifact_location: str | None) -> str:
    """The experiment's id; makes the experiment, or restores a deleted one."""
    from mlflow.exceptions import MlflowException

    found = client.get_experiment_by_name(name)
    if found is None:
        try:
            return str(client.create_experiment(name, artifact_location, tags=EXPERIMENT_TAGS))
        except MlflowException as error:
            if error.error_code != "RESOURCE_ALREADY_EXISTS":
                raise
            found = client.get_experiment_by_name(name)  # another run was faster
            assert found is not None
    if found.lifecycle_stage == "deleted":
        client.restore_experiment(found.experiment_id)
    return str(found.experiment_id)
