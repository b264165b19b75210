"""Putting a model into the MLflow Model Registry, taking it off again, and fetching its files.

A version consists of what MLflow calls a logged model, which belongs to the run, and of the entry that points to it.
Each step looks at what an earlier attempt left, so an interrupted registration is finished by the next one and a run has
one version, however often it is registered. Nothing here changes MLflow's global state.
"""

import importlib.metadata
import logging
import re
import shutil
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from superblock.tracking.spool import MAX_TAG, clean_key, cut
from superblock.tracking.store import (
    PRIMARY_METRIC,
    is_database,
    open_store,
    prepare_environment,
    reason_of,
    without_password,
)
from superblock.tracking.versions import StoreAway, Version

if TYPE_CHECKING:
    from mlflow import MlflowClient

CHECKPOINT = "checkpoint"
"""The folder of a model's own files among its artifacts."""
SERVING_CODE = Path(__file__).with_name("serving_model.py")
SAMPLING = {"max_tokens": 64, "temperature": 0.8, "top_p": 0.95, "top_k": 0, "seed": 1}
"""How a served model writes, unless whoever loads it gives another `model_config`."""
REQUIREMENTS = ("torch", "tokenizers", "safetensors", "numpy", "pyyaml", "filelock", "psutil", "rich")
"""What serving needs beside superblock, which is in no package index and must be installed where it serves."""


@dataclass(frozen=True)
class Release:
    """A model that passed."""

    model: str
    """Name in the registry, such as mvp2-tiny."""
    aliases: tuple[str, ...]
    checkpoint: Path
    """Folder of a registered model (training.registered)."""
    run_id: str
    """MLflow run that it belongs to."""
    tags: Mapping[str, object]
    description: str
    """Markdown."""
    prompt: str
    """Example of a request."""


def register(release: Release, *, uri: str, experiment: str) -> int:
    """Registers a model and moves its aliases to it; returns its version.

    A run that has a version keeps it, with new tags and description.

    Raises:
        StoreAway: if the store does not answer or refuses; to be repeated as it is.
    """
    with _answers(uri), _quiet():
        client, experiment_id = open_store(uri, experiment)
        tags = {clean_key(key): cut(value, MAX_TAG) for key, value in release.tags.items()}
        _make_model(client, release.model, {key: tags[key] for key in ("stage", "scale") if key in tags})
        version = _version_of(client, release.model, release.run_id)
        if version is None:
            logged = _log_model(client, experiment_id, release, tags)
            # a local registry would look the id up in MLflow's global store
            source = logged.artifact_location if is_database(uri) else f"models:/{logged.model_id}"
            made = client.create_model_version(
                release.model, source, release.run_id, tags, description=release.description, model_id=logged.model_id
            )
            version = int(made.version)
        else:
            for key, value in tags.items():
                client.set_model_version_tag(release.model, str(version), key, value)
            client.update_model_version(release.model, str(version), release.description)
        for alias in release.aliases:
            client.set_registered_model_alias(release.model, alias, str(version))
    return version


def version_of_run(uri: str, experiment: str, model: str, run: str) -> int | None:
    """The version of a model that came from a run of this name.

    Raises:
        StoreAway: if the store does not answer.
    """
    with _answers(uri):
        client, _ = open_store(uri, experiment)
        found = client.search_model_versions(f"name='{model}' and tags.run='{run}'", max_results=1)
    return int(found[0].version) if found else None


def withdraw(model: str, version: int, *, uri: str, experiment: str, why: str) -> None:
    """Takes every alias off a version and marks it; the version stays.

    Raises:
        StoreAway: if the store does not answer.
    """
    with _answers(uri):
        client, _ = open_store(uri, experiment)
        for alias, held in dict(client.get_registered_model(model).aliases or {}).items():
            if int(held) == version:
                client.delete_registered_model_alias(model, alias)
        client.set_model_version_tag(model, str(version), "promotion", "refused")
        client.set_model_version_tag(model, str(version), "promotion.reason", cut(why, MAX_TAG))


def fetch(version: Version, uri: str, folder: Path) -> Path:
    """The folder of a version's own files, copied or downloaded once, whole or not at all.

    Args:
        folder: where to put it; used as it is if it exists.

    Raises:
        StoreAway: if the files cannot be had.
    """
    if folder.is_dir():
        return folder
    folder.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=f".tmp-{folder.name}-", dir=folder.parent) as place:
        if version.folder is not None:
            files = _copy(version.folder, Path(place))
        else:
            files = _download(version, uri, Path(place))
        try:
            files.rename(folder)
        except OSError:
            if not folder.is_dir():  # else another process was faster
                raise
    return folder


# -- steps ------------------------------------------------------------------------------------------------------------


def _make_model(client: "MlflowClient", model: str, tags: dict[str, str]) -> None:
    from mlflow.exceptions import MlflowException

    text = "Models that passed their stage's gates, one version each. `promoted` is the one that the next stage grows from."
    try:
        client.create_registered_model(model, tags, text)
    except MlflowException as error:
        if error.error_code != "RESOURCE_ALREADY_EXISTS":
            raise


