"""Which run a command starts or continues, decided before anything heavy happens."""

import sys
import time
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from superblock.config.fields import ConfigError, closest, differences
from superblock.config.run import RunConfig, fingerprint
from superblock.config.typed import quoted, typed
from superblock.tracking.runs import RunRecord, find_run, list_runs, newest_resumable, runs_root
from superblock.training.checkpoint import load_config
from superblock.training.manifest import newest_whole

TRAINED = ("model", "data", "optim", "schedule")
"""Sections that decide what is trained; they must not change within a run."""
TRAINER = ("budget", "batch_size", "precision")
"""Settings of the trainer that do."""


@dataclass(frozen=True)
class Start:
    """A run to begin (`checkpoint` is None), to continue, or one that is already over (`finished`)."""

    name: str
    folder: Path
    checkpoint: Path | None = None
    finished: bool = False
    notes: tuple[str, ...] = ()
    """Lines for the user."""


def choose(config: RunConfig) -> Start:
    """Follows `resume`: none begins a run, auto continues the newest interrupted one of this configuration.

    Raises:
        ConfigError: if the named run does not exist, has no checkpoint, or was trained otherwise.
    """
    if config.resume == "none":
        return _begin(config, _notice(config))
    if config.resume == "auto":
        record = newest_resumable(fingerprint(config))
        if record is None:
            done = [run for run in list_runs(fingerprint=fingerprint(config)) if run.status == "FINISHED"]
            return (
                _finished(done[0])
                if done
                else _begin(config, ("resume=auto: no interrupted run of this configuration, beginning one",))
            )
    else:
        record = find_run(config.resume)
        if record is None:
            names = [run.name for run in list_runs()]
            hint = f"; did you mean {close[0]}?" if (close := closest(config.resume, names)) else ""
            raise ConfigError(f"resume={config.resume}: there is no such run below {runs_root().resolve()}{hint}")
        if record.status == "FINISHED":
            return _finished(record)
    return _continue(config, record)


def resume_command(name: str) -> str:
    """The command line that continues this run."""
    words = [word for word in sys.argv[1:] if not word.startswith("resume=")]
    return typed(quoted(["run", *words, f"resume={name}"]))


def _begin(config: RunConfig, notes: tuple[str, ...]) -> Start:
    name = config.name or f"{config.stage.name}-{config.scale.name}-s{config.seed}-{time.strftime('%Y%m%d-%H%M%S')}"
    folder, number = runs_root() / name, 1
    while not _claim(folder, named=config.name is not None):
        if config.name:
            raise ConfigError(f"name={name}: {folder} already holds a run; choose another name, or resume={name}")
        number += 1
        folder = runs_root() / f"{name}-{number}"
    return Start(folder.name, folder, notes=notes)


def _claim(folder: Path, *, named: bool) -> bool:
    """Makes the folder, so that another command that starts in the same second takes another; False if it is taken.

    A folder without a run that a user named may be one that was killed at once: it is used.
    """
    try:
        folder.mkdir(parents=True)
    except FileExistsError:
        return named and not (folder / "run.json").exists()
    return True


def _notice(config: RunConfig) -> tuple[str, ...]:
    """What is known about earlier runs of the same configuration."""
    runs = list_runs(fingerprint=fingerprint(config))
    if runs and runs[0].status == "FINISHED":
        return (
            f"this configuration has already finished as {runs[0].name}{_result(runs[0])}; training it once more as a new run",
        )
    if runs and runs[0].resumable:
        return (
            f"an interrupted run of this configuration exists: add resume={runs[0].name} to continue it; beginning a new one",
        )
    return ()


def _finished(run: RunRecord) -> Start:
    return Start(
        run.name, run.folder, finished=True, notes=(f"{run.name} is already finished{_result(run)}: nothing to do",)
    )


def _result(run: RunRecord) -> str:
    test = run.summary.get("splits", {}).get("test")
    return f" ({test['bits_per_byte']:.4f} bits per byte on the test split)" if test else ""


def _continue(config: RunConfig, record: RunRecord) -> Start:
    if record.status == "RUNNING":
        raise ConfigError(f"resume={config.resume}: {record.name} is running in another process")
    path, skipped = newest_whole(record.folder)
    notes = tuple(f"skipped checkpoint {name}: {reason}" for name, reason in skipped)
    if path is None:
        notes += (f"{record.name} was interrupted before its first checkpoint: beginning it again",)
        return Start(record.name, record.folder, notes=notes)
    refuse_other_configuration(config, record, path)
    return Start(record.name, record.folder, path, notes=(*notes, f"continuing {record.name} from {path.name}"))


def refuse_other_configuration(config: RunConfig, record: RunRecord, checkpoint: Path) -> None:
    """Whether a run was trained with this configuration.

    Raises:
        ConfigError: naming the first keys that differ.
    """
    if record.fingerprint != fingerprint(config):
        raise ConfigError(
            f"resume={config.resume}: was trained with another configuration: {_difference(config, load_config(checkpoint))}"
        )


def _difference(config: RunConfig, stored: dict[str, Any]) -> str:
    """The first keys that differ, as they would be typed."""
    here = asdict(config)
    found = [pair for section in TRAINED for pair in differences(stored.get(section), here[section], section)]
    trainer, now = ({key: part.get(key) for key in TRAINER} for part in (stored["trainer"], here["trainer"]))
    found += differences(trainer, now, "trainer")
    found += differences(stored.get("seed"), config.seed, "seed")
    return ", ".join(f"{key}={value} there" for key, value, _ in found[:4]) or "an older version of the software"
