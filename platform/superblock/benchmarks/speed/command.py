"""The speed suite from configuration to record, read from top to bottom: choose, prepare, measure, record, show."""

import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from superblock.benchmarks import contention, records
from superblock.benchmarks.records import COMPLETE, PARTIAL, Measured, Record
from superblock.benchmarks.screen import Screen, summary_line
from superblock.benchmarks.speed import cases
from superblock.benchmarks.speed.cases import Case
from superblock.benchmarks.timing import Settings, measure
from superblock.config.benchmark import BenchmarkConfig, benchmark_fingerprint
from superblock.config.fields import ConfigError
from superblock.tracking import provenance
from superblock.tracking.identity import IDENTITY_FILE
from superblock.tracking.run import Tracker
from superblock.tracking.store import store_uri

if TYPE_CHECKING:
    import torch

RECORD_FILE = "speed.json"
GO_ON = "To go on: the same command with resume=true"
LIMIT_TRIES = 10
DELIVERY_SECONDS = 60.0
"""Longest wait for MLflow at the end: all is delivered then, since its import in a thread would disturb the timing."""
LATER = 3600.0
"""Pause between deliveries that no benchmark outlasts before its next case."""


@dataclass(frozen=True)
class Bench:
    """What every case is measured with."""

    config: BenchmarkConfig
    settings: Settings
    watch: contention.Watch
    limits: Mapping[str, float]
    threads: int


def run(config: BenchmarkConfig) -> int:
    """Runs the chosen cases, each recorded as soon as it is done.

    Returns:
        Status of the process: 0, or 1 if a case failed.

    Raises:
        ConfigError: for a pattern that names no case, or a name that is taken.
    """
    screen = Screen()
    chosen = cases.select(config)
    store_uri(config.tracking)  # raises before anything takes time
    folder, record = _choose(config, screen)
    todo = [case for case in chosen if case.name not in record.cases]
    screen.line(f"suite speed at scale {config.scale.name}: {len(todo)} of {len(chosen)} cases to run; in {folder}")
    if not todo:
        screen.table(record)
        return 0
    bench = _prepare(config, record, screen)
    _say_estimate(bench, todo, screen)
    before, began = record.seconds, time.perf_counter()
    with _tracker(config, folder, record, screen) as tracker:
        record.failed, record.skipped = {}, {}
        with screen.cases(len(todo)), _saying_how_to_go_on(screen):
            for case in todo:
                if time.perf_counter() - began > 60 * config.minutes:
                    record.skipped[case.name] = f"after minutes={config.minutes:g}"
                    continue
                screen.begin(case.name)
                _run(bench, case, record, tracker, screen)
                record.seconds = before + time.perf_counter() - began
                record.contention = _contention(record, bench.watch)
                record.save(folder / RECORD_FILE)
        record.status = PARTIAL if record.failed or record.skipped else COMPLETE
        record.finished = time.time()
        record.save(folder / RECORD_FILE)
        tracker.result({"speed/seconds": record.seconds})
        tracker.artifact(folder / RECORD_FILE)
    screen.table(record)
    if record.status == PARTIAL:
        screen.line(GO_ON)
    screen.line(f"record: {folder / RECORD_FILE}")
    return 1 if record.failed else 0


def _run(bench: Bench, case: Case, record: Record, tracker: Tracker, screen: Screen) -> None:
    """Measures a case; what goes wrong with it is noted, and the others go on."""
    try:
        entry = measure_case(bench, case)
    except Exception as error:
        record.failed[case.name] = f"{type(error).__name__}: {' '.join(str(error).split())[:300]}"
        screen.end(f"{case.name:<22}  failed: {record.failed[case.name]}")
        return
    record.cases[case.name] = entry
    tracker.result(records.metrics(case.name, entry))
    screen.end(summary_line(case.name, entry))


def measure_case(bench: Bench, case: Case) -> dict[str, Any]:
    """Where asked for weighs, then checks and times every variant of a case.

    Raises:
        AssertionError: if the results of two variants differ.
    """
    from superblock.benchmarks.speed import memory, suite

    began = time.perf_counter()
    work = suite.build(bench.config, case)
    weighed = {}
    if case.memory:  # first, while this process is small: the models of both sides need room too
        for variant in work.variants:
            weighed[variant.name] = memory.peak_memory(bench.config, case, variant.name, bench.threads)
    error = work.check() if work.check else None
    settings = bench.settings
    if case.kind == "around":  # a call is a whole run
        settings = replace(settings, repeats=min(cases.LOOPS, settings.repeats), warm_up=1, redo=0.5)
    timings = measure({variant.name: variant.make() for variant in work.variants}, settings, bench.watch)
    measured = {v.name: Measured(timings[v.name], v.precision, v.baseline, weighed.get(v.name)) for v in work.variants}
    return records.case_entry(
        {key: value for key, value in asdict(case).items() if key not in ("name", "memory", "tokens") and value},
        measured,
        tokens=case.tokens_per_call if case.kind != "optimizer" else 0,
        flops=cases.flops(case, bench.config.scale),
        limits=bench.limits,
        error=error,
        seconds=time.perf_counter() - began,
    )


@contextmanager
def _saying_how_to_go_on(screen: Screen) -> Iterator[None]:
    try:
        yield
    except KeyboardInterrupt:
        screen.line(f"stopped; what is done is recorded. {GO_ON}")
        raise


# -- parts --------------------------------------------------------------------------------------------------------


