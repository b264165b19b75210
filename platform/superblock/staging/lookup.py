"""What is already there of a stage: a promoted model, a finished run, one that was interrupted, or nothing."""

import os

from superblock.config.fields import ConfigError
from superblock.config.run import RunConfig, fingerprint
from superblock.staging.promotion import Promoted, find_promoted
from superblock.tracking.runs import RunRecord, find_run, list_runs, newest_resumable
from superblock.training.manifest import load_progress, newest_whole
from superblock.training.promoted import PROMOTION_FILE, FilesGone


def promoted_model(config: RunConfig, digest: str) -> Promoted | None:
    """The promoted model of exactly this configuration and text, if its promotion was completed and its files are there."""
    try:
        promoted = find_promoted(config.stage.name, config, seed=config.seed)
    except FilesGone:
        return None
    if promoted is None or promoted.fingerprint != fingerprint(config) or promoted.data_digest != digest:
        return None
    record = find_run(promoted.run)
    killed = record is not None and not (record.folder / PROMOTION_FILE).is_file()  # between the registry and this file
    return None if killed else promoted


def named_finished_run(config: RunConfig) -> RunRecord | None:
    """The finished run that `resume` names, unless its gates are not wanted; None for any other."""
    if config.resume in ("none", "auto") or config.promote is False or not config.stage.gates:
        return None
    if int(os.environ.get("WORLD_SIZE", "1")) > 1:
        return None
    record = find_run(config.resume)
    return record if record is not None and record.status == "FINISHED" else None


def run_to_go_on_with(config: RunConfig, digest: str | None) -> RunRecord | None:
    """The run that this configuration means to go on with, if any: in a pipeline a finished one, else the newest that can
    be continued; `resume=auto` means the interrupted one first.

    Args:
        digest: of the text in a pipeline; runs on another do not count.

    Raises:
        ConfigError: if such a run is being trained at this moment.
    """
    if config.resume == "auto" and digest is None:
        runs = list_runs(fingerprint=fingerprint(config))
        return newest_resumable(fingerprint(config)) or next((run for run in runs if run.status == "FINISHED"), None)
    if digest is None:
        return None
    runs = [run for run in list_runs(fingerprint=fingerprint(config)) if _text_of(run) in (None, digest)]
    if running := next((run for run in runs if run.status == "RUNNING"), None):
        raise ConfigError(f"stage={config.stage.name}: {running.name} is being trained by another command; wait for it")
    whole = (run for run in runs if run.status == "FINISHED" and newest_whole(run.folder)[0] is not None)
    return next(whole, None) or next((run for run in runs if run.resumable), None)


def _text_of(run: RunRecord) -> str | None:
    """The digest of the text a run reads; None before its first checkpoint."""
    checkpoint, _ = newest_whole(run.folder)
    digest = load_progress(checkpoint).get("data_digest") if checkpoint else None
    return digest or run.summary.get("data_digest")
