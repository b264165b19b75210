"""What a report says: plain data between the analysis, which makes it, and the pages, which only draw it.

`report.json` is this, and stays readable: `SCHEMA` changes its number whenever a field changes its meaning. Nothing here
depends on the clock or on the machine that writes it, so that the same runs give the same bytes.
"""

from dataclasses import dataclass, field
from typing import Any, Literal

SCHEMA = "superblock.report/1"
MINIMUM_SEEDS = 3
"""With fewer there is no verdict."""

Verdict = Literal[
    "improved", "regressed", "unchanged", "undecided", "not enough seeds", "not comparable", "new", "missing"
]


NoBaseline = Literal["none earlier", "not asked for", "gone"]
"""Why a report is compared with no other. `none earlier` is true before and after this report itself is pinned."""


@dataclass(frozen=True)
class SeedValue:
    """One run's value."""

    seed: int
    value: float
    run: str


@dataclass(frozen=True)
class Measure:
    """A number over seeds, with the t interval of its mean (95 %); a seed with several runs counts once, by their mean."""

    values: tuple[SeedValue, ...]
    mean: float
    """Of speed and memory the geometric one, whose interval is that of the logarithms: it cannot reach below 0."""
    low: float | None
    high: float | None
    """None for a single seed."""


@dataclass(frozen=True)
class Change:
    """One metric of one group beside the baseline's, paired by seed."""

    group: str
    metric: str
    before: Measure | None
    after: Measure | None
    relative: float | None
    """after / before - 1, over the seeds that both have."""
    low: float | None
    high: float | None
    """Its interval, 95 %."""
    p: float | None
    p_adjusted: float | None
    """Holm, over all comparisons of the report."""
    verdict: Verdict
    words: str
    """Why, in a sentence."""


@dataclass(frozen=True)
class Point:
    """One entry of a history."""

    time: float
    value: float
    commit: str
    runs: tuple[str, ...]


@dataclass(frozen=True)
class History:
    """A metric of one group over time, on one machine and one text."""

    group: str
    metric: str
    machine: str
    points: tuple[Point, ...]
    """Oldest first."""
    change_at: int | None
    """Index of the first point after the last change; None if there was none."""
    relative: float | None
    """How much it changed."""
    alarm: bool
    words: str


@dataclass(frozen=True)
class Predicted:
    """What was predicted of a group before its training, averaged over seeds, beside what came."""

    metric: str
    """bits_per_byte, minutes, minutes_in_all or memory_bytes."""
    value: float
    low: float
    high: float
    measured: float
    inside: int
    """Seeds whose measurement lay inside their interval."""
    seeds: int


@dataclass(frozen=True)
class Curve:
    """A learning curve over seeds, on common tokens."""

    metric: str
    tokens: tuple[float, ...]
    """Of the lineage, so that stages stand behind each other."""
    mean: tuple[float, ...]
    low: tuple[float, ...]
    high: tuple[float, ...]
    """Smallest and largest seed."""
    seeds: int


@dataclass(frozen=True)
class ExitPoint:
    """The model that ends at one exit."""

    depth: int
    bits_per_byte: Measure
    tokens_per_second: Measure | None
    trained: Measure | None
    """The model of that depth that was trained by itself, where there is one."""


@dataclass(frozen=True)
class ExpertLoad:
    """How evenly the experts of a layer are used at the end: 1 is evenly."""

    layer: int
    load_entropy: float
    min_load: float
    """The idlest expert's share of an equal share."""
    dead: float


@dataclass(frozen=True)
class Sliced:
    """Bits per byte and accuracy of a part of the text: a stretch of the context, or a package."""

    name: str
    bits_per_byte: Measure
    accuracy: Measure | None
    share: float | None
    """Of all bytes."""


@dataclass(frozen=True)
class Statement:
    """A gate or claim of one run."""

    run: str
    seed: int
    name: str
    kind: Literal["gate", "claim"]
    verdict: str
    measured: str
    asked: str
    because: str


