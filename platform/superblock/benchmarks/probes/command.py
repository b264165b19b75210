"""The probes suite from configuration to record: say the plan, do the runs, record, show."""

import hashlib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING

from rich.table import Table

from superblock.benchmarks.ablation.closing import Closing, close, saying_how_to_go_on
from superblock.benchmarks.ablation.plan import Compose
from superblock.benchmarks.ablation.record import Record, RecordFile
from superblock.benchmarks.probes.picture import draw
from superblock.benchmarks.probes.record import ProbesRecord
from superblock.benchmarks.probes.results import conclude, level_table, score_table
from superblock.benchmarks.probes.runs import ProbeWorker, plans, probe_runs
from superblock.benchmarks.probes.screen import ProbeLines
from superblock.benchmarks.screen import Screen
from superblock.config.benchmark import BenchmarkConfig
from superblock.tracking import provenance
from superblock.tracking.store import store_uri

if TYPE_CHECKING:
    from matplotlib.figure import Figure

SUITE = "probes"


def run(config: BenchmarkConfig, compose: Compose) -> int:
    """Does what is left of the runs that are asked for.

    Args:
        config: the benchmark's settings.
        compose: not needed; other experiments train whole runs.

    Returns:
        Status of the process: 0, or 1 if a run failed.

    Raises:
        ConfigError: for a folder that holds another experiment.
        SystemExit: after Ctrl-C or SIGTERM; what has finished is recorded.
    """
    screen = Screen()
    store_uri(config.tracking)  # raises before anything takes time
    runs = probe_runs(config)
    code, machine = provenance.code_state(), provenance.hardware()
    fingerprint = _fingerprint(config)
    name = config.name or f"{SUITE}-{hashlib.sha256(f'{fingerprint} {code.commit}'.encode()).hexdigest()[:8]}"
    file = RecordFile(Path(config.output) / name, SUITE, ProbesRecord)
    fresh = ProbesRecord(
        SUITE, name, fingerprint, {"quick": config.quick}, provenance=provenance.describe(code, machine),
        commit=code.commit, machine=machine.fingerprint,
    )  # fmt: skip
    file.begin(fresh)
    record = file.update(lambda record: record.planned.update({**plans(runs), **record.planned}))
    screen.line(f"suite {SUITE}: {name}; in {file.folder}")
    if any(run.name not in record.runs for run in runs):
        _prepare(config)
        lines = ProbeLines(screen, runs, machine.fingerprint)
        lines.plan(record)
        worker = ProbeWorker(
            file,
            runs,
            config,
            lines,
            code,
            machine.fingerprint,
            conclude=conclude,
            say=screen.line,
            minutes=config.minutes,
        )
        with saying_how_to_go_on(screen):
            worker.work()
    return close(file, Closing(conclude, _tables, _picture), [run.name for run in runs], screen)


# -- parts --------------------------------------------------------------------------------------------------------


def _tables(record: Record) -> Iterator[tuple[str, Table]]:
    yield "accuracy, mean over seeds with its 95 % interval", score_table(record)
    yield "by level, mean over seeds; * beyond training", level_table(record)


def _picture(record: Record) -> "Callable[[], Figure] | None":
    return (lambda: draw(record)) if record.runs else None


def _fingerprint(config: BenchmarkConfig) -> str:
    """Equal for starts that may share a record; which tasks, arms and seeds a start does makes no difference."""
    return hashlib.sha256(f"{SUITE} quick={config.quick}".encode()).hexdigest()[:16]


def _prepare(config: BenchmarkConfig) -> None:
    from superblock.training.process import prepare_process

    prepare_process(config.threads, 1)
