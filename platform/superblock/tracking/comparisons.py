"""Which comparisons an experiment offers, and the note that says how to read them: pure functions of what it holds."""

import math
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace

from superblock.tracking.views import Chart, Section, View

TRAINING = "training"
KEY_PREFIX = "superblock-"
"""What the keys of our views begin with; others in the store are users' own."""
MOST_CHARTS = 36
"""In one section: more make the page slow."""


@dataclass(frozen=True)
class RunContents:
    """What a run has that can be compared."""

    tags: Mapping[str, str]
    metrics: Mapping[str, float]
    """The last value of each."""


QUALITY = Section(
    "Quality (fewer bits per byte are better)",
    (
        Chart("bar", ("test/bits_per_byte",)),
        Chart("bar", ("test/perplexity",)),
        Chart("bar", ("test/accuracy_top1",)),
        Chart("line", ("val/bits_per_byte",), over="val/tokens"),
        Chart("line", ("train/loss",), over="train/tokens"),
        Chart("line", ("val/bits_per_byte",)),
        Chart("line", ("train/loss",)),
    ),
)
STAGES = Section(
    "Stages and exits (exits over superblocks used)",
    (
        Chart("line", ("exits/bits_per_byte",)),
        Chart("line", ("exits/tokens_per_second",)),
        Chart("scatter", ("test/bits_per_byte",), over="lineage/flops"),
        Chart("scatter", ("test/bits_per_byte",), over="model/parameters"),
        Chart("scatter", ("test/bits_per_byte",), over="predicted/bits_per_byte"),
        Chart("bar", ("model/parameters", "model/active_parameters")),
    ),
)
SPEED = Section(
    "Speed and memory (on equal hardware)",
    (
        Chart("bar", ("final/tokens_per_second",)),
        Chart("bar", ("final/matmul_share",)),
        Chart("bar", ("final/memory_peak_mib",)),
        Chart("line", ("throughput/tokens_per_second",)),
        Chart("line", ("throughput/matmul_share",)),
        Chart("line", ("memory/peak_mib",)),
    ),
)
EXPERTS = Section(
    "Experts (load entropy 1 is an even load)",
    (
        Chart("line", ("experts/load_entropy",)),
        Chart("line", ("experts/max_violation",)),
        Chart("line", ("experts/dead_experts",)),
        Chart("line", ("experts/gate_entropy",)),
    ),
)
FIXED = (QUALITY, STAGES, SPEED, EXPERTS)
"""Of every view of trained models; each shows the charts whose metrics exist."""
OF_PREFIX = {"language": "Language, held-out text", "probe": "Probes", "harness": "Harness", "speed": "Speed suite"}
"""Sections for what is recorded under these prefixes, if there is anything."""
CURVES = ("/levels", "/training_accuracy", "/position/bits_per_byte", "/position/accuracy")
"""Ends of those that are curves; all others are single results."""
NARROW = ("val/bits_per_byte", "train/loss", "exits/bits_per_byte")
"""Curves that end close to each other: their axis shows the range of the ends, not the start."""
NOT_SHOWN = ("_stderr", "/seconds", "/ms", "/flops_per_second", "/parameters", "/steps", "/tokens")
"""Ends of metrics that belong to a section and are not what it is opened for."""


def views(runs: Sequence[RunContents]) -> list[View]:
    """The comparisons that an experiment's runs allow, the most wanted first.

    Args:
        runs: newest first.
    """
    trained = [run for run in runs if run.tags.get("suite") == TRAINING and "stage" in run.tags]
    found: list[View] = []
    if trained:
        found.append(_stages(trained))
        if len(_values(trained, "scale")) > 1:
            found.append(_view("scales", "Stages at every scale", _filter(suite=TRAINING), ("scale", "stage"), trained))
        found += _arms(trained)
    found += [_suite(suite, runs) for suite in _values(runs, "suite") if suite != TRAINING]
    return [view for view in found if view.sections]


def note(runs: Sequence[RunContents], links: Sequence[tuple[str, str]]) -> str:
    """The experiment's description as Markdown.

    Args:
        links: name and address of every view.
    """
    lines = ["**Superblock**: runs of the experiment platform for hybrid language models.", "", _counted(runs), ""]
    if links:
        lines += ["Comparisons, ready to read:", "", *(f"- [{name}]({link})" for name, link in links), ""]
    lines += [
        "How to read it:", "",
        "- One run per training, all on one level. Tags say what it is: `stage`, `scale`, `arm`, `seed`, `suite`.",
        "- *Group by* a tag averages the runs that share it, here the seeds, and draws their extremes as a band. "
        "Averages over different scales or arms mean nothing: filter by `tags.scale` and `tags.arm` first.",
        "- A metric's section is the word before its first slash. Single results are bars, the rest are curves over steps; "
        "in `exits/` the step is the number of superblocks used.",
        "- `test/bits_per_byte` is what models are compared by: it does not depend on the tokenizer. "
        "Compare only where `data.digest` is equal, and speed only where `hardware.fingerprint` is.",
        "- Under *Models* every trained model carries its results with the data set they were measured on.",
    ]  # fmt: skip
    return "\n".join(lines)


