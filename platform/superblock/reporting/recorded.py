"""The report as a run of its own in MLflow: tags to find it by, its pages as artifacts; each report once."""

import time
from collections.abc import Callable, Mapping
from contextlib import suppress
from hashlib import sha256
from pathlib import Path
from typing import TYPE_CHECKING

from superblock.config.tracking import TrackingConfig
from superblock.config.typed import command_line
from superblock.reporting.content import Report
from superblock.reporting.files import FILE
from superblock.tracking.files import read_json, write_json
from superblock.tracking.identity import stage_color, user
from superblock.tracking.spool import MAX_TAG, cut
from superblock.tracking.store import database_path, has_run, open_store, reason_of, store_uri, without_password

if TYPE_CHECKING:
    from mlflow import MlflowClient

ARTIFACTS = ("index.html", "report.md", "report.json")
REPORT_TAG, PAGES_TAG = "report.digest", "report.pages"
NOTE_FILE = ".recorded.json"
"""Beside the reports: what is in which store already, as which run, so that MLflow need not be asked again."""


def record(report: Report, folder: Path, config: TrackingConfig, *, say: Callable[[str], None]) -> None:
    """Records a report, unless the same one is recorded already. A store that does not answer costs a line, no more.

    Args:
        report: the report.
        folder: its pages.
        config: which store.
        say: shows a line.

    Raises:
        ConfigError: if `tracking.uri` cannot be an address.
    """
    uri = store_uri(config)
    if uri is None:
        return
    pages = [folder / name for name in ARTIFACTS if (folder / name).is_file()]
    place, note = f"{without_password(uri)} {config.experiment}", folder.parent / NOTE_FILE
    known = {"place": place, "report": _digest(folder / FILE), "pages": _digest(*pages)}
    noted = read_json(note).get(report.name)
    if isinstance(noted, dict) and {**noted, **known} == noted and _still_there(uri, noted.get("run")):
        return
    began = time.monotonic()
    try:
        client, experiment_id = open_store(uri, config.experiment)
        run_id = _record_once(client, experiment_id, report, pages, known)
    except Exception as error:  # whatever MLflow, its database or the network raises
        say(f"not recorded in MLflow: {without_password(uri)}: {reason_of(error)}; the next report tries again")
        return
    with suppress(OSError):
        write_json(note, {**read_json(note), report.name: {**known, "run": run_id}})
    say(f"recorded in MLflow: run {report.name} of experiment {config.experiment}  ({time.monotonic() - began:.1f} s)")


def tags(report: Report) -> dict[str, str]:
    """What the run is found and shown by."""
    return {
        "suite": "report",
        "verdict": report.verdict,
        "report.name": report.name,
        "report.baseline": report.baseline or "none",
        "mlflow.runColor": stage_color("report"),
        "mlflow.user": user(),
        "mlflow.source.type": "LOCAL",
        "mlflow.source.name": cut(command_line(), MAX_TAG),
    }


def _record_once(
    client: "MlflowClient", experiment_id: str, report: Report, pages: list[Path], digests: Mapping[str, str]
) -> str:
    """Makes no second run of a report; one that was interrupted, or whose pages look different by now, is completed.

    Returns:
        The run's id.
    """
    found = client.search_runs([experiment_id], f"tags.`{REPORT_TAG}` = '{digests['report']}'", max_results=1)
    if found and found[0].info.status == "FINISHED" and found[0].data.tags.get(PAGES_TAG) == digests["pages"]:
        return str(found[0].info.run_id)
    if found:
        run_id = str(found[0].info.run_id)
    else:
        known = tags(report) | {REPORT_TAG: digests["report"]}
        run_id = str(client.create_run(experiment_id, int(time.time() * 1000), known, run_name=report.name).info.run_id)
    for page in pages:
        client.log_artifact(run_id, str(page))
        if page.suffix == ".md":
            client.set_tag(run_id, "mlflow.note.content", cut(page.read_text(encoding="utf-8"), MAX_TAG))
    client.set_tag(run_id, PAGES_TAG, digests["pages"])
    client.set_terminated(run_id, "FINISHED")
    return run_id


def _still_there(uri: str, run_id: object) -> bool:
    """Whether a noted run is in the store: its file may have been deleted or replaced. A server is taken at the note's word."""
    database = database_path(uri)
    return database is None or (isinstance(run_id, str) and has_run(database, run_id))


def _digest(*files: Path) -> str:
    return sha256(b"".join(file.read_bytes() for file in files)).hexdigest()[:16]
