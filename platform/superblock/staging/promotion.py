"""Promotion: a run whose gates passed is registered as the model that the next stage grows from; a refusal is recorded too.

The registry comes first, then the run's tags in MLflow, then `promotion.json`. A process killed in between leaves a run
that is promoted in the registry and not on disk; promoting it again finds the version and finishes the rest.
"""

import time
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Any

from superblock.config.fields import ConfigError, restore
from superblock.config.model import ModelConfig
from superblock.config.run import RunConfig
from superblock.config.typed import typed
from superblock.data.corpus import Corpus, prepare
from superblock.staging.candidate import Candidate
from superblock.staging.statements import FILE as STATEMENTS
from superblock.staging.statements import Statements
from superblock.tracking import registry
from superblock.tracking.files import read_json, write_json
from superblock.tracking.identity import IDENTITY_FILE
from superblock.tracking.mlflow_sender import deliver, to_stderr
from superblock.tracking.run import Tracker
from superblock.tracking.runs import RunRecord
from superblock.tracking.spool import last_values
from superblock.tracking.store import store_uri, without_password
from superblock.tracking.versions import PROMOTED, StoreAway
from superblock.training.lineage import plain_lineage, refuse_other_text
from superblock.training.manifest import load_config, load_progress, newest_whole
from superblock.training.promoted import PROMOTION_FILE, Promoted, find_alias

__all__ = ["Promoted", "find_promoted", "promote", "refuse", "refuse_other_parent"]

Say = Callable[[str], None]
NOTE = "mlflow.note.content"
HEADING = "### Promotion"


def find_promoted(stage: str, config: RunConfig, *, seed: int | None = None, say: Say = to_stderr) -> Promoted | None:
    """A stage's promoted model at the configuration's scale: that of the seed if there is one, else the newest.

    The registry of the configured store decides; with `tracking=none`, or while it does not answer, the runs' own files.

    Raises:
        ConfigError: if there is one and its files cannot be had.
    """
    return find_alias(stage, config.scale.name, config.tracking, seed=seed, say=say)


def promote(run: RunRecord, statements: Statements, config: RunConfig, *, say: Say) -> Promoted:
    """Registers a run whose gates passed. Repeating it changes nothing but the time, and moves the aliases to it.

    Args:
        run: finished, with a whole checkpoint.
        config: the run's own.

    Raises:
        ConfigError: if the store does not answer or the run has no whole checkpoint; nothing is noted on disk then, and
            the same command tries again.
    """
    assert statements.passed, statements.failures
    began = time.perf_counter()
    candidate = Candidate(run, config, _checkpoint(run))
    model, version, tags = candidate.model, None, candidate.tags()
    if (uri := store_uri(config.tracking)) is not None:
        try:
            tags |= {"mlflow_run_id": _run_id(run, config, uri, say), "parent_version": candidate.parent_version(uri)}
            version = candidate.register(statements, tags, uri)
        except StoreAway as error:
            raise ConfigError(
                f"tracking={config.tracking.store}: {run.name} passed its gates and could not be registered as {model}:\n"
                f"{error}\nonce the store answers: {typed(f'run resume={run.name}')}"
            ) from None
    shown = f"{model} version {version}" if version else model
    text = f"Promoted as **{shown}**, `{model}@{PROMOTED}`."
    _annotate(run, config, statements, text, _promotion_tags(model, version), say)
    record = {
        "promoted": True,
        "time": time.time(),
        "model": model,
        "version": version,
        "aliases": list(candidate.aliases),
    }
    place = {"store": without_password(uri), "tags": {key: str(value) for key, value in tags.items()}}
    write_json(run.folder / PROMOTION_FILE, record | place)
    say(f"promoted {run.name} as {shown} ({time.perf_counter() - began:.1f} s)")
    return Promoted(
        config.stage.name, config.scale.name, run.name, run.folder, candidate.checkpoint, version, PROMOTED, config.seed,
        run.fingerprint, str(tags["data_digest"]), config.model.num_superblocks, tuple(plain_lineage(candidate.lineage)),
    )  # fmt: skip


