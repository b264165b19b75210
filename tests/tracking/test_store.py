"""Which store a configuration means."""

import socket
import sqlite3
import time
from contextlib import closing
from pathlib import Path

import pytest

from superblock.config.fields import ConfigError
from superblock.config.tracking import TrackingConfig
from superblock.tracking.store import artifact_folder, find_experiment, open_store, store_uri, without_password
from superblock.tracking.versions import StoreAway, read_versions


def test_store_uri(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "sub").mkdir()
    assert store_uri(TrackingConfig()) == f"sqlite:///{tmp_path}/mlflow.db"
    assert store_uri(TrackingConfig(uri="sqlite:///sub/other.db")) == f"sqlite:///{tmp_path}/sub/other.db"
    assert store_uri(TrackingConfig(uri="sqlite:////o.db")) == "sqlite:////o.db"
    assert store_uri(TrackingConfig(store="none")) is None
    assert store_uri(TrackingConfig(store="server", uri="http://h:5000/")) == "http://h:5000"
    assert "mlruns" not in artifact_folder(tmp_path / "mlflow.db").parts


@pytest.mark.parametrize(
    ("store", "uri"),
    [
        ("postgresql", None),
        ("postgresql", "http://h/x"),
        ("postgresql", "postgresql://h"),
        ("server", None),
        ("server", "ftp://h"),
        ("sqlite", "./mlruns"),
        ("sqlite", "sqlite:///"),
        ("sqlite", "http://h"),
        ("sqlite", "sqlite:////no/such/folder/x.db"),
    ],
)
def test_wrong_addresses(store: str, uri: str | None) -> None:
    with pytest.raises(ConfigError, match=r"tracking\.uri"):
        store_uri(TrackingConfig(store=store, uri=uri))


def test_a_database_server(monkeypatch: pytest.MonkeyPatch) -> None:
    uri = "postgresql://anna:secret@h:5433/runs"
    monkeypatch.setattr("superblock.tracking.store.find_spec", lambda name: None)
    with pytest.raises(ConfigError, match=r"needs the package psycopg; .*\[postgres\]"):
        store_uri(TrackingConfig(store="postgresql", uri=uri))
    with pytest.raises(ConfigError, match=r"needs the package psycopg2") as error:
        store_uri(TrackingConfig(store="postgresql", uri=uri.replace(":", "+psycopg2:", 1)))
    assert "secret" not in str(error.value)
    monkeypatch.setattr("superblock.tracking.store.find_spec", lambda name: name)
    assert store_uri(TrackingConfig(store="postgresql", uri=uri)) == uri


def test_a_database_that_is_away_is_said_at_once() -> None:
    """MLflow itself would try for an hour."""
    with closing(socket.socket()) as silent:
        silent.bind(("127.0.0.1", 0))
        uri = f"postgresql://anna@127.0.0.1:{silent.getsockname()[1]}/runs"
        begin = time.monotonic()
        with pytest.raises(OSError):
            open_store(uri, "superblock")
        with pytest.raises(StoreAway, match="does not answer"):
            read_versions(uri)
        assert time.monotonic() - begin < 60


def test_without_password() -> None:
    assert without_password("http://a:b@h:1/x") == "http://***@h:1/x"
    assert without_password("http://h:1") == "http://h:1"
    assert without_password(None) is None


def test_experiment_is_made_once_and_restored(workplace: Path) -> None:
    uri, database = f"sqlite:///{workplace}/mlflow.db", workplace / "mlflow.db"
    assert find_experiment(database, "superblock") is None
    client, first = open_store(uri, "superblock")
    assert find_experiment(database, "superblock") == first
    client.delete_experiment(first)
    assert open_store(uri, "superblock")[1] == first
    assert client.get_experiment(first).lifecycle_stage == "active"


def test_database_without_tables(tmp_path: Path) -> None:
    sqlite3.connect(tmp_path / "empty.db").close()
    (tmp_path / "empty.db").touch()
    assert find_experiment(tmp_path / "empty.db", "superblock") is None


def test_killed_while_it_makes_a_database_it_starts_afresh(tmp_path: Path) -> None:
    """MLflow's own tables of that moment can be neither used nor completed."""
    half_made = ".mlflow.db.0123.new"
    with closing(sqlite3.connect(tmp_path / half_made)) as connection:
        connection.execute("CREATE TABLE experiments (experiment_id INTEGER)")
        connection.execute("CREATE TABLE _alembic_tmp_experiments (experiment_id INTEGER)")
    for left in (f"{half_made}-journal", "mlflow.db", "mlflow.db-journal"):
        (tmp_path / left).write_bytes(b"")
    uri = f"sqlite:///{tmp_path}/mlflow.db"
    _, made = open_store(uri, "superblock")
    assert find_experiment(tmp_path / "mlflow.db", "superblock") == made
    assert not list(tmp_path.glob("*-journal")) + list(tmp_path.glob(f"{half_made}*"))
    assert open_store(uri, "superblock")[1] == made


def test_a_database_is_there_with_all_its_tables_or_not_at_all(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import mlflow.store.db.utils

    def killed(engine: object) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(mlflow.store.db.utils, "_upgrade_db", killed)  # some tables are there by then
        with pytest.raises(KeyboardInterrupt):
            open_store(f"sqlite:///{tmp_path}/mlflow.db", "superblock")
    [half_made] = tmp_path.glob(".mlflow.db.*.new")
    assert half_made.stat().st_size
    assert not (tmp_path / "mlflow.db").exists()
    assert open_store(f"sqlite:///{tmp_path}/mlflow.db", "superblock")[1]
    assert not half_made.exists()