def _choose(config: BenchmarkConfig, screen: Screen) -> tuple[Path, Record]:
    """The folder and the record to begin or, with `resume`, to go on with."""
    code, machine = provenance.code_state(), provenance.hardware()
    same = (benchmark_fingerprint(config), machine.fingerprint, code.commit)
    root = Path(config.output)
    if config.resume:
        found = _newest_unfinished(root, same)
        if found:
            screen.line(f"continuing {found[1].name}: {len(found[1].cases)} cases are done")
            return found
        screen.line("resume=true: no unfinished benchmark of this configuration, machine and commit; beginning one")
    suite = config.suite.name
    name = config.name or f"{suite}-{config.scale.name}-{time.strftime('%Y%m%d-%H%M%S')}"
    folder, number = root / name, 1
    while (folder / RECORD_FILE).exists():
        if config.name:
            raise ConfigError(f"name={name}: {folder} already holds a benchmark; choose another name")
        number += 1
        folder = root / f"{name}-{number}"
    plain = asdict(config)
    settings = {key: value for key, value in plain.items() if key not in ("tracking", "resume", "output", "name")}
    record = Record(suite, folder.name, *same, settings)
    record.provenance = provenance.describe(code, machine)
    return folder, record


def _newest_unfinished(root: Path, same: tuple[str, str, str]) -> tuple[Path, Record] | None:
    found = []
    for path in root.glob(f"*/{RECORD_FILE}"):
        record = Record.load(path)
        if record and record.status == PARTIAL and (record.fingerprint, record.machine, record.commit) == same:
            found.append((path.parent, record))
    return max(found, key=lambda pair: pair[1].started, default=None)


def _prepare(config: BenchmarkConfig, record: Record, screen: Screen) -> Bench:
    """Process settings that hold for all variants alike, and the limits of this machine."""
    began = time.perf_counter()
    import torch

    from superblock.benchmarks.speed.work import has_peer, peer_module
    from superblock.training.process import prepare_process

    available = contention.processors()
    threads = prepare_process(config.threads or available, 1)
    watch = contention.Watch(threads, available)
    dtypes = {"bf16": torch.bfloat16, "fp32": torch.float32}
    record.limits = {name: _limit(dtype, watch) for name, dtype in dtypes.items()}
    record.process = {
        "threads": threads, "processors": available, "keeps_freed_memory": True, "flushes_subnormals": True,
        "optimizer": "fused AdamW", "peer": "transformers" if has_peer() else None,
    }  # fmt: skip
    if has_peer():
        peer_module()
    else:
        screen.line(
            "transformers is not installed, so nothing is compared: python -m pip install -c constraints.txt -e '.[test]'"
        )
    limits = ", ".join(f"{name} {value / 1e9:,.0f} GFLOP/s" for name, value in record.limits.items())
    screen.line(f"{threads} threads; matrix products: {limits}  ({time.perf_counter() - began:.1f} s)")
    return Bench(config, settings_of(config), watch, record.limits, threads)


def _limit(dtype: "torch.dtype", watch: contention.Watch) -> float:
    """The best FLOP/s in plain matrix products; measured again while something else uses the processors."""
    import torch

    from superblock.evaluation.matmul_limit import measure_matmul_limit

    best = 0.0
    for _ in range(LIMIT_TRIES):
        before = watch.start()
        best = max(best, measure_matmul_limit(torch.device("cpu"), dtype))
        if not watch.taken(before):
            break
    return best


def settings_of(config: BenchmarkConfig) -> Settings:
    """How often each variant is measured."""
    if config.quick:
        return Settings(repeats=min(2, config.repeats), warm_up=1, sample_seconds=0.02, redo=0.5)
    return Settings(repeats=config.repeats)


def _say_estimate(bench: Bench, todo: list[Case], screen: Screen) -> None:
    from superblock.benchmarks.speed.work import has_peer

    peers = len(bench.config.speed.peers) if has_peer() else 0
    seconds = sum(cases.estimate(case, bench.config, bench.limits, peers, bench.settings) for case in todo)
    text = f"{seconds / 60:.0f} minutes" if seconds > 90 else f"{seconds:.0f} seconds"
    screen.line(f"about {text} on a quiet machine; no case begins after {bench.config.minutes:g} minutes")


def _tracker(config: BenchmarkConfig, folder: Path, record: Record, screen: Screen) -> AbstractContextManager[Tracker]:
    """A tracker that delivers when all is measured; a benchmark that goes on keeps its MLflow run."""
    tracking = replace(
        config.tracking, flush_seconds=LATER, timeout_seconds=max(DELIVERY_SECONDS, config.tracking.timeout_seconds)
    )
    report: Callable[[str], None] = screen.line
    return Tracker.start(
        replace(config, tracking=tracking),
        run_folder=folder,
        run_name=record.name,
        resume=(folder / IDENTITY_FILE).exists(),
        rank=0,
        suite=config.suite.name,
        report=report,
    )


def _contention(record: Record, watch: contention.Watch) -> dict[str, Any]:
    entries = record.cases.values()
    return {
        "told_by": "processor time of all processes less our own, and time stolen by other virtual machines",
        "allowed_share_of_a_processor": contention.ALLOWED_SHARE,
        "blind": watch.blind,
        "samples": sum(len(v["seconds"]) for entry in entries for v in entry["variants"].values()),
        "disturbed": sum(entry["disturbed"] for entry in entries),
        "kept_disturbed": sum(entry["kept_disturbed"] for entry in entries),
    }
