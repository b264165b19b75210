"""Runs that only earlier reports still know: their folders are gone, their numbers remain part of the history."""

from collections.abc import Collection, Iterable, Sequence

from superblock.reporting.content import Group, Report, Source
from superblock.reporting.facts import RunFacts
from superblock.reporting.run_facts import TRAINING
from superblock.reporting.selection import conflict

Remembered = tuple[RunFacts, Source]


def remembered(earlier: Sequence[Report], known: Collection[str], groups: Iterable[Group]) -> list[Remembered]:
    """The runs of earlier reports with what these said of them, oldest first.

    Args:
        earlier: reports, oldest first; of a run that several know, the newest report counts.
        known: names of runs that are still here.
        groups: whose history is wanted; of their places, runs whose settings are in no conflict with theirs count.
    """
    wanted, found = {_place(group): group for group in groups}, {}
    for report in earlier:
        origins = {source.name: source for source in report.sources if source.kind == "run"}
        for group in report.groups:
            here = wanted.get(_place(group))
            if here is not None and _alike(here, group):
                for name in group.runs:
                    if name not in known and name in origins:
                        found[name] = (_run(group, origins[name]), origins[name])
    return sorted(found.values(), key=lambda pair: (pair[0].started, pair[0].name))


def _place(group: Group) -> tuple[str, ...]:
    return group.stage, group.scale, group.arm, group.data_digest


def _alike(here: Group, there: Group) -> bool:
    """Whether their runs make one history; reports of versions that kept no settings only tell of equal ones."""
    if here.settings and there.settings:
        return not conflict(here.settings, there.settings)
    return here.configuration == there.configuration


def _run(group: Group, source: Source) -> RunFacts:
    own = {
        name: (one.seed, one.value)
        for name, measure in group.measures.items()
        for one in measure.values
        if one.run == source.name
    }
    return RunFacts(
        name=source.name, stage=group.stage, scale=group.scale, arm=group.arm, seed=next((seed for seed, _ in own.values()), 0),
        suite=TRAINING, status="FINISHED", started=source.started, ended=None, fingerprint=source.fingerprint,
        commit=source.commit, dirty=source.dirty, hardware=source.hardware, machine=source.machine, command=source.command,
        data_digest=group.data_digest, data="", superblocks=group.superblocks, lineage=(source.name,),
        results={name: value for name, (_, value) in own.items()},
    )  # fmt: skip
