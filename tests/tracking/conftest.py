"""One MLflow database for the whole folder of tests: to migrate a fresh one takes seconds."""

import os
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from superblock.config.run import RunConfig
from superblock.config.tracking import TrackingConfig
from superblock.tracking.run import Tracker
from superblock.tracking.store import open_store

START = {"run_name": "unit", "resume": False, "rank": 0}


@pytest.fixture(scope="session")
def empty_database(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A migrated database without experiments of ours."""
    from mlflow.store.tracking.sqlalchemy_store import SqlAlchemyStore

    folder = tmp_path_factory.mktemp("database")
    SqlAlchemyStore(f"sqlite:///{folder}/mlflow.db", (folder / "artifacts").as_uri())
    return folder / "mlflow.db"


@pytest.fixture
def workplace(tmp_path: Path, empty_database: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """The current folder of a user who has run something before."""
    shutil.copy(empty_database, tmp_path / "mlflow.db")
    monkeypatch.chdir(tmp_path)
    yield tmp_path


@pytest.fixture
def config() -> RunConfig:
    """Quick deliveries and enough time for them on a busy machine."""
    tracking = TrackingConfig(flush_seconds=0.05, timeout_seconds=60, system_metrics=False)
    return RunConfig(tracking=tracking)


@pytest.fixture
def start(config: RunConfig, workplace: Path) -> Callable[..., Tracker]:
    """Starts a tracker in `runs/unit`."""

    def begin(**changes: object) -> Tracker:
        arguments = {"run_folder": workplace / "runs" / "unit", **START, **changes}
        return Tracker.start(changes.pop("config", config), **{k: v for k, v in arguments.items() if k != "config"})

    return begin


@pytest.fixture
def client(workplace: Path):
    """A client of the store in the current folder."""
    return open_store(f"sqlite:///{workplace}/mlflow.db", "superblock")[0]


@pytest.fixture(autouse=True)
def _keep_environment() -> Iterator[None]:
    before = dict(os.environ)
    yield
    os.environ.clear()
    os.environ.update(before)
