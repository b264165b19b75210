"""An experiment from its runs to what follows from them: say the plan, do the runs, record, show."""

import hashlib
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path

from rich.table import Table

from superblock.benchmarks.ablation.picture import Panel, draw
from superblock.benchmarks.ablation.plan import Compose, Run, select
from superblock.benchmarks.ablation.record import Record, RecordFile, finish
from superblock.benchmarks.ablation.screen import Lines, failures, planned
from superblock.benchmarks.ablation.work import Train, Worker
from superblock.benchmarks.records import COMPLETE
from superblock.benchmarks.screen import Screen
from superblock.config.benchmark import SUITES, BenchmarkConfig, benchmark_fingerprint
from superblock.tracking import provenance
from superblock.tracking.store import store_uri

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
    return _close(file, experiment, chosen, screen)


def quickened(seeds: list[int], *steps: int) -> tuple[list[int], tuple[int, ...]]:
    """The seeds and steps of a smoke pass."""
    return seeds[:FEWER_SEEDS], tuple(min(FEWER_STEPS + i, value) for i, value in enumerate(steps))


# -- parts --------------------------------------------------------------------------------------------------------


def _close(file: RecordFile, experiment: Experiment, chosen: Sequence[Run], screen: Screen) -> int:
    """The results as they are now, on the screen and beside the record."""

    def conclude(record: Record) -> None:
        finish(record)
        experiment.conclude(record)

    record = file.update(conclude)
    for title, table in experiment.tables(record):
        screen.line(f"\n{title}")
        screen.console.print(table)
    screen.line("")
    for line in [*record.says, *failures(record)]:
        screen.line(line)
    if panels := [panel for panel in experiment.panels(record) if panel.rows]:
        from superblock.evaluation.curve import write_picture

        for kind in ("svg", "png"):
            write_picture(lambda: draw(panels), file.folder / f"{experiment.suite}.{kind}")
        screen.line(f"picture: {file.folder / experiment.suite}.png")
    left = [run.name for run in chosen if run.name not in record.runs]
    if left:
        screen.line(f"{len(left)} of {len(chosen)} runs are left; to go on: the same command")
    elif record.status == COMPLETE:
        screen.line("every run is done")
    screen.line(f"record: {file.path}")
    return 1 if any(name in record.failed for name in left) else 0


@contextmanager
def saying_how_to_go_on(screen: Screen) -> Iterator[None]:
    """A line for whoever stopped an experiment."""
    try:
        yield
    except (KeyboardInterrupt, SystemExit):
        screen.line(
            "stopped; what has finished is recorded, the run that was stopped begins again. To go on: the same command"
        )
        raise


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
