"""What is known of the runs and benchmarks that a report is about, wherever it was read from."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any


@dataclass(frozen=True)
class Series:
    """The points of one metric over a run, thinned where there are more than a picture shows."""

    steps: tuple[int, ...]
    values: tuple[float, ...]
    """Finite ones only."""


@dataclass(frozen=True, kw_only=True)
class RunFacts:
    """One run, from its own folder or from MLflow."""

    name: str
    stage: str
    scale: str
    arm: str
    seed: int
    suite: str
    status: str
    """As in `tracking.runs.RunRecord`."""
    started: float
    ended: float | None
    """Seconds since 1970; None while it is not known."""
    fingerprint: str
    commit: str
    """Whole; empty if it is not known."""
    dirty: bool
    hardware: str
    """In words."""
    machine: str
    """Fingerprint of the hardware and the threads used: speeds compare only where it is equal."""
    command: str
    data_digest: str
    data: str
    """The text in words."""
    mlflow_run_id: str | None = None
    experiment_id: str | None = None
    superblocks: int | None = None
    lineage: tuple[str, ...] = ()
    """Names of the runs it grew from, oldest first, itself last; its own alone if it was trained from scratch."""
    settings: Mapping[str, str] = field(default_factory=dict)
    """The compared settings, under the keys a user types."""
    results: Mapping[str, float] = field(default_factory=dict)
    """Single numbers by name, finite ones only: `metrics.RESULTS` and `metrics.EXPERTS` as recorded, and from the summary
    `run/steps`, `run/tokens`, `run/minutes`, `run/minutes_in_all`, `run/memory_bytes`, `lineage/tokens`,
    `reference/unigram` and its like."""
    curves: Mapping[str, Series] = field(default_factory=dict)
    """By name: `metrics.CURVES` by step; `exits/bits_per_byte`, `exits/tokens_per_second` and `exits/trained` (models that
    were trained at that depth) by number of superblocks."""
    statements: tuple[Mapping[str, Any], ...] = ()
    """Gates and claims as in statements.json: name, kind, verdict, measured, asked, because, value, low, high."""
    prediction: Mapping[str, Any] = field(default_factory=dict)
    """What was predicted before training, by name: value, low, high."""
    samples: str | None = None
    """Texts that the model wrote, Markdown."""
    language: Mapping[str, Any] = field(default_factory=dict)
    """What the language suite measured; empty if it did not run."""


@dataclass(frozen=True, kw_only=True)
class RecordFacts:
    """The record of a benchmark, see `benchmarks.records` and `benchmarks.ablation.record`."""

    suite: str
    name: str
    started: float
    finished: float | None
    commit: str
    machine: str
    hardware: str
    content: Mapping[str, Any]
    """The JSON as it is."""


@dataclass(frozen=True)
class Facts:
    """Everything that was found."""

    runs: tuple[RunFacts, ...]
    """Oldest first."""
    records: tuple[RecordFacts, ...]
    """Oldest first."""
    source: str
    """Where they come from, in words."""
    problems: tuple[str, ...] = ()
    """What could not be read, in words."""
    others: str = ""
    """The finished runs there are, in words, where none of them is what was asked for."""
