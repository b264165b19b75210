"""Which store a configuration means."""

import sqlite3
from pathlib import Path

import pytest

from superblock.config.fields import ConfigError
from superblock.config.tracking import TrackingConfig
from superblock.tracking.store import artifact_folder, find_experiment, open_store, store_uri, without_password


def test_store_uri(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert store_uri(TrackingConfig()) == f"sqlite:///{tmp_path}/mlflow.db"
    assert store_uri(TrackingConfig(uri="sqlite:///sub/other.db")) == f"sqlite:///{tmp_path}/sub/other.db"
    assert store_uri(TrackingConfig(uri="sqlite:////abs/o.db")) == "sqlite:////abs/o.db"
    assert store_uri(TrackingConfig(store="none")) is None
    assert store_uri(TrackingConfig(store="server", uri="http://h:5000/")) == "http://h:5000"
    assert "mlruns" not in artifact_folder(tmp_path / "mlflow.db").parts


@pytest.mark.parametrize(
    ("store", "uri"),
    [("server", None), ("server", "ftp://h"), ("sqlite", "./mlruns"), ("sqlite", "sqlite:///"), ("sqlite", "http://h")],
)
def test_wrong_addresses(store: str, uri: str | None) -> None:
    with pytest.raises(ConfigError, match=r"tracking\.uri"):
        store_uri(TrackingConfig(store=store, uri=uri))


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
