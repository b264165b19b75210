"""The runs of the suite: which there are, and how one is done and recorded."""

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from superblock.benchmarks.ablation.record import Record, RecordFile
from superblock.benchmarks.ablation.sharing import PAUSE, Sharing, Telling
from superblock.benchmarks.ablation.work import discard
from superblock.benchmarks.probes.catalogue import TASKS
from superblock.benchmarks.probes.task import Task
from superblock.config.benchmark import BenchmarkConfig
from superblock.tracking.provenance import Code
from superblock.tracking.run import Tracker

QUICK_STEPS, QUICK_EXAMPLES, QUICK_SEEDS = 3, 4, 1
SCORE = "accuracy"
DELIVERY_SECONDS = 20.0
"""Longest wait for MLflow after a run; what is not delivered by then stays in the run's spool."""


@dataclass(frozen=True)
class ProbeRun:
    """One model trained on one task."""

    task: Task
    arm: str
    seed: int

    @property
    def name(self) -> str:
        """`mqar/hybrid/s1`."""
        return f"{self.task.name}/{self.arm}/s{self.seed}"

    @property
    def needs(self) -> tuple[str, ...]:
        """None depends on another."""
        return ()

    def plan(self) -> dict[str, float]:
        """Steps and seconds, at most."""
        return {"steps": self.task.recipe.steps, "seconds": self.task.recipe.seconds}


def probe_runs(config: BenchmarkConfig) -> list[ProbeRun]:
    """Seed by seed, so that every task and arm has a result early."""
    probes = config.probes
    tasks = [TASKS[name]() for name in probes.tasks]
    seeds = probes.seeds
    if config.quick:
        tasks, seeds = [task.shortened(QUICK_STEPS, QUICK_EXAMPLES) for task in tasks], seeds[:QUICK_SEEDS]
    return [ProbeRun(task, arm, seed) for seed in seeds for task in tasks for arm in probes.arms or task.arms]


@dataclass
class ProbeWorker(Sharing[ProbeRun]):
    """This process's part of the runs."""

    file: RecordFile
    runs: Sequence[ProbeRun]
    config: BenchmarkConfig
    lines: Telling[ProbeRun]
    code: Code
    machine: str
    conclude: Callable[[Record], None]
    say: Callable[[str], None]
    minutes: float = float("inf")
    pause: float = PAUSE
    began: float = field(default_factory=time.time)

    def do(self, run: ProbeRun, record: Record) -> dict[str, Any]:
        """Trains and tests; the numbers go to MLflow too, as a run of its own."""
        from superblock.benchmarks.probes.training import run_probe

        wall = time.perf_counter()
        with self._tracker(run, record.name) as tracker:
            tracker.tags({"task": run.task.name, "benchmark": record.name})
            outcome = run_probe(run.task, run.arm, run.seed)
            prefix = f"probe/{run.task.name}"
            for step, accuracy in outcome.curve:
                tracker.metrics({f"{prefix}/training_accuracy": accuracy}, step)
            for level in run.task.levels:
                tracker.metrics({f"{prefix}/levels": outcome.levels[level.name]}, level.size)
            tracker.result({f"{prefix}/score": outcome.score, f"{prefix}/seconds": outcome.training_seconds})
        return entry_of(run, outcome) | {
            "seconds_in_all": round(time.perf_counter() - wall, 2),
            "machine": self.machine,
            "commit": self.code.commit,
            "dirty": self.code.dirty,
            "time": time.time(),
        }

    def _tracker(self, run: ProbeRun, benchmark: str) -> Tracker:
        name = run.name.replace("/", "-")
        folder = self.file.folder / "runs" / name
        discard(folder, {"suite": "probes"})
        tracking = replace(
            self.config.tracking, arm=run.arm, timeout_seconds=max(DELIVERY_SECONDS, self.config.tracking.timeout_seconds)
        )  # fmt: skip
        config = replace(self.config, tracking=tracking, seed=run.seed)
        return Tracker.start(
            config, run_folder=folder, run_name=f"{benchmark}-{name}", resume=False, rank=0, suite="probes", report=self.say
        )  # fmt: skip


def entry_of(run: ProbeRun, outcome: Any) -> dict[str, Any]:
    """What the record keeps of an `Outcome`."""
    task = run.task
    return {
        "task": task.name,
        "ability": task.ability,
        "arm": run.arm,
        "seed": run.seed,
        "score": round(outcome.score, 6),
        "score_name": SCORE,
        "chance": task.chance,
        "levels": {name: round(value, 6) for name, value in outcome.levels.items()},
        "scored_levels": [level.name for level in task.levels if level.scored],
        "trained_levels": [level.name for level in task.levels if level.trained],
        "steps": outcome.steps,
        "seconds": round(outcome.training_seconds, 2),
        "parameters": outcome.parameters,
        "loss": outcome.loss,
        "curve": [[step, round(value, 5)] for step, value in outcome.curve],
        "setting": task.setting,
        "published_setting": task.published_setting,
        "published": task.published,
    }


def plans(runs: Sequence[ProbeRun]) -> Mapping[str, dict[str, float]]:
    """By name."""
    return {run.name: run.plan() for run in runs}
