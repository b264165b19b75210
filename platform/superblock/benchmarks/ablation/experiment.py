"""An experiment from its runs to what follows from them: say the plan, do the runs, record, show."""

import hashlib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from rich.table import Table

from superblock.benchmarks.ablation.closing import Closing, close, saying_how_to_go_on
from superblock.benchmarks.ablation.picture import Panel, draw
from superblock.benchmarks.ablation.plan import Compose, Run, select
from superblock.benchmarks.ablation.record import Record, RecordFile
from superblock.benchmarks.ablation.screen import Lines, planned
from superblock.benchmarks.ablation.work import Train, Worker
from superblock.benchmarks.screen import Screen
from superblock.config.benchmark import SUITES, BenchmarkConfig, benchmark_fingerprint
from superblock.tracking import provenance
from superblock.tracking.store import store_uri

if TYPE_CHECKING:
    from matplotlib.figure import Figure

NOT_RECORDED = ("tracking", "resume", "output", "name", "cases", "minutes")
FEWER_SEEDS, FEWER_STEPS = 2, 3


@dataclass(frozen=True)
class Experiment:
    """What a suite is made of."""

    suite: str
    runs: Sequence[Run]
    """Each behind those it needs, and the most telling ones first."""
    common: Sequence[str]
    """Overrides of every run."""
    conclude: Callable[[Record], None]
    """Fills `results` and `says` from the runs there are."""
    tables: Callable[[Record], Iterator[tuple[str, Table]]]
    """Titles and tables."""
    panels: Callable[[Record], list[Panel]]
    stem: str = ""
    """What the experiment's own name begins with; empty is the suite."""


def carry_out(config: BenchmarkConfig, compose: Compose, experiment: Experiment, train: Train | None = None) -> int:
    """Does what is left of an experiment's runs.

    Args:
        config: the benchmark's settings.
        compose: makes the configuration of a run.
        experiment: what to do.
        train: `training.loop.train`, which is imported only if there is something to do.

    Returns:
        Status of the process: 0, or 1 if a run failed.

    Raises:
        ConfigError: for a pattern that names no run, or a folder that holds another experiment.
        SystemExit: after Ctrl-C or SIGTERM; what has finished is recorded.
    """
    screen = Screen()
    store_uri(config.tracking)  # raises before anything takes time
    chosen = select(experiment.runs, config.cases)
    code, machine = provenance.code_state(), provenance.hardware()
    name = config.name or f"{experiment.stem or experiment.suite}-{config.scale.name}-{_digest(config, code.commit)}"
    file = RecordFile(Path(config.output) / name, experiment.suite)
    settings = {key: value for key, value in asdict(config).items() if key not in (*NOT_RECORDED, *_other(config))}
    fresh = Record(experiment.suite, name, benchmark_fingerprint(config), settings)
    fresh.provenance = provenance.describe(code, machine)
    record = file.begin(fresh)
    screen.line(f"suite {experiment.suite} at scale {config.scale.name}: {name}; in {file.folder}")
    if any(run.name not in record.runs for run in chosen):
        train = train or _train()
        plans = planned(chosen, _matmul_limit(config.threads))
        record = file.update(lambda record: record.planned.update(plans | record.planned))
        lines = Lines(screen, chosen, machine.fingerprint)
        lines.plan(chosen, record)
        needed = frozenset(run.parent for run in experiment.runs if run.parent)
        worker = Worker(
            file, chosen, experiment.common, compose, train, config.tracking, lines, code, machine.fingerprint,
            conclude=experiment.conclude, minutes=config.minutes, needed=needed,
        )  # fmt: skip
        with saying_how_to_go_on(screen):
            worker.work()
    closing = Closing(experiment.conclude, experiment.tables, partial(_picture, experiment))
    return close(file, closing, [run.name for run in chosen], screen)


def quickened(seeds: list[int], *steps: int) -> tuple[list[int], tuple[int, ...]]:
    """The seeds and steps of a smoke pass."""
    return seeds[:FEWER_SEEDS], tuple(min(FEWER_STEPS + i, value) for i, value in enumerate(steps))


# -- parts --------------------------------------------------------------------------------------------------------


def _picture(experiment: Experiment, record: Record) -> "Callable[[], Figure] | None":
    panels = [panel for panel in experiment.panels(record) if panel.rows]
    return (lambda: draw(panels)) if panels else None


def _digest(config: BenchmarkConfig, commit: str) -> str:
    """Eight hex digits of settings and commit: the same command finds the same experiment, other code begins another."""
    return hashlib.sha256(f"{benchmark_fingerprint(config)} {commit}".encode()).hexdigest()[:8]


def _other(config: BenchmarkConfig) -> tuple[str, ...]:
    """Settings of the other suites, and those that mean nothing to an experiment."""
    return (*(suite for suite in SUITES if suite != config.suite.name), "seed", "repeats")


def _train() -> Train:
    from superblock.training.loop import train

    return train


def _matmul_limit(threads: int | None) -> float:
    """FLOP/s in plain matrix products, for the estimate of the time alone."""
    import torch

    from superblock.evaluation.matmul_limit import measure_matmul_limit

    if threads:
        torch.set_num_threads(threads)
    return measure_matmul_limit(torch.device("cpu"), torch.bfloat16)
