"""Keeps an experiment's comparison views and its note current in the store. What fails costs a line, nothing else."""

import time
from base64 import b64encode
from collections.abc import Callable
from http.client import HTTPException
from typing import TYPE_CHECKING
from urllib.parse import unquote, urlsplit, urlunsplit
from urllib.request import Request, urlopen
from zlib import crc32

from superblock.tracking import comparisons, views
from superblock.tracking.comparisons import RunContents
from superblock.tracking.store import EXPERIMENT_TAGS, prepare_environment, reason_of
from superblock.tracking.views import View

if TYPE_CHECKING:
    from mlflow import MlflowClient

NOTE = "mlflow.note.content"
NOTE_DIGEST = "superblock.note"
"""Tag with the digest of the note that was written last: a note that somebody changed is left alone."""
NEWEST = 1000
"""Runs that decide which views there are."""


def publish(base: str, experiment_id: str, report: Callable[[str], None]) -> list[View]:
    """Writes the views that the experiment's runs allow; returns them, the most wanted first.

    Args:
        base: address of the MLflow server.
        experiment_id: of the experiment.
        report: shows a line to the user.

    Returns:
        An empty list if the server's version is untested, it cannot be written to, or there is nothing to compare.
    """
    version = server_version(base)
    if version is None or not views.is_tested(version):
        span = ".".join(map(str, views.TESTED[0]))
        report(f"MLflow {version or 'of unknown version'}: saved comparisons are known to work with {span} only")
        return []
    prepare_environment()
    from mlflow import MlflowClient
    from mlflow.exceptions import MlflowException
    from requests import RequestException

    try:
        return write(MlflowClient(tracking_uri=base), experiment_id)
    except (MlflowException, RequestException, OSError) as error:
        report(f"no saved comparisons: {reason_of(error)}")
        return []


def write(client: "MlflowClient", experiment_id: str) -> list[View]:
    """Writes views and note as far as they changed, and takes away views that no longer apply."""
    runs = contents(client, experiment_id)
    wanted = comparisons.views(runs)
    tags = dict(client.get_experiment(experiment_id).tags)
    fresh = {key: value for key, value in EXPERIMENT_TAGS.items() if key != NOTE}
    now = time.time_ns() // 1_000_000
    for view in wanted:
        value = views.encode(view, now)
        if views.decode(value) != views.decode(tags.get(view.tag, "")):
            fresh[view.tag] = value
    if _is_ours(tags):
        # an address without a server: the same page can be reached under several names
        text = comparisons.note(runs, [(view.name, views.address("", experiment_id, view)[1:]) for view in wanted])
        fresh |= {NOTE: text, NOTE_DIGEST: _digest(text)}
    for key, value in fresh.items():
        if tags.get(key) != value:
            client.set_experiment_tag(experiment_id, key, value)
    for tag in tags.keys() - {view.tag for view in wanted}:
        if tag.startswith(views.TAG_PREFIX + comparisons.KEY_PREFIX):
            client.delete_experiment_tag(experiment_id, tag)
    return wanted


def contents(client: "MlflowClient", experiment_id: str) -> list[RunContents]:
    """Tags and last values of the newest runs."""
    found = client.search_runs([experiment_id], max_results=NEWEST, order_by=["attributes.start_time DESC"])
    return [RunContents(dict(run.data.tags), dict(run.data.metrics)) for run in found]


def server_version(base: str) -> str | None:
    """The MLflow version that a server says it is; None if it does not answer."""
    try:
        address, headers = _with_header(f"{base}/version")
        with urlopen(Request(address, headers=headers), timeout=5) as answer:
            return str(answer.read(100).decode("utf-8", "replace")).strip()
    except (OSError, ValueError, HTTPException):
        return None


def _with_header(address: str) -> tuple[str, dict[str, str]]:
    """An address without its name and password, and the header that says them instead: `urlopen` takes no others."""
    parts = urlsplit(address)
    said, _, host = parts.netloc.rpartition("@")
    if not said:
        return address, {}
    name, _, password = said.partition(":")
    known = b64encode(f"{unquote(name)}:{unquote(password)}".encode()).decode()
    return urlunsplit(parts._replace(netloc=host)), {"Authorization": f"Basic {known}"}


def _is_ours(tags: dict[str, str]) -> bool:
    """Whether nobody has changed the experiment's note since it was written."""
    note = tags.get(NOTE)
    return note in (None, "", EXPERIMENT_TAGS[NOTE]) or tags.get(NOTE_DIGEST) == _digest(str(note))


def _digest(text: str) -> str:
    return f"{crc32(text.encode()):08x}"