def _counted(runs: Sequence[RunContents]) -> str:
    """What is here, in one line per suite."""
    lines = []
    for suite in _values(runs, "suite"):
        members = [run for run in runs if run.tags.get("suite") == suite]
        stages = Counter(f"{run.tags.get('stage', '')} at {run.tags.get('scale', '')}".strip() for run in members)
        parts = ", ".join(f"{count} of {name}" for name, count in sorted(stages.items()))
        lines.append(f"- suite `{suite}`: {len(members)} runs ({parts})")
    return "\n".join(lines) or "No runs yet."


def _stages(trained: Sequence[RunContents]) -> View:
    """Stages beside each other at the newest scale, one arm of it."""
    scale = trained[0].tags.get("scale", "")
    members = [run for run in trained if run.tags.get("scale") == scale]
    arms = _values(members, "arm")
    arm = "default" if "default" in arms else arms[0] if arms else ""
    members = [run for run in members if run.tags.get("arm", "") == arm]
    which = _filter(suite=TRAINING, scale=scale, arm=arm)
    name = f"Stages at scale {scale}" + (f", arm {arm}" if len(arms) > 1 else "")
    return _view("stages", name, which, ("stage",), members)


def _arms(trained: Sequence[RunContents]) -> list[View]:
    """Arms of the newest stage that has several, beside each other."""
    for run in trained:
        place = {"stage": run.tags["stage"], "scale": run.tags.get("scale", "")}
        members = [other for other in trained if all(other.tags.get(key) == value for key, value in place.items())]
        if len(_values(members, "arm")) > 1:
            name = f"Arms of {place['stage']} at scale {place['scale']}"
            return [_view("arms", name, _filter(suite=TRAINING, **place), ("arm",), members)]
    return []


def _suite(suite: str, runs: Sequence[RunContents]) -> View:
    """Everything of one benchmark suite. Experiments train models: their arms are beside each other."""
    members = [run for run in runs if run.tags.get("suite") == suite]
    grouped = tuple(tag for tag in ("stage", "arm", "scale") if len(_values(members, tag)) > 1)
    return _view(f"suite-{suite}", f"Suite {suite}", _filter(suite=suite), grouped, members)


def _view(key: str, name: str, search: str, group_by: tuple[str, ...], runs: Sequence[RunContents]) -> View:
    """A view with the sections that these runs have metrics for; groups of stages are sorted by stage."""
    ends: dict[str, list[float]] = {}
    for run in runs:
        for metric, value in run.metrics.items():
            ends.setdefault(metric, []).append(value)
    fixed = (_present(section, ends) for section in FIXED)
    more = (_of_prefix(prefix, title, ends) for prefix, title in OF_PREFIX.items())
    order = "tags.`stage`" if "stage" in group_by else "attributes.start_time"
    return View(KEY_PREFIX + key, name, search, group_by, tuple(s for s in (*fixed, *more) if s.charts), order)


def _present(section: Section, ends: Mapping[str, Sequence[float]]) -> Section:
    """The section's charts whose metrics exist."""
    charts = (replace(c, span=_span(ends[c.metrics[0]]) if c.metrics[0] in NARROW and c.kind == "line" else None)
              for c in section.charts if all(metric in ends for metric in c.needs()))  # fmt: skip
    return replace(section, charts=tuple(charts))


def _span(values: Sequence[float]) -> tuple[float, float] | None:
    """A range around the last values of curves that fall, with room for those that are not there yet."""
    finite = [value for value in values if math.isfinite(value) and value > 0]
    return (round(0.9 * min(finite), 3), round(1.2 * max(finite), 3)) if finite else None


def _of_prefix(prefix: str, name: str, known: Iterable[str]) -> Section:
    """A chart for every metric below a prefix, those with the shortest paths first: parts come after the whole."""
    found = (metric for metric in known if metric.startswith(f"{prefix}/") and not metric.endswith(NOT_SHOWN))
    metrics = sorted(found, key=lambda metric: (metric.count("/"), metric))[:MOST_CHARTS]
    return Section(name, tuple(Chart("line" if metric.endswith(CURVES) else "bar", (metric,)) for metric in metrics))


def _filter(**tags: str) -> str:
    return " and ".join(f"tags.`{key}` = '{value}'" for key, value in tags.items() if value and "'" not in value)


def _values(runs: Sequence[RunContents], tag: str) -> list[str]:
    """Values of a tag, each once, the newest run's first."""
    return list(dict.fromkeys(run.tags[tag] for run in runs if run.tags.get(tag)))
