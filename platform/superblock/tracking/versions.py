"""What the model registry holds, read quickly: a local store's tables without MLflow, which takes seconds to import.

Only reading happens here, and a local store that does not exist is not made.
"""

import sqlite3
from contextlib import closing
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING
from urllib.parse import unquote, urlsplit

from superblock.tracking.store import (
    database_path,
    is_database,
    prepare_environment,
    reason_of,
    require_answer,
    without_password,
)

if TYPE_CHECKING:
    from mlflow import MlflowClient

PROMOTED = "promoted"
PAGE = 200


class StoreAway(RuntimeError):
    """The store does not answer. The text says which and why, in one line."""


@dataclass(frozen=True)
class Version:
    """One version of a registered model."""

    model: str
    version: int
    run_id: str | None
    """The MLflow run it belongs to."""
    created: float
    """Seconds since 1970."""
    location: str
    """Where its files are: a folder, or an address that only the store's server understands."""
    aliases: tuple[str, ...]
    tags: dict[str, str]

    @property
    def folder(self) -> Path | None:
        """Its files, if they are on this machine."""
        parts = urlsplit(self.location)
        if parts.scheme == "file":
            return Path(unquote(parts.path))
        return Path(self.location) if not parts.scheme else None


def alias_of_seed(seed: int) -> str:
    """The alias of a seed's newest promoted version."""
    return f"{PROMOTED}-s{seed}"


def read_versions(uri: str) -> list[Version]:
    """Every version of every registered model, newest first.

    Args:
        uri: of a store, from `store_uri`.

    Raises:
        StoreAway: if it does not answer, or cannot be read.
    """
    database = database_path(uri)
    if database is None:
        found = _from_client(uri)
    else:
        found = _from_database(database) if database.exists() else []
    return sorted(found, key=lambda one: (one.created, one.version), reverse=True)


def _from_database(database: Path) -> list[Version]:
    """The tables that MLflow keeps; `workspace` is left out, because a local store has one."""
    try:
        with closing(sqlite3.connect(f"{database.as_uri()}?mode=ro", uri=True, timeout=20)) as connection:
            if not connection.execute("SELECT 1 FROM sqlite_master WHERE name = 'model_versions'").fetchone():
                return []  # the file exists, its tables do not yet
            rows = connection.execute(
                "SELECT name, version, run_id, creation_time, coalesce(storage_location, source, '') FROM model_versions "
                "WHERE current_stage IS NULL OR current_stage != 'Deleted_Internal'"
            ).fetchall()
            aliases = connection.execute("SELECT name, version, alias FROM registered_model_aliases").fetchall()
            tags = connection.execute("SELECT name, version, key, value FROM model_version_tags").fetchall()
    except sqlite3.Error as error:
        raise StoreAway(f"{database} cannot be read ({error})") from error
    return [
        Version(
            name, int(version), run_id, (created or 0) / 1000, location,
            tuple(sorted(alias for n, v, alias in aliases if (n, v) == (name, version))),
            {key: value or "" for n, v, key, value in tags if (n, v) == (name, version)},
        )
        for name, version, run_id, created, location in rows
    ]  # fmt: skip


def _from_client(uri: str) -> list[Version]:
    """Through MLflow: from a server, or from the tables of a database that has no file here."""
    prepare_environment()
    from mlflow import MlflowClient
    from mlflow.exceptions import MlflowException

    try:
        require_answer(uri)
        client = MlflowClient(tracking_uri=uri, registry_uri=uri)
        found = [version for model in _models(client) for version in _versions(client, *model)]
    except (MlflowException, OSError) as error:
        raise StoreAway(f"{without_password(uri)} does not answer ({reason_of(error)})") from error
    if is_database(uri):
        return found
    # beyond the user's machine, files are fetched through the server
    return [replace(one, location=f"models:/{one.model}/{one.version}") for one in found]


def _models(client: "MlflowClient") -> list[tuple[str, dict[str, str]]]:
    """Every registered model with its aliases."""
    found, token = [], None
    while True:
        page = client.search_registered_models(max_results=PAGE, page_token=token)
        found += [(model.name, dict(model.aliases or {})) for model in page]
        if not (token := page.token):
            return found


def _versions(client: "MlflowClient", model: str, aliases: dict[str, str]) -> list[Version]:
    """A search does not fill in a version's aliases: they come from its model."""
    found, token = [], None
    while True:
        page = client.search_model_versions(f"name='{model}'", max_results=PAGE, page_token=token)
        for one in page:
            number = int(one.version)
            names = tuple(sorted(alias for alias, version in aliases.items() if int(version) == number))
            created = (one.creation_timestamp or 0) / 1000
            found.append(Version(model, number, one.run_id, created, one.source or "", names, dict(one.tags or {})))
        if not (token := page.token):
            return found
