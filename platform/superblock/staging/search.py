"""One trial of a search: a run whose validation tells the search where to look next."""

import math
import shutil
from collections.abc import Callable
from contextlib import redirect_stdout
from dataclasses import replace
from pathlib import Path

from superblock.benchmarks.ablation.work import discard
from superblock.config.run import RunConfig
from superblock.staging.parents import resolve_parent
from superblock.tracking.runs import runs_root
from superblock.training.loop import train

OBJECTIVE = "val/bits_per_byte"
"""Of the whole validation split, after training. The test split is for whoever reports the result."""
SUITE = "search"


def trial_name(study: str, number: int) -> str:
    """Name of a trial's run."""
    return f"{study}-t{number}"


def run_trial(
    config: RunConfig,
    *,
    study: str,
    number: int,
    log: Path,
    say: Callable[[str], None],
    continue_with: str | None = None,
) -> float:
    """Trains one trial as a run of its own, without promotion and without keeping its weights.

    The run is tagged `suite=search`, `study`, `trial` and, unless `tracking.arm` says otherwise, `arm=trial-<number>`.

    Args:
        config: what to train.
        study: name of the search.
        number: of the trial, from 0.
        log: file for what a single run prints.
        say: shows a line.
        continue_with: command that goes on with the search.

    Returns:
        Bits per byte of the validation split.

    Raises:
        ConfigError: for settings that cannot work, or if another run has the trial's name.
        NonFiniteError: if training diverged.
        ArithmeticError: if the validation is not a finite number.
    """
    arm = config.tracking.arm if config.tracking.arm != "default" else f"trial-{number}"
    name = trial_name(study, number)
    config = replace(config, name=name, promote=False, tracking=replace(config.tracking, arm=arm))
    config = resolve_parent(config, say).config
    folder = runs_root() / name
    own = {"suite": SUITE, "study": study}
    if discard(folder, own):
        say(f"trial {number}: replaces {folder}, of a search of this name whose study is gone")
    tags = own | {"trial": str(number), "arm": arm}
    log.parent.mkdir(parents=True, exist_ok=True)
    with log.open("w", encoding="utf-8") as file, redirect_stdout(file):
        summary = train(config, tags=tags, continue_with=continue_with)
    assert summary is not None  # one process, and the run is new
    shutil.rmtree(folder / "checkpoints", ignore_errors=True)
    value = summary.splits["validation"].bits_per_byte
    if not math.isfinite(value):
        raise ArithmeticError(f"the validation is {value} bits per byte")
    return value