def _version_of(client: "MlflowClient", model: str, run_id: str) -> int | None:
    """The version that an earlier attempt registered for this run."""
    found = client.search_model_versions(f"name='{model}' and run_id='{run_id}'", max_results=1)
    return int(found[0].version) if found else None


def _log_model(client: "MlflowClient", experiment_id: str, release: Release, tags: dict[str, str]) -> Any:
    """The logged model of the run: files first, then READY, so that a half-written one is never taken for a whole."""
    from mlflow.entities import LoggedModelOutput
    from mlflow.entities.logged_model_status import LoggedModelStatus

    for old in client.search_logged_models(
        [experiment_id], f"source_run_id = '{release.run_id}' AND name = '{release.model}'"
    ):
        if old.status == LoggedModelStatus.READY:
            return old
        client.delete_logged_model(old.model_id)
    logged = client.create_logged_model(experiment_id, release.model, release.run_id, tags, model_type="language model")
    with tempfile.TemporaryDirectory(dir=release.checkpoint.parent, prefix=".tmp-") as place:
        folder = Path(place) / "model"
        _save(folder, release, logged)
        client.log_model_artifacts(logged.model_id, str(folder))
    _copy_result(client, release.run_id, logged.model_id)
    client.log_outputs(release.run_id, [LoggedModelOutput(logged.model_id, step=0)])
    return client.finalize_logged_model(logged.model_id, LoggedModelStatus.READY)


def _save(folder: Path, release: Release, logged: Any) -> None:
    """MLflow's own folder around the checkpoint. The code is a file, so nothing is pickled."""
    import mlflow.pyfunc
    from mlflow.models import Model

    model = Model(
        artifact_path=logged.artifact_location,
        model_uuid=logged.model_id,
        run_id=release.run_id,
        model_id=logged.model_id,
    )
    mlflow.pyfunc.save_model(
        folder,
        mlflow_model=model,
        python_model=str(SERVING_CODE),
        artifacts={CHECKPOINT: str(release.checkpoint)},
        input_example=[release.prompt],
        pip_requirements=_requirements(),
        model_config=dict(SAMPLING),
    )
    for cache in folder.rglob("__pycache__"):
        shutil.rmtree(cache)


def _copy_result(client: "MlflowClient", run_id: str, model_id: str) -> None:
    """Gives the run's test result to the model as well, by which MLflow then ranks models. Equal points are stored once."""
    points = client.get_metric_history(run_id, PRIMARY_METRIC)
    if points:
        last = max(points, key=lambda point: point.timestamp)
        name, digest = _test_data(client, run_id)
        client.log_metric(
            run_id, PRIMARY_METRIC, last.value, last.timestamp, last.step,
            dataset_name=name, dataset_digest=digest, model_id=model_id,
        )  # fmt: skip


def _test_data(client: "MlflowClient", run_id: str) -> tuple[str | None, str | None]:
    """Name and digest of the data set that a run was tested on."""
    inputs = client.get_run(run_id).inputs
    for one in inputs.dataset_inputs if inputs else []:
        if any(tag.key == "mlflow.data.context" and tag.value == "test" for tag in one.tags):
            return one.dataset.name, one.dataset.digest
    return None, None


def _copy(source: Path, place: Path) -> Path:
    """From this machine, without MLflow."""
    try:
        return Path(shutil.copytree(source / "artifacts" / CHECKPOINT, place / CHECKPOINT))
    except (OSError, shutil.Error) as error:
        raise StoreAway(f"{source}: its files cannot be copied ({reason_of(error)})") from error


def _download(version: Version, uri: str, place: Path) -> Path:
    """From the server. The address of a version would be looked up in MLflow's global registry, that of its files is not."""
    with _answers(uri):
        from mlflow import MlflowClient
        from mlflow.artifacts import download_artifacts

        client = MlflowClient(tracking_uri=uri, registry_uri=uri)
        source = client.get_model_version_download_uri(version.model, str(version.version))
        address = f"{source.rstrip('/')}/artifacts/{CHECKPOINT}"
        return Path(download_artifacts(artifact_uri=address, dst_path=str(place), tracking_uri=uri))


def _requirements() -> list[str]:
    """The ranges of superblock's own metadata for what serving needs; given, so that MLflow infers nothing."""
    names = {name.lower() for name in REQUIREMENTS}
    found = importlib.metadata.requires("superblock") or []
    return sorted(
        line for line in found if ";" not in line and re.split(r"[^\w.-]", line, maxsplit=1)[0].lower() in names
    )


@contextmanager
def _answers(uri: str) -> Iterator[None]:
    """Turns what can go wrong with a store into one line. MLflow is loaded here first, with short timeouts."""
    prepare_environment()
    from mlflow.exceptions import MlflowException
    from requests import RequestException

    try:
        yield
    except (MlflowException, RequestException, OSError) as error:
        raise StoreAway(f"{without_password(uri)}: {reason_of(error)}") from error


@contextmanager
def _quiet() -> Iterator[None]:
    """Without a page of remarks on how a model is saved and registered."""
    logger = logging.getLogger("mlflow")
    before = logger.level
    logger.setLevel(logging.ERROR)
    try:
        yield
    finally:
        logger.setLevel(before)
