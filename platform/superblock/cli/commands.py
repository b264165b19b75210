"""The commands, and what each can be told: its configuration, its groups and their options. No heavy import."""

from collections.abc import Iterator
from dataclasses import dataclass, fields, is_dataclass
from functools import cache
from importlib.resources import files
from importlib.resources.abc import Traversable
from typing import Any

import yaml

from superblock.config.benchmark import BenchmarkConfig
from superblock.config.report import ReportConfig
from superblock.config.run import GenerateConfig, PlanConfig, RunConfig, UiConfig

STAGE_GROUP = "stage"
ALL_STAGES = f"{STAGE_GROUP}=all"
"""Every stage in order; `cli.run` turns it into a sweep."""


@dataclass(frozen=True)
class Command:
    """One command of the console script; its module is `superblock.cli.<name>`, its defaults are `conf/<name>.yaml`."""

    name: str
    config: type
    summary: str
    examples: tuple[tuple[str, str], ...]
    """Overrides and what they do."""
    statuses: tuple[tuple[int, str], ...] = ()
    """What the process ends with beside 0 for done, 2 for a setting that cannot work and 130."""


COMMANDS = {
    command.name: command
    for command in (
        Command(
            "run",
            RunConfig,
            "train, evaluate and track one stage",
            (
                ("", "one superblock on the standard library's source text, minutes on a laptop"),
                ("stage=all", "all four stages, each grown from the one before, an hour on a laptop"),
                ("stage=mvp2 parent=none optim=muon", "three superblocks from scratch, another optimizer"),
                ("scale=mini trainer.budget=100steps", "a few seconds"),
                ("data=text data.path='notes/**/*.md'", "your own text"),
                ("--multirun seed=1,2,3 scale=mini", "three runs, one after the other"),
                ("resume=auto", "continue the newest interrupted run of this configuration"),
                ("resume=mvp3-tiny-s1 exit_at=3", "test the 3-superblock model inside a finished run; trains nothing"),
            ),
            ((3, "a stage did not pass its gates; the run is kept, the stages after it were not begun"),),
        ),
        Command(
            "generate",
            GenerateConfig,
            "continue a text with a trained model",
            (
                ("", "continue 'def ' with the newest run's model"),
                ("run=mvp2 prompt='import ' temperature=0", "the newest run of a stage, the likeliest text"),
                ("samples=3 max_tokens=80 seed=7", "three texts"),
                ("run=mvp3 exit_at=3", "the 3-superblock model inside a 6-superblock one"),
            ),
        ),
        Command(
            "plan",
            PlanConfig,
            "count a model's parameters, FLOPs and bytes without building it",
            (
                ("stage=mvp4 scale=full", "the 235-billion-parameter model"),
                ("stage=mvp2 check=true", "compare the closed forms with the model on torch's meta device"),
            ),
        ),
        Command(
            "benchmark",
            BenchmarkConfig,
            "measure speed beside transformers' model of the same dimensions, or run an experiment",
            (
                ("", "every case, about a quarter of an hour on two cores"),
                ("suite=speed quick=true", "a smoke pass of every case in less than a minute"),
                ("cases='train/s1/*|part/moe'", "some cases by name"),
                ("resume=true", "continue an interrupted benchmark"),
                (
                    "suite=growth",
                    "which growth method is best, about 50 minutes of one core; started twice, two share it",
                ),
                ("suite=ablation ablation.file=wiring", "arms of a sweep file at equal FLOPs, paired by seed"),
                ("suite=exits", "which training of the exits is best, about 25 minutes of one core"),
                ("suite=probes", "recall, parity and copying by architecture, about an hour of one core; two share it"),
                ("suite=probes 'probes.tasks=[s5,needle]' quick=true", "other probes by name; a smoke test of them"),
                ("suite=language language.beyond=2", "finished runs on held-out text, by context and by package"),
                ("suite=harness harness.run=mvp3", "lm-evaluation-harness on a finished run"),
                ("'speed.peers=[bf16,fp32,bf16-compiled]' cases='train/*'", "against torch.compile too"),
            ),
            ((1, "a case or a run failed; the others are recorded"),),
        ),
        Command(
            "report",
            ReportConfig,
            "write down what was run and how it compares, now or on a schedule",
            (
                ("", "every finished run of the newest scale, below reports/"),
                ("select.scale=mini 'select.stages=[mvp1,mvp2]'", "some runs"),
                ("pin=true", "the baseline that later reports are compared with"),
                ("fail_on=regression", "status 3 if something became worse; for a job that watches"),
                ("'schedule.cron=0 6 * * 1'", "write a timer for Mondays at six, and say how it is installed"),
                (
                    "schedule.cron=@daily schedule.install=true 'schedule.before=seed=1,2,3'",
                    "train, then report, every night",
                ),
                ("schedule.remove=true", "remove it"),
            ),
            (
                (1, "the training of schedule.before failed; the report is written, and says so"),
                (3, "with fail_on=regression: something became worse, or a history raised an alarm"),
                (4, "nothing to report"),
            ),
        ),
        Command(
            "ui",
            UiConfig,
            "open MLflow on the runs of this folder",
            (
                ("", "serve ./mlflow.db on port 5000"),
                ("tracking.port=5001", "another port"),
            ),
        ),
    )
}


@dataclass(frozen=True)
class Option:
    """One choice of a group, such as `stage=mvp2`."""

    name: str
    meaning: str
    file: Traversable


@cache
def options(group: str) -> dict[str, Option]:
    """The choices of a group by name, in the order of the names. The first line of each file says what it is, but for
    Hydra's own, such as `# @package`."""
    folder = files("superblock.stages") if group == STAGE_GROUP else files("superblock.conf").joinpath(group)
    found = sorted((f for f in folder.iterdir() if f.name.endswith(".yaml")), key=lambda f: f.name)
    names = {f.name.removesuffix(".yaml"): f for f in found}
    return {name: Option(name, _first_line(f), f) for name, f in names.items()}


@cache
def groups(command: str) -> dict[str, str]:
    """The groups a command composes, with the option each has by default."""
    defaults = yaml.safe_load(files("superblock.conf").joinpath(f"{command}.yaml").read_text())["defaults"]
    entries = [next(iter(entry.items())) for entry in defaults if isinstance(entry, dict)]
    return {key: value for key, value in entries if not key.startswith("override ")}


def sections(config: type, prefix: str = "") -> Iterator[str]:
    """The keys that hold other keys, such as `model` and `model.gdn`."""
    for f in fields(config):
        make: Any = f.default_factory
        if isinstance(make, type) and is_dataclass(make):
            yield f"{prefix}{f.name}"
            yield from sections(make, f"{prefix}{f.name}.")


def _first_line(file: Traversable) -> str:
    lines = (line for line in file.read_text().splitlines() if not line.startswith("# @"))
    return next(lines, "").removeprefix("#").strip()
