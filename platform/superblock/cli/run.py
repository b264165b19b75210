"""`superblock run`: train, evaluate and track one stage, or all of them in order."""

import os
import shlex
import sys
from collections.abc import Sequence
from itertools import groupby
from pathlib import Path

from superblock.cli import search
from superblock.cli.app import Job, compose_run, launch_all, say
from superblock.cli.commands import STAGE_GROUP
from superblock.cli.search_settings import is_search
from superblock.config.fields import ConfigError
from superblock.config.run import RunConfig
from superblock.config.typed import quoted, typed


def main() -> None:
    if is_search(sys.argv[1:]):
        search.main()
    else:
        launch_all("run", run)


def run(jobs: list[Job]) -> None:
    """Runs what was asked for: jobs that differ only in their stage are one pipeline, others follow each other.

    Raises:
        ConfigError: for a strategy that does not fit the number of processes, or a setting that is for one stage alone.
        SystemExit: with status 3 where a stage was not promoted.
    """
    for _, config in jobs:
        check_processes(config.trainer.strategy, int(os.environ.get("WORLD_SIZE", "1")))
    for config in (config for _, config in jobs if config.exit_at is not None):
        from superblock.evaluation.at_exit import evaluate_finished

        evaluate_finished(config, say=say)
    jobs = [job for job in jobs if job[1].exit_at is None]
    if not jobs:
        return
    pipelines = group(jobs)
    for _, configs in pipelines:
        check_pipeline(configs)
    say(_heading(pipelines[0][1]))  # before the slow imports
    from superblock.staging.pipeline import run_stages

    status = 0
    for number, (label, configs) in enumerate(pipelines, 1):
        if len(pipelines) > 1:
            say(f"{number} of {len(pipelines)}: {label}")
        again = None
        if len(configs) > 1:
            again = typed(quoted(["run", *sys.argv[1:]]))
        elif len(pipelines) > 1:
            again = typed(f"run {label} resume=auto")
        status = max(status, run_stages(configs, compose=compose_run, say=say, continue_with=again))
    if status:
        sys.exit(status)


def check_pipeline(configs: Sequence[RunConfig]) -> None:
    """Refuses what names one run where there are several; each stage finds its own."""
    first = configs[0]
    if len(configs) == 1:
        return
    named = {"name": first.name, "resume": first.resume, "parent": first.parent}
    for key, value in named.items():
        if value not in (None, "none", "auto", "required"):
            raise ConfigError(f"{key}={value}: is for one stage; leave it out, or give one stage")


def group(jobs: list[Job]) -> list[tuple[str, list[RunConfig]]]:
    """The jobs by what they have in common beside their stage, in their order; a single stage's label is its own."""
    if len({config.stage.name for _, config in jobs}) == 1:
        return [(label, [config]) for label, config in jobs]
    rests = [quoted([w for w in shlex.split(label) if not w.startswith(f"{STAGE_GROUP}=")]) for label, _ in jobs]
    order = {rest: number for number, rest in reversed(list(enumerate(rests)))}
    keyed = sorted(zip(rests, (config for _, config in jobs), strict=True), key=lambda pair: order[pair[0]])
    return [(rest, [config for _, config in same]) for rest, same in groupby(keyed, key=lambda pair: pair[0])]


def check_processes(strategy: str, processes: int) -> None:
    """More than one process is torchrun's business: Lightning's own launcher would start this command line again."""
    if strategy in ("ddp", "fsdp") and "WORLD_SIZE" not in os.environ:
        raise ConfigError(
            f"trainer.strategy={strategy}: needs processes to work with; start them with\n"
            f"torchrun --nproc-per-node=2 -m superblock.cli run trainer.strategy={strategy}"
        )
    if strategy == "single" and processes > 1:
        raise ConfigError(f"trainer.strategy=single: torchrun started {processes} processes; must be ddp, fsdp or auto")


def _heading(configs: Sequence[RunConfig]) -> str:
    first = configs[0]
    depths = " -> ".join(str(n) for n in sorted(config.stage.superblocks for config in configs))
    names = first.stage.name if len(configs) == 1 else f"{len(configs)} stages"
    budget = f", {first.trainer.budget}" if len(configs) == 1 else ""
    plural = "" if depths == "1" else "s"
    return f"{names}: {depths} superblock{plural}, scale {first.scale.name}{budget}; in {Path.cwd()}"
