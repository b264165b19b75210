"""What finished runs have to say to a prediction, read from their folders: no torch, no MLflow, quick with a hundred runs."""

import json
import math
import os
import sys
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from statistics import fmean
from typing import Any

from superblock.config.budget import Budget
from superblock.config.fields import ConfigError
from superblock.config.optim import ScheduleConfig
from superblock.optim.schedules import learning_rate_factor
from superblock.planning.scaling import LossPoint
from superblock.tracking.files import read_json
from superblock.tracking.identity import STATUS_FILE
from superblock.tracking.runs import RunRecord
from superblock.tracking.spool import FILE_NAME

RECIPE = ("model.", "optim.", "schedule.", "trainer.batch_size", "trainer.precision")
"""Settings under which losses compare."""
NOT_RECIPE = frozenset({
    "model.num_superblocks", "model.file", "model.expect_params", "model.max_sequence_length", "model.cross_entropy_chunk",
    "model.gdn.chunk_size", "model.gdn.backend", "model.gqa.backend", "model.moe.backend", "model.mtp.last",
    "model.parameters", "model.active_parameters",
})  # fmt: skip
DATA = ("source", "path", "name", "subset", "split", "val_percent", "test_percent")
"""Settings that choose the text."""
SPEED = ("trainer.precision", "trainer.strategy", "trainer.accelerator", "trainer.compile",
         "trainer.activation_checkpointing", "trainer.micro_batches")  # fmt: skip
"""Settings under which times and memory compare, on one machine with one number of threads."""
EARLIEST = 0.1
"""Share of a training before which its validations say little about its end."""


@dataclass(frozen=True)
class Finished:
    """One finished run in the terms of the laws; what is not known is None."""

    name: str
    stage: str
    scale: str
    started: float
    ended: float
    """Seconds since 1970."""
    digest: str
    superblocks: int
    active: float
    total: float
    flops_per_token: float
    tokens_per_step: float
    lineage: tuple[tuple[int, float, float], ...]
    """Superblocks, tokens and FLOPs of the run last, of those it came from before it."""
    minutes: float
    minutes_in_all: float | None
    memory_bytes: float | None
    loss: float | None
    """Bits per byte on the test split."""
    curve: tuple[tuple[float, float, float], ...]
    settings: Mapping[str, str] = field(default_factory=dict)
    machine: Mapping[str, Any] = field(default_factory=dict)

    @property
    def tokens(self) -> float:
        return self.lineage[-1][1]

    @property
    def steps(self) -> float:
        return self.tokens / self.tokens_per_step

    @property
    def seconds_per_step(self) -> float:
        return 60 * self.minutes / self.steps

    @property
    def budget(self) -> Budget | None:
        """What the run was given; None if that was not recorded."""
        try:
            return Budget.parse(self.settings.get("trainer.budget", ""))
        except ConfigError:
            return None

    @property
    def configuration(self) -> tuple[Any, ...]:
        """Equal for runs of one recipe that differ in nothing but their seed."""
        depths, budget = tuple(one[0] for one in self.lineage), self.settings.get("trainer.budget", self.tokens)
        return depths, budget, self.tokens_per_step, round(self.flops_per_token)

    def point(self) -> LossPoint:
        """The run as the law of loss takes it."""
        assert self.loss is not None
        return LossPoint(self.active, tuple(one[1] for one in self.lineage), self.loss, self.curve)


def read_finished(records: Iterable[RunRecord]) -> list[Finished]:
    """The runs that are over and were measured, oldest first."""
    found = [run for record in records if (run := _read(record)) is not None]
    return sorted(found, key=lambda run: run.ended)


def by_configuration(runs: Sequence[Finished]) -> list[list[Finished]]:
    """Groups of runs that differ in their seed alone."""
    groups: dict[Any, list[Finished]] = {}
    for run in runs:
        groups.setdefault(run.configuration, []).append(run)
    return list(groups.values())


def mean_point(group: Sequence[Finished]) -> LossPoint:
    """One point for runs of one configuration: seeds say nothing about how far the law is from it."""
    points = [run.point() for run in group]
    tokens = tuple(_geometric(each) for each in zip(*(p.lineage_tokens for p in points), strict=True))
    return LossPoint(points[0].active, tokens, _geometric([p.loss for p in points]), points[-1].curve)


def geometric_mean(values: Iterable[float]) -> float:
    """Of positive values."""
    return _geometric(list(values))


def same_recipe(here: Mapping[str, str], there: Mapping[str, str]) -> bool:
    """Whether two runs train alike but for depth and length; what one of them did not record does not count."""
    return not other_settings(here, there)


def other_settings(here: Mapping[str, str], there: Mapping[str, str]) -> list[str]:
    """Keys of the recipe that differ."""
    keys = [key for key in here if key in there and key.startswith(RECIPE) and key not in NOT_RECIPE]
    return [key for key in keys if here[key] != there[key]]


