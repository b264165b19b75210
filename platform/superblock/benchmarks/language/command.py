"""The language suite from configuration to each run's `language.json`.

What loads torch is imported once it is known which runs are meant: a misspelt name is answered at once.
"""

from collections.abc import Callable
from pathlib import Path
from typing import Any

from superblock.benchmarks.language.screen import curves, packages_table, runs_table, trained_length
from superblock.benchmarks.screen import Screen
from superblock.config.benchmark import BenchmarkConfig
from superblock.config.fields import ConfigError, closest
from superblock.config.typed import typed
from superblock.tracking.run import Tracker
from superblock.tracking.runs import RunRecord, find_run, list_runs, runs_root
from superblock.training.manifest import newest_whole

Say = Callable[[str], None]
Measured = list[tuple[RunRecord, dict[str, Any]]]


def run(config: BenchmarkConfig) -> int:
    """Measures the chosen runs that have not been measured, and shows all of them.

    Returns:
        0, or 1 if one could not be measured.

    Raises:
        ConfigError: if there is no such run.
    """
    screen, found, status = Screen(), [], 0
    runs = _chosen(config)
    from superblock.evaluation.language import read_language

    for chosen in runs:
        known = read_language(chosen.folder, config.language.split)
        if _is_enough(known, chosen, config):
            screen.line(f"{chosen.name}: measured already")
            found.append((chosen, known))
            continue
        try:
            found.append((chosen, _measure(chosen, config, screen.line)))
        except ConfigError as error:
            screen.line(str(error))
            status = 1
    _show(found, config, screen)
    return status


def _measure(chosen: RunRecord, config: BenchmarkConfig, say: Say) -> dict[str, Any]:
    """Measures a run and records it; says so if it is not what the run's own test found."""
    from superblock.benchmarks.language.measure import measure
    from superblock.evaluation.finished import open_finished
    from superblock.evaluation.language import record

    run = open_finished(chosen, f"language.runs={chosen.name}", threads=config.threads, say=say)
    result = measure(run, config.language.split, config.language.beyond, say=say)
    tested = chosen.summary.get("splits", {}).get(config.language.split, {}).get("bits_per_byte")
    if tested and abs(result["bits_per_byte"] / tested - 1) > 1e-4:
        say(f"{chosen.name}: {result['bits_per_byte']:.4f} bits per byte, while its own evaluation found {tested:.4f}")
    with Tracker.reopen(chosen.folder, config, report=say) as tracker:
        record(result, chosen.folder, tracker)
    return result


def _is_enough(known: dict[str, Any], chosen: RunRecord, config: BenchmarkConfig) -> bool:
    """Whether the file is about the run's last step and reaches as far as asked."""
    if not known or known["step"] != chosen.summary.get("steps", known["step"]):
        return False
    return known.get("longest", known["sequence_length"]) >= config.language.beyond * known["sequence_length"]


def _chosen(config: BenchmarkConfig) -> list[RunRecord]:
    """The runs that are asked for, oldest first."""
    finished = [run for run in list_runs() if run.status == "FINISHED" and newest_whole(run.folder)[0] is not None]
    if not config.language.runs:
        newest: dict[tuple[str, str, int], RunRecord] = {}
        for run in finished:
            if run.scale == finished[0].scale:
                newest.setdefault((run.stage, run.arm, run.seed), run)
        if not newest:
            raise ConfigError(f"language.runs=[]: {no_runs()}")
        return sorted(newest.values(), key=lambda run: run.started)
    return [_named(text, finished) for text in config.language.runs]


def no_runs() -> str:
    """What to say where nothing was trained."""
    folder = runs_root().resolve()
    return f"there is no finished run with a checkpoint below {folder}; train one with: {typed('run stage=mvp1')}"


def _named(text: str, finished: list[RunRecord]) -> RunRecord:
    known = find_run(text)
    for run in finished:
        if known and (run.name == known.name or (known.name != text and run.stage == text)):
            return run
    if known:
        raise ConfigError(f"language.runs=[{text}]: {known.name} is {known.status.lower()}, or its checkpoint is gone")
    names = [name for run in finished for name in (run.name, run.stage)]
    hint = f"; did you mean {close[0]}?" if (close := closest(text, names)) else ""
    there = f"the newest are {', '.join(run.name for run in finished[:5])}" if finished else no_runs()
    raise ConfigError(f"language.runs=[{text}]: there is no such run{hint}\n{there}")


def _show(found: Measured, config: BenchmarkConfig, screen: Screen) -> None:
    if not found:
        return
    from superblock.evaluation.position_curve import position_curve

    screen.console.print(runs_table(found))
    if (packages := packages_table(found)) is not None:
        screen.console.print(packages)
    else:
        screen.line("by package: nothing to show, since all documents of this text lie together")
    folder = Path(config.output) / (config.name or "language")
    folder.mkdir(parents=True, exist_ok=True)
    picture = folder / (
        "positions.svg" if config.language.split == "test" else f"positions-{config.language.split}.svg"
    )
    position_curve(curves(found), trained_length(found), picture)
    screen.line(f"picture {picture}")
