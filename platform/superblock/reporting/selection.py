"""Which runs count and which belong together: groups of runs that differ in their seed alone."""

import hashlib
import json
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

from superblock.config.report import SelectConfig
from superblock.reporting.facts import RunFacts

NOT_CONFIGURATION = frozenset({"seed", "parent", "promote", "exit_at", "threads", "trainer.threads", "model.parameters",
                               "model.active_parameters"})  # fmt: skip
"""Settings in which runs of one configuration may differ: `parent` names a run, whose place the lineage takes."""
PARENT = "parent"
DAY = 86400.0


@dataclass(frozen=True)
class Chosen:
    """The runs of one group, by seed and time, and what they are called."""

    key: str
    runs: tuple[RunFacts, ...]
    configuration: str
    """Eight hex digits of the settings that they share."""
    other: str
    """Settings in which it differs from the newest group of its stage, scale, arm and text; empty for that one."""


def configuration(run: RunFacts) -> dict[str, str]:
    """The settings that runs of one group share; the stages a run grew through are one of them."""
    own = {key: value for key, value in run.settings.items() if key not in NOT_CONFIGURATION}
    if run.settings.get("growth.method") == "none" or len(run.lineage) < 2:
        own = {key: value for key, value in own.items() if not key.startswith("growth.")}
    return own | {PARENT: "none" if len(run.lineage) < 2 else str(len(run.lineage) - 1)}


def recorded(run: RunFacts) -> dict[str, str]:
    """The configuration; nothing for a run of which an old report knows no settings: it may be of any."""
    return configuration(run) if run.settings else {}


def conflict(here: Mapping[str, str], there: Mapping[str, str]) -> bool:
    """Whether a setting that both recorded differs. One that only a later version of the code knows makes no other
    configuration: it does not end a history."""
    return any(here[key] != there[key] for key in here.keys() & there.keys())


def configuration_digest(run: RunFacts) -> str:
    """Eight hex digits of the configuration."""
    return hashlib.sha256(json.dumps(configuration(run), sort_keys=True).encode()).hexdigest()[:8]


def is_asked(run: RunFacts, select: SelectConfig, newest: float | None) -> bool:
    """Whether a report is about the run.

    Args:
        newest: when the newest run of the report started, from which its days count; None for any time.
    """
    within = select.days is None or newest is None or run.started >= newest - select.days * DAY
    return (
        (select.scale is None or run.scale == select.scale)
        and (not select.stages or run.stage in select.stages)
        and (not select.arms or run.arm in select.arms)
        and (not select.seeds or run.seed in select.seeds)
        and within
    )


def newest(runs: Iterable[RunFacts]) -> list[RunFacts]:
    """The newest run of each stage, scale, arm, text, seed and configuration, oldest first."""
    found: dict[object, RunFacts] = {}
    for run in sorted(runs, key=lambda run: (run.started, run.name)):
        found[(place(run), run.seed, configuration_digest(run))] = run
    return sorted(found.values(), key=lambda run: (run.started, run.name))


def grouped(runs: Sequence[RunFacts]) -> list[Chosen]:
    """Groups in the order of scale, arm, superblocks and stage, those of older configurations last among their like.

    The newest configuration has the plain key; others are told apart by the settings that differ.
    """
    texts = len({run.data_digest for run in runs}) > 1
    places: dict[tuple[str, ...], dict[str, list[RunFacts]]] = defaultdict(lambda: defaultdict(list))
    for run in runs:
        places[place(run)][configuration_digest(run)].append(run)
    found = []
    for names, configurations in places.items():
        ordered = sorted(
            configurations.values(), key=lambda group: max((r.started, r.name) for r in group), reverse=True
        )
        plain = "/".join(names[:3]) + (f"/{names[3] or 'unknown'}" if texts else "")
        first = configuration(ordered[0][0])
        taken: set[str] = set()
        for number, group in enumerate(ordered):
            other = differing(first, configuration(group[0])) if number else ""
            key = plain if not number else f"{plain}/{other if len(other) <= 60 else other[:57] + '...'}"
            while key in taken:
                key += "'"
            taken.add(key)
            found.append(
                Chosen(
                    key,
                    tuple(sorted(group, key=lambda r: (r.seed, r.started, r.name))),
                    configuration_digest(group[0]),
                    other,
                )
            )
    return sorted(found, key=_order)


def differing(here: Mapping[str, str], there: Mapping[str, str]) -> str:
    """The settings of `there` that `here` does not share, as they would be typed."""
    changed = [f"{key}={there[key]}" for key in sorted(there) if here.get(key) != there[key]]
    gone = [f"{key} not recorded" for key in sorted(set(here) - set(there))]
    words = {"parent=none": "from scratch"}
    return " ".join(words.get(one, one.replace(f"{PARENT}=", "grown ")) for one in (*changed, *gone))


def place(run: RunFacts) -> tuple[str, str, str, str]:
    """Scale, stage, arm and text."""
    return run.scale, run.stage, run.arm, run.data_digest


def _order(one: Chosen) -> tuple[str, bool, str, str, int, str, bool, str]:
    run = one.runs[0]
    arm = (run.arm != "default", run.arm)
    return (run.scale, *arm, run.data_digest, run.superblocks or 0, run.stage, bool(one.other), one.key)