def refuse(run: RunRecord, statements: Statements, config: RunConfig, *, say: Say) -> None:
    """Records that a run is not promoted and why, on disk and in MLflow; if it was promoted before, that ends."""
    failures = [asdict(outcome) for outcome in statements.failures]
    words = "; ".join(f"{one.name}: measured {one.measured}, must be {one.asked}" for one in statements.failures)
    before = read_json(run.folder / PROMOTION_FILE)
    if before.get("promoted") and before.get("version") and (uri := store_uri(config.tracking)) is not None:
        try:
            experiment = config.tracking.experiment
            registry.withdraw(before["model"], int(before["version"]), uri=uri, experiment=experiment, why=words)
            say(f"withdrew {before['model']} version {before['version']}: it no longer passes its gates")
        except StoreAway as error:
            say(f"registry: {error}; {before['model']} version {before['version']} could not be withdrawn")
    lines = "\n".join(f"- {one.name}: measured {one.measured}; must be {one.asked}" for one in statements.failures)
    tags = {"promotion": "refused", "promotion.reason": words}
    _annotate(run, config, statements, f"Not promoted.\n\n{lines}", tags, say)
    write_json(run.folder / PROMOTION_FILE, {"promoted": False, "time": time.time(), "failures": failures})


def refuse_other_parent(
    parent: Promoted, config: RunConfig, *, corpus: Corpus | None = None, say: Say = to_stderr
) -> None:
    """Whether a model can begin from this parent.

    Args:
        corpus: that of `config`; prepared if it is not given.

    Raises:
        ConfigError: naming what differs, both values, and what to do.
    """
    from superblock.models.growth import plan_growth  # imports torch

    stored = load_config(parent.checkpoint)
    advice = f"the parent is {parent.describe()}; parent=none trains from scratch, parent=<run> begins from another run"
    try:
        plan_growth(restore(ModelConfig, stored["model"], "model"), config.model, config.growth.method)
        there, now = stored["data"]["vocab_size"], config.data.vocab_size
        if there != now:
            raise ConfigError(f"data.vocab_size is {now}, the parent's was {there}")
        refuse_other_text(parent.checkpoint, corpus or prepare(config.data, report=say), digest=parent.data_digest)
        before = stored["optim"]["name"]
        if before != config.optim.name and config.growth.optimizer and config.growth.method != "none":
            advice += "\nor growth.optimizer=false starts a new optimizer"
            raise ConfigError(f"optim.name is {config.optim.name}, the parent's was {before}")
    except ConfigError as error:
        raise ConfigError(f"{error}\n{advice}") from None


def _checkpoint(run: RunRecord) -> Path:
    """The checkpoint of the run's end: its gates say nothing about an earlier one."""
    checkpoint, skipped = newest_whole(run.folder)
    if checkpoint is None or load_progress(checkpoint)["step"] != run.summary.get("steps"):
        reasons = "; ".join(f"{name}: {reason}" for name, reason in skipped) or "there is none"
        raise ConfigError(f"{run.name} cannot be promoted without a whole checkpoint of its end ({reasons})")
    return checkpoint


def _run_id(run: RunRecord, config: RunConfig, uri: str, say: Say) -> str:
    """The run's id in this store; a run whose store was away during training is delivered first."""
    deliver(run.folder, config.tracking, timeout=config.tracking.timeout_seconds, report=say)
    known = read_json(run.folder / IDENTITY_FILE)
    if "mlflow_run_id" not in known or known.get("tracking_uri") != without_password(uri):
        raise StoreAway(f"{without_password(uri)} did not take the run {run.name}")
    return str(known["mlflow_run_id"])


def _promotion_tags(model: str, version: int | None) -> dict[str, object]:
    number: dict[str, object] = {} if version is None else {"promotion.version": version}
    return {"promotion": "promoted", "promotion.reason": "every gate passed", "promotion.model": model} | number


def _annotate(
    run: RunRecord, config: RunConfig, statements: Statements, text: str, tags: dict[str, Any], say: Say
) -> None:
    """Adds what was measured, tags, and a paragraph to the description, in place of that of an earlier decision."""
    note = last_values(run.folder, "tags").get(NOTE, "").partition(f"\n\n{HEADING}")[0]
    with Tracker.reopen(run.folder, config, report=say) as tracker:
        tracker.tags(statements.tags() | tags | {NOTE: f"{note}\n\n{HEADING}\n\n{text}"})
        tracker.result(statements.metrics())
        if (measured := run.folder / STATEMENTS).is_file():
            tracker.artifact(measured)