def same_data(here: Mapping[str, str], there: Mapping[str, str]) -> bool:
    """Whether the settings choose the same text."""
    keys = [f"data.{name}" for name in DATA]
    return all(here[key] == there[key] for key in keys if key in here and key in there)


def same_speed(machine: Mapping[str, Any], settings: Mapping[str, str], run: Finished) -> bool:
    """Whether the run's times say something about this machine, its threads and these settings."""
    if not run.machine or any(
        settings[key] != run.settings[key] for key in SPEED if key in settings and key in run.settings
    ):
        return False
    return all(machine[key] == run.machine.get(key) for key in machine)


def this_machine(threads: int | None) -> dict[str, Any]:
    """What decides the speed here. GPUs are compared only where torch is loaded: asking it takes seconds."""
    from superblock.tracking.provenance import hardware

    found = hardware()
    many = int(os.environ.get("WORLD_SIZE", "1")) > 1
    known: dict[str, Any] = {"cpu": found.cpu, "cores": found.cores, "memory_gib": found.memory_gib}
    if "torch" in sys.modules:
        known["gpus"] = found.gpus
    return known | {"threads": str(threads or (1 if many else os.cpu_count() or 1))}


def _read(record: RunRecord) -> Finished | None:
    s = record.summary
    if record.status != "FINISHED" or not s.get("steps") or not s.get("minutes") or not s.get("parameters_active"):
        return None
    own = s["tokens"]
    cost = s.get("flops") or own * _ratio(s.get("flops_per_second"), s.get("tokens_per_second"))
    if not cost or not math.isfinite(cost):
        return None
    settings, curve = _spool(record.folder)
    superblocks = int(settings.get("model.num_superblocks", 0))
    lineage = tuple((one["superblocks"], float(one["tokens"]), float(one["flops"])) for one in s.get("lineage") or ())
    test, end = s.get("splits", {}).get("test"), read_json(record.folder / STATUS_FILE).get("time", record.started)
    machine = read_json(record.folder / "provenance.json").get("hardware", {})
    if machine:
        machine = machine | {"threads": settings.get("threads", "")}
    return Finished(
        name=record.name, stage=record.stage, scale=record.scale, started=record.started, ended=float(end),
        digest=s.get("data_digest") or "", superblocks=lineage[-1][0] if lineage else superblocks,
        active=s["parameters_active"], total=s["parameters_total"], flops_per_token=cost / own,
        tokens_per_step=own / s["steps"], lineage=lineage or ((superblocks, float(own), cost),), minutes=s["minutes"],
        minutes_in_all=_whole(record, s, float(end)), memory_bytes=s.get("peak_memory_bytes"),
        loss=test["bits_per_byte"] if test else None, curve=_curve(curve, s, settings), settings=settings, machine=machine,
    )  # fmt: skip


def _whole(record: RunRecord, summary: Mapping[str, Any], end: float) -> float | None:
    """Minutes of the whole command; a run that was resumed has several commands, and none of them took the time."""
    if read_json(record.folder / "run.json").get("starts", 1) != 1:
        return None
    if summary.get("minutes_in_all"):
        return float(summary["minutes_in_all"])
    return (end - record.started) / 60 if end > record.started else None


def _spool(folder: Path) -> tuple[dict[str, str], dict[int, float]]:
    """The compared settings, and bits per byte of the validations by step. Reads only the lines that hold them."""
    settings: dict[str, str] = {}
    losses: dict[int, float] = {}
    try:
        lines = (folder / FILE_NAME).read_bytes().splitlines()
    except OSError:
        return settings, losses
    for line in lines:
        if b'"kind":"params"' in line:
            settings.update(_json(line).get("values", {}))
        elif b'"val/bits_per_byte":' in line:
            event = _json(line)
            value = event.get("values", {}).get("val/bits_per_byte")
            if isinstance(value, float) and math.isfinite(value):
                losses[int(event["step"])] = value
    return settings, losses


def _curve(
    losses: Mapping[int, float], summary: Mapping[str, Any], settings: Mapping[str, str]
) -> tuple[tuple[float, float, float], ...]:
    """Validations as multiples of the last one, with the share of the peak learning rate at each."""
    whole, steps = summary.get("splits", {}).get("validation"), summary["steps"]
    try:
        schedule = ScheduleConfig(
            name=settings["schedule.name"],
            **{key: float(settings[f"schedule.{key}"]) for key in ("warmup", "final", "decay", "power")},
        )
    except (KeyError, ValueError):
        return ()
    if not whole:
        return ()
    return tuple(
        (step / steps, value / whole["bits_per_byte"], learning_rate_factor(schedule, step, steps))
        for step, value in sorted(losses.items())
        if EARLIEST <= step / steps < 0.95
    )


def _json(line: bytes) -> dict[str, Any]:
    try:
        found = json.loads(line)
    except ValueError:
        return {}
    return found if isinstance(found, dict) else {}


def _ratio(a: float | None, b: float | None) -> float:
    return a / b if a and b else math.nan


def _geometric(values: Sequence[float]) -> float:
    return math.exp(fmean(map(math.log, values)))
