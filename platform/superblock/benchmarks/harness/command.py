"""The harness suite from configuration to record."""

import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from rich import box
from rich.table import Table

from superblock.benchmarks.harness.local_tasks import CHANCE, write_tasks
from superblock.benchmarks.harness.record import Record, metrics
from superblock.benchmarks.screen import Screen
from superblock.config.benchmark import BenchmarkConfig
from superblock.config.fields import ConfigError
from superblock.config.finished import LOCAL_TASKS
from superblock.generation.find import Found, find_checkpoint
from superblock.tracking import provenance
from superblock.tracking.run import Tracker
from superblock.training.manifest import load_config

INSTALL = "pip install -c constraints.txt -e '.[harness]'"


def run(config: BenchmarkConfig) -> int:
    """Runs the tasks on the model and records what came of it.

    Returns:
        0; a task that cannot run ends everything with an error.

    Raises:
        ConfigError: if the harness is not installed, or a run or a task is not there or cannot be loaded.
    """
    began, screen = time.time(), Screen()
    found = find_checkpoint(config.harness.run, tracking=config.tracking, key="harness.run")
    screen.line(f"harness: {found.describe()}")
    limit = config.harness.limit
    name = config.name or _folder_name(found, limit)
    folder = Path(config.output) / name
    local = [task for task in config.harness.tasks if task in LOCAL_TASKS]
    if local:
        _make_local(local, found, folder / "tasks", screen)
    results = _evaluate(found, config, folder / "tasks" if local else None, screen)
    record = _record(found, config, name, results, began)
    record.save(folder / "harness.json")
    screen.console.print(_table(record))
    screen.line(f"record {folder / 'harness.json'}")
    if limit is not None:
        screen.line(
            f"with harness.limit={limit} it is not added to the run: a part of a task does not compare with all of it"
        )
    elif found.run is not None:
        with Tracker.reopen(found.run.folder, config, report=screen.line) as tracker:
            tracker.result(metrics(record))
            tracker.artifact(folder / "harness.json", "harness")
    return 0


def _folder_name(found: Found, limit: int | None) -> str:
    """One for each model, and another for a part of the examples, which must not replace all of them."""
    stem = found.run.name if found.run is not None else found.checkpoint.name
    part = "" if limit is None else f"-limit{limit}"
    return f"harness-{stem}"[: 64 - len(part)] + part


def _make_local(wanted: list[str], found: Found, folder: Path, screen: Screen) -> None:
    from superblock.evaluation.finished import own_text  # imports torch

    key = f"harness.run={found.run.name if found.run else found.checkpoint}"
    digest = found.run.summary.get("data_digest") if found.run else None
    _, corpus = own_text(found.checkpoint, key, digest=digest, say=screen.line)
    missing = write_tasks(list(corpus.documents("test")), corpus.tokenizer, folder)
    for task in wanted:
        if task in missing:
            raise ConfigError(f"harness.tasks: {task} cannot be made: {missing[task]}; leave it out")


def _evaluate(found: Found, config: BenchmarkConfig, local: Path | None, screen: Screen) -> Mapping[str, Any]:
    """What the harness answers. Its import takes seconds, so it comes after everything that may be wrong before it."""
    try:
        from superblock.benchmarks.harness.model import HarnessModel
        from superblock.benchmarks.harness.tasks import evaluate
    except ModuleNotFoundError as error:
        missing = str(error.name).partition(".")[0]
        raise ConfigError(f"suite=harness: {missing} is not installed; install it with: {INSTALL}") from None
    from superblock.generation.session import load_checkpoint
    from superblock.training.process import prepare_process

    prepare_process(config.threads, 1)
    precision = str(load_config(found.checkpoint).get("trainer", {}).get("precision", "fp32"))
    session = load_checkpoint(found.checkpoint)
    model = HarnessModel(session, batch_size=config.harness.batch_size, precision=precision)
    results: Mapping[str, Any] = evaluate(model, config.harness, local)
    return results


def _record(found: Found, config: BenchmarkConfig, name: str, results: Mapping[str, Any], began: float) -> Record:
    code, machine = provenance.code_state(), provenance.hardware()
    h = config.harness
    return Record(
        name=name,
        run=found.run.name if found.run else str(found.checkpoint),
        checkpoint=found.checkpoint.name,
        commit=code.commit,
        machine=machine.fingerprint,
        settings={"tasks": h.tasks, "limit": h.limit, "shots": h.shots, "include_path": h.include_path},
        tasks={task: {**values, "chance": CHANCE.get(task)} for task, values in results.items()},
        provenance=provenance.describe(code, machine),
        started=began,
        finished=time.time(),
    )


def _table(record: Record) -> Table:
    table = Table(box=box.SIMPLE_HEAD, show_edge=False, pad_edge=False, collapse_padding=True)
    for title, side in (("task", "left"), ("metric", "left"), ("value", "right"), ("± stderr", "right"),
                        ("chance", "right"), ("examples", "right")):  # fmt: skip
        table.add_column(title, justify=side, no_wrap=True)  # type: ignore[arg-type]
    for task, entry in record.tasks.items():
        for number, (metric, one) in enumerate(entry["metrics"].items()):
            chance = f"{CHANCE[task]:.3f}" if task in CHANCE and metric.startswith("acc") else ""
            stderr = "" if one["stderr"] is None else f"{one['stderr']:.4f}"
            first = (task, f"{entry['examples']:,}") if number == 0 else ("", "")
            table.add_row(first[0], metric, f"{one['value']:.4f}", stderr, chance, first[1])
    return table
