"""What gates and claims look at: a run's records, its data, its trained model and its parent, each opened when first asked for."""

import math
import traceback
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from torch import nn

from superblock.config.fields import restore
from superblock.config.growth import CLAIMS, GATES, StatementConfig
from superblock.config.model import ModelConfig
from superblock.config.run import RunConfig
from superblock.data.corpus import Corpus, prepare
from superblock.generation.session import Session, load_checkpoint
from superblock.staging.statements import Compose, Kind, Outcome, Verdict
from superblock.tracking.runs import RunRecord, read_run
from superblock.tracking.spool import FILE_NAME, metric_history
from superblock.training.checkpoint import load_config, load_progress
from superblock.training.lineage import Parent, checkpoint_of, read_lineage
from superblock.training.manifest import WEIGHTS, checkpoints, newest_whole, verify
from superblock.training.process import prepare_process


class Missing(ValueError):
    """Something a measurement needs is not there. The text says what, and what would help."""


@dataclass(frozen=True)
class Finding:
    """What a measurement found. `holds` is None where it cannot be decided, which only claims may leave so."""

    holds: bool | None
    measured: str
    asked: str
    value: float | None = None
    low: float | None = None
    high: float | None = None


class Evidence:
    """One finished run.

    Args:
        run: its record; runs beside it in the same folder are its possible parents and rivals.
        config: its own configuration.
        compose: makes another run's.
    """

    def __init__(self, run: RunRecord, config: RunConfig, compose: Compose) -> None:
        self.run, self.config, self.compose = run, config, compose
        prepare_process(config.trainer.threads, 1)  # a few numbers would differ with other threads

    @cached_property
    def summary(self) -> dict[str, Any]:
        """The run's `summary.json`."""
        if not self.run.summary:
            raise Missing(f"{self.run.folder / 'summary.json'} is not there: the run has not finished")
        return self.run.summary

    @cached_property
    def history(self) -> dict[str, list[tuple[int, float]]]:
        """Every recorded metric: (step, value) in order."""
        return metric_history(self.run.folder / FILE_NAME)

    @cached_property
    def corpus(self) -> Corpus:
        """The text the run was trained on."""
        corpus = prepare(self.config.data, report=lambda text: None)
        digest = self.summary.get("data_digest")
        if digest is not None and corpus.digest != digest:
            raise Missing(f"the text has changed since: its digest is {corpus.digest}, the run's was {digest}")
        return corpus

    @cached_property
    def checkpoint(self) -> Path:
        """The newest whole checkpoint: the model that was tested."""
        path, skipped = newest_whole(self.run.folder)
        if path is None:
            reasons = "; ".join(f"{name}: {reason}" for name, reason in skipped)
            raise Missing(f"{self.run.folder} has no whole checkpoint{f' ({reasons})' if reasons else ''}")
        return path

    @cached_property
    def session(self) -> Session:
        """The trained model with its tokenizer."""
        return load_checkpoint(self.checkpoint)

    @property
    def model(self) -> nn.Module:
        """The trained model, on a GPU if there is one."""
        return self.session.model

    @property
    def device(self) -> torch.device:
        """Where the model is."""
        return self.session.device

    def bits_per_byte(self) -> float:
        """On the whole test split."""
        return tested_bits(self.run)

    # -- the parent ---------------------------------------------------------------------------------------------------

    @property
    def parent_name(self) -> str | None:
        """The run that the weights began from; None from scratch."""
        return self.summary.get("parent")

    @cached_property
    def parent_checkpoint(self) -> Path:
        """The checkpoint of the step that the run grew from: with the parent's run, or in its registered model's copy."""
        if self.parent_name is None:
            raise Missing("the run began from scratch: it has no parent")
        root, steps = self.run.folder.parent, int(self.summary["lineage"][-2]["steps"])
        found = checkpoint_of(self.parent_name, root) or checkpoint_of(self.config.parent, root)
        candidates = [] if found is None else [found]
        if found is not None and not (found / WEIGHTS).is_file():  # a run keeps older checkpoints beside its newest
            candidates += checkpoints(found.parent.parent)
        for path in candidates:
            if verify(path) is None and load_progress(path)["step"] == steps:
                return path
        raise Missing(f"the checkpoint of step {steps:,} of the parent {self.parent_name} is no longer here")

    @cached_property
    def parent(self) -> Parent:
        """The parent's weights."""
        path = self.parent_checkpoint
        model = restore(ModelConfig, load_config(path).get("model", {}), "model")
        return Parent(str(self.parent_name), path, model, read_lineage(path))

    def parent_result(self) -> tuple[float, str | None]:
        """The parent's bits per byte on the whole test split, and the digest of its text."""
        record = read_run(self.run.folder.parent / str(self.parent_name))
        if (record is None or not record.summary) and not (self.parent_checkpoint / WEIGHTS).is_file():
            record = read_run(self.parent_checkpoint.resolve().parent.parent)  # a folder of the user's
        if record is not None and record.summary:
            return tested_bits(record), record.summary.get("data_digest")
        known = load_progress(self.parent_checkpoint)  # a registered model says what its run's test was
        try:
            return float(known["test_bits_per_byte"]), known.get("data_digest")
        except (KeyError, ValueError):
            raise Missing(f"the result of the parent {self.parent_name} on the test split is no longer here") from None


def tested_bits(run: RunRecord) -> float:
    """A run's bits per byte on the whole test split.

    Raises:
        Missing: if it was not tested.
    """
    value = run.summary.get("splits", {}).get("test", {}).get("bits_per_byte")
    if not isinstance(value, float) or not math.isfinite(value):
        raise Missing(f"{run.name} has no result on the test split; train with evaluation.test=true")
    return value


# -- measuring --------------------------------------------------------------------------------------------------------

Measurement = Callable[[Evidence, StatementConfig], Finding]


def measure(
    evidence: Evidence, kind: Kind, name: str, statement: StatementConfig, known: Mapping[str, Measurement]
) -> Outcome:
    """The outcome of one statement; whatever goes wrong is an outcome too. Only Ctrl-C passes."""
    try:
        if name not in known:
            raise Missing(f"this version knows no {kind} of that name")
        found = known[name](evidence, statement)
    except Exception as error:
        asked = (GATES | CLAIMS)[name].meaning if name in known else "a known name"
        found = Finding(None, f"could not be measured: {_in_words(error)}", asked)
    verdict = _verdict(kind, found.holds)
    return Outcome(
        name, kind, verdict, found.measured, found.asked, statement.because, found.value, found.low, found.high
    )


def _verdict(kind: Kind, holds: bool | None) -> Verdict:
    if kind == "gate":
        return "passed" if holds else "failed"
    return "undecided" if holds is None else "held" if holds else "not held"


def _in_words(error: Exception) -> str:
    """What a person can do something about is said plainly; anything else with its place in the code."""
    text = " ".join(str(error).split())[:400]
    if isinstance(error, (ValueError, OSError)) and text:
        return text
    place = traceback.extract_tb(error.__traceback__)[-1]
    return f"{type(error).__name__}: {text} ({Path(place.filename).name}, line {place.lineno})"
