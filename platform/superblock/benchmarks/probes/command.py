"""The probes suite from configuration to record: say the plan, do the runs, record, show."""

import hashlib
from pathlib import Path

from superblock.benchmarks.ablation.experiment import saying_how_to_go_on
from superblock.benchmarks.ablation.plan import Compose
from superblock.benchmarks.ablation.record import Record, RecordFile, finish
from superblock.benchmarks.ablation.screen import failures
from superblock.benchmarks.probes.picture import draw
from superblock.benchmarks.probes.record import ProbesRecord
from superblock.benchmarks.probes.results import conclude, level_table, score_table
from superblock.benchmarks.probes.runs import ProbeRun, ProbeWorker, plans, probe_runs
from superblock.benchmarks.probes.screen import ProbeLines
from superblock.benchmarks.records import COMPLETE
from superblock.benchmarks.screen import Screen
from superblock.config.benchmark import BenchmarkConfig
from superblock.tracking import provenance
from superblock.tracking.store import store_uri

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
    return _close(file, runs, screen)


# -- parts --------------------------------------------------------------------------------------------------------


def _close(file: RecordFile, runs: list[ProbeRun], screen: Screen) -> int:
    """The results as they are now, on the screen and beside the record."""

    def settle(record: Record) -> None:
        finish(record)
        conclude(record)

    record = file.update(settle)
    for title, table in (
        ("accuracy, mean over seeds with its 95 % interval", score_table(record)),
        ("by level, mean over seeds; * beyond training", level_table(record)),
    ):
        screen.line(f"\n{title}")
        screen.console.print(table)
    screen.line("")
    for line in [*record.says, *failures(record)]:
        screen.line(line)
    if record.runs:
        from superblock.evaluation.curve import write_picture

        for kind in ("svg", "png"):
            write_picture(lambda: draw(record), file.folder / f"{SUITE}.{kind}")
        screen.line(f"picture: {file.folder / SUITE}.png")
    left = [run.name for run in runs if run.name not in record.runs]
    if left:
        screen.line(f"{len(left)} of {len(runs)} runs are left; to go on: the same command")
    elif record.status == COMPLETE:
        screen.line("every run is done")
    screen.line(f"record: {file.path}")
    return 1 if any(name in record.failed for name in left) else 0


def _fingerprint(config: BenchmarkConfig) -> str:
    """Equal for starts that may share a record; which tasks, arms and seeds a start does makes no difference."""
    return hashlib.sha256(f"{SUITE} quick={config.quick}".encode()).hexdigest()[:16]


def _prepare(config: BenchmarkConfig) -> None:
    from superblock.training.process import prepare_process

    prepare_process(config.threads, 1)
