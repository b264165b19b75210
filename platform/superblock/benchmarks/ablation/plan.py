"""The runs of an experiment: what each trains, what it must wait for, and what it costs."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, fields
from fnmatch import fnmatchcase
from typing import Any

from superblock.config.benchmark import BenchmarkConfig
from superblock.config.fields import ConfigError, closest
from superblock.config.run import RunConfig
from superblock.models.formulas import count

Compose = Callable[[Sequence[str]], RunConfig]
"""Makes the configuration of `run` from what would stand on its command line."""
Entries = Mapping[str, Mapping[str, Any]]
"""What is recorded of finished runs, by name."""

STAGES = {1: "mvp1", 3: "mvp2", 6: "mvp3"}
"""The stage of each depth."""
SHORT = (
    "promote=false", "trainer.progress=false", "trainer.keep_last=1", "trainer.checkpoint_every=10hours",
    "evaluation.every=0.5", "evaluation.samples=0", "evaluation.reference_points=false",
)  # fmt: skip
"""What every run of an experiment has on its command line: nothing that is not compared."""


@dataclass(frozen=True)
class Run:
    """One training."""

    group: str
    """Runs that are compared with each other, such as `1-3`."""
    arm: str
    seed: int
    superblocks: int
    steps: int
    flops: float
    """Of its own training."""
    words: tuple[str, ...] = ()
    """What makes the arm, as it would be typed."""
    parent: str | None = None
    """The run of this experiment that its weights begin from."""
    after: tuple[str, ...] = ()
    """Runs whose results `late_words` needs."""
    late_words: Callable[[Entries], Sequence[str]] | None = field(default=None, compare=False)
    """What of the arm follows from earlier results."""
    stage: str | None = None
    """Whose depth it has, unless the words say otherwise; None is the stage of that many superblocks."""

    @property
    def name(self) -> str:
        return name_of(self.group, self.arm, self.seed)

    @property
    def needs(self) -> tuple[str, ...]:
        """Runs that must have finished before this one begins."""
        return (*self.after, *([self.parent] if self.parent else []))

    def folder(self, experiment: str) -> str:
        """Name of its folder below `runs/`."""
        return f"{experiment}-{self.name.replace('/', '-')}"

    def command_line(self, experiment: str, common: Sequence[str], entries: Entries) -> list[str]:
        """The overrides of `run` that train it.

        Args:
            experiment: name of the experiment.
            common: overrides that all runs have.
            entries: finished runs; all that it needs are among them.
        """
        late = self.late_words(entries) if self.late_words else ()
        parent = self.parent and entries[self.parent]["run"]
        return [
            f"stage={self.stage or STAGES[self.superblocks]}", *common, *self.words, *late, f"trainer.budget={self.steps}steps",
            f"seed={self.seed}", f"parent={parent or 'none'}", f"name={self.folder(experiment)}",
        ]  # fmt: skip


def name_of(group: str, arm: str, seed: int) -> str:
    """`1-3/identity/s2`."""
    return f"{group}/{arm}/s{seed}"


def common_words(config: BenchmarkConfig, compose: Compose) -> list[str]:
    """The scale, with what was changed of it, and what every run of an experiment has."""
    words = [f"scale={config.scale.name}"]
    shipped = compose([*words, "trainer.budget=1steps"]).scale
    for f in fields(shipped):
        if (value := getattr(config.scale, f.name)) != getattr(shipped, f.name):
            words.append(f"scale.{f.name}={value}")
    return [*words, *SHORT, f"trainer.threads={config.threads or 'null'}"]


def step_flops(compose: Compose, common: Sequence[str], superblocks: int, words: Sequence[str] = ()) -> float:
    """Training FLOPs of one optimizer step, by the formula that a run's own summary goes by."""
    config = compose([f"stage={STAGES[superblocks]}", *common, *words, "trainer.budget=1steps"])
    length = config.data.sequence_length
    return count(config.model).training_flops_per_token(length) * length * config.trainer.batch_size


def select(runs: Sequence[Run], patterns: str) -> list[Run]:
    """The runs that `cases` names, and those they need.

    Raises:
        ConfigError: if a pattern names none.
    """
    known = {run.name: run for run in runs}
    chosen: set[str] = set()
    for pattern in (part.strip() for part in patterns.split("|")):
        found = {name for name in known if fnmatchcase(name, pattern)}
        if not found:
            hint = f"; did you mean {close[0]}?" if (close := closest(pattern, known)) else ""
            arms = dict.fromkeys(f"{run.group}/{run.arm}/*" for run in runs)
            raise ConfigError(f"cases={patterns}: {pattern} is none of {', '.join(arms)}{hint}")
        chosen |= found
    queue = list(chosen)
    while queue:
        new = set(known[queue.pop()].needs) - chosen
        chosen |= new
        queue += new
    return [run for run in runs if run.name in chosen]


def arms_of(runs: Sequence[Run]) -> Iterator[tuple[str, str, list[Run]]]:
    """(group, arm, its runs) in order."""
    for group, arm in dict.fromkeys((run.group, run.arm) for run in runs):
        yield group, arm, [run for run in runs if (run.group, run.arm) == (group, arm)]