@dataclass(frozen=True)
class Group:
    """Runs that differ in their seed alone: one stage, scale, arm, text and configuration."""

    key: str
    """`mini/mvp1/default`; with the text's digest behind it where there are several texts."""
    stage: str
    scale: str
    arm: str
    superblocks: int | None
    parameters: int | None
    active_parameters: int | None
    training_tokens: float | None
    """Of the lineage, mean over seeds."""
    flops: float | None
    """Of the lineage, mean over seeds."""
    data_digest: str
    machine: str | None
    """None if its runs come from several machines: then it has no speed."""
    runs: tuple[str, ...]
    measures: dict[str, Measure]
    references: dict[str, float]
    """Bits per byte of the test text: unigram, trigram, xz."""
    predicted: tuple[Predicted, ...] = ()
    curves: tuple[Curve, ...] = ()
    exits: tuple[ExitPoint, ...] = ()
    experts: tuple[ExpertLoad, ...] = ()
    positions: tuple[Sliced, ...] = ()
    packages: tuple[Sliced, ...] = ()
    statements: tuple[Statement, ...] = ()
    sample: str | None = None
    """What the first seed's model wrote."""
    sample_run: str | None = None
    """The run whose model that is."""
    configuration: str = ""
    """Eight hex digits of the settings that its runs share."""
    settings: dict[str, str] = field(default_factory=dict)
    """Those settings; empty in reports of versions that did not keep them."""

    def runs_without_statements(self) -> tuple[str, ...]:
        """Runs that were held to no gate and no claim."""
        known = {one.run for one in self.statements}
        return tuple(run for run in self.runs if run not in known)


@dataclass(frozen=True)
class ProbeRow:
    """A task of the probes for one arm."""

    task: str
    arm: str
    score: Measure
    """Accuracy, 0 to 1."""
    score_name: str
    chance: float
    levels: dict[str, Measure]
    """Accuracy where the task grows harder, in order (`pairs=8`, `length=256`)."""
    published: str | None
    """What a paper reports for such a model, in words."""
    record: str


@dataclass(frozen=True)
class SpeedRow:
    """A case of the speed suite."""

    case: str
    milliseconds: float
    tokens_per_second: float | None
    matmul_share: float | None
    ratio: float | None
    """Times faster than the peer's fastest variant."""
    memory_ratio: float | None
    sizes: dict[str, Any]
    record: str


@dataclass(frozen=True)
class AblationRow:
    """Two arms of an experiment, paired by seed."""

    experiment: str
    comparison: str
    metric: str
    mean: float
    low: float | None
    high: float | None
    p_adjusted: float | None
    seeds: int
    words: str
    record: str
    decided: bool = False
    """Whether the words are a verdict."""
    budget: str = ""
    """What each arm was trained for, in words; empty if the comparison says it, or the record does not."""


@dataclass(frozen=True)
class HarnessRow:
    """A metric of a task of lm-evaluation-harness for one run's model."""

    task: str
    metric: str
    value: float
    stderr: float | None
    """Over the task's examples."""
    chance: float | None
    """What guessing reaches, where that is known."""
    examples: int
    limit: int | None
    """Examples that were asked of each task at most; None is all."""
    run: str
    record: str


@dataclass(frozen=True)
class Source:
    """How to reproduce a run or a record, and where to look it up."""

    name: str
    kind: Literal["run", "record"]
    command: str
    commit: str
    dirty: bool
    fingerprint: str
    hardware: str
    machine: str
    data_digest: str
    started: float
    mlflow: str | None
    """Path below the address of the MLflow server, `/#/experiments/1/runs/<id>`."""


@dataclass(frozen=True)
class Report:
    """Everything a report says."""

    name: str
    title: str
    time: float
    """When the newest of its runs and records ended, seconds since 1970."""
    verdict: Verdict
    verdict_words: str
    """One line, to be read behind the verdict and a colon."""
    source: str
    baseline: str | None
    """Name of the report that this one is compared with."""
    no_baseline: NoBaseline | None = None
    """Why there is none; None if there is one."""
    changes: tuple[Change, ...] = ()
    same_runs: tuple[str, ...] = ()
    """Groups that are the baseline's own runs, which are not compared with themselves."""
    histories: tuple[History, ...] = ()
    groups: tuple[Group, ...] = ()
    probes: tuple[ProbeRow, ...] = ()
    speed: tuple[SpeedRow, ...] = ()
    ablations: tuple[AblationRow, ...] = ()
    harness: tuple[HarnessRow, ...] = ()
    sources: tuple[Source, ...] = ()
    missing: tuple[str, ...] = ()
    """What a reader may look for and nothing measured, each with the command that would."""
    problems: tuple[str, ...] = ()
    schema: str = field(default=SCHEMA)
