"""Gates and claims, what the models wrote, and where every number comes from."""

import re
from collections import Counter, defaultdict

from superblock.config.typed import stored
from superblock.reporting.content import Group, Report, Source, Statement
from superblock.reporting.pages.blocks import (
    Block,
    Cell,
    Column,
    Fold,
    Missing,
    Points,
    Section,
    Table,
    Verbatim,
    Words,
)
from superblock.reporting.pages.cells import looks, name_cell, plural, verdict
from superblock.reporting.pages.escaping import anchor
from superblock.reporting.pages.numbers import moment

SERVER = "http://127.0.0.1:5000"
"""Where `ui` serves, unless it was told otherwise."""
RUN_PAGE = re.compile(r"/#/[A-Za-z0-9/_-]+")
GOOD = ("passed", "held")
COMMAND = re.compile(
    r"(?:python -m platform\.|superblock )(?:run|generate|plan|benchmark|report|ui)\b(?: [\w.+/-]+=[^\s`;]+)*"
)
"""As a statement's text has it, with its settings."""


def gates(report: Report) -> Section:
    """A compact matrix, failures spelled out, and everything in full."""
    title = "Gates and claims"
    lead = (
        "A gate is a property that a sound training has; a model that fails one is not promoted. A claim is a hypothesis: "
        "measured, reported, and never in the way."
    )
    groups = [group for group in report.groups if group.statements]
    if not groups:
        text = "No run of this report was held to its gates. A stage's run measures them at its end:"
        return Section("gates", title, lead, (Missing(text, stored("run stage=mvp1")),))
    unread = [run for group in report.groups for run in group.runs_without_statements()]
    blocks: list[Block] = []
    for kind, caption in (("gate", "Gates: seeds that passed"), ("claim", "Claims: seeds whose measurement held")):
        table = _matrix(report, groups, kind, caption)
        if table:
            blocks.append(table)
    if failed := _grouped(report, groups, "gate"):
        blocks.append(Points(failed, "bad"))
    else:
        every = "Every gate of every run" if not unread else "Every gate that was measured"
        blocks.append(Words(f"{every} was passed."))
    if unread:
        blocks.append(Points((f"Not held to any gate: {', '.join(unread)}",), "unsure"))
    if claims := _grouped(report, groups, "claim"):
        blocks.append(Points(claims, "unsure"))
    blocks.append(Fold("Every gate and claim as measured", (_full(report, groups),)))
    return Section("gates", title, lead, tuple(blocks))


def _grouped(report: Report, groups: list[Group], kind: str) -> tuple[str, ...]:
    """A line for each gate or claim and verdict that is not good: in which stages, what the first run measured, a reason for failures."""
    look = looks(report)
    found: dict[tuple[str, str], dict[str, list[Statement]]] = defaultdict(lambda: defaultdict(list))
    for group in groups:
        for one in group.statements:
            if one.kind == kind and one.verdict not in GOOD:
                found[one.name, one.verdict][group.key].append(one)
    lines = []
    for (name, word), stages in found.items():
        runs = {group.key: len({one.run for one in group.statements if one.name == name}) for group in groups}
        where = ", ".join(
            f"{look[key].name} ({len(ones)} of {plural(runs[key], 'run')})" for key, ones in stages.items()
        )
        first = next(iter(stages.values()))[0]
        measured = COMMAND.sub(lambda command: f"`{command[0]}`", first.measured)
        several = sum(map(len, stages.values())) > 1
        which = f"the first of them, {first.run}, measured" if several else f"{first.run} measured"
        because = "" if word == "undecided" else f" {first.because}"
        lines.append(
            f"{verdict(word).text}: {kind} `{name}` in {where}; {which}: {measured}. Asked for: {first.asked}.{because}"
        )
    return tuple(lines)


def _matrix(report: Report, groups: list[Group], kind: str, caption: str) -> Table | None:
    look = looks(report)
    names = list(dict.fromkeys(one.name for group in groups for one in group.statements if one.kind == kind))
    if not names:
        return None
    rows = []
    for group in groups:
        cells = [_share([one for one in group.statements if (one.name, one.kind) == (name, kind)]) for name in names]
        rows.append((name_cell(look[group.key].name, group.runs), *cells))
    columns = (Column("stage", "name"), *(Column(name.replace("_", " "), "words") for name in names))
    return Table(caption, columns, tuple(rows))


def _share(statements: list[Statement]) -> Cell:
    """Sign, and how many runs came out how; `not asked` where the stage has no such gate."""
    if not statements:
        return Cell(text="not asked", tone="muted")
    counts = Counter(one.verdict for one in statements)
    good = sum(counts[word] for word in GOOD)
    shown = verdict("passed" if good == len(statements) else "failed" if counts["failed"] else "undecided")
    sign = shown.text.split()[0]
    ordered = sorted(counts, key=lambda word: word not in GOOD)
    words = f"{good} of {good}" if good == len(statements) else ", ".join(f"{counts[word]} {word}" for word in ordered)
    runs = tuple(one.run for one in statements)
    return Cell(text=f"{sign} {words}", sort=good / len(statements), runs=runs, tone=shown.tone)


def _full(report: Report, groups: list[Group]) -> Table:
    look = looks(report)
    columns = (
        Column("stage", "name"), Column("seed"), Column("what", "words"), Column("verdict", "words"), Column("measured", "words"),
        Column("asked", "words"), Column("because", "words"),
    )  # fmt: skip
    rows = tuple(
        (
            name_cell(look[group.key].name, (one.run,)),
            Cell(text=str(one.seed), sort=one.seed, runs=(one.run,)),
            Cell(text=one.name.replace("_", " "), note=one.kind),
            verdict(one.verdict),
            Cell(text=one.measured),
            Cell(text=one.asked),
            Cell(text=one.because),
        )
        for group in groups
        for one in group.statements
    )
    return Table("Every gate and claim", columns, rows)


def samples(report: Report) -> Section:
    """What the models write, as it is."""
    lead = "What the first seed's model of each stage wrote, unedited; nothing here is a measurement."
    written = [group for group in report.groups if group.sample]
    if not written:
        return Section(
            "samples", "Text samples", lead, (Missing("No run wrote samples.", stored("generate run=mvp1")),)
        )
    look = looks(report)
    folds = tuple(
        Fold(f"{look[group.key].name}, run {group.sample_run or 'unknown'}", (Verbatim(group.sample or ""),))
        for group in written
    )
    return Section("samples", "Text samples", lead, folds)


def sources(report: Report) -> Section:
    """How to get each number again."""
    title = "How to reproduce each number"
    lead = (
        "Check out the commit, install with `constraints.txt`, and run the command; the text has to have the same digest, "
        f"and speeds compare on the same machine only. Addresses of MLflow lead to {SERVER}, while `{stored('ui')}` runs."
    )
    if not report.sources:
        text = "This report knows of no run and no record, so it has no number to reproduce."
        return Section("sources", title, lead, (Missing(text, stored("run stage=mvp1")),))
    columns = (
        Column("run or record", "name"), Column("command", "words"), Column("commit", "words"), Column("configuration", "words"),
        Column("text", "words"), Column("hardware", "words"), Column("started", "words"), Column("MLflow", "words"),
    )  # fmt: skip
    rows = tuple(_source(one) for one in report.sources)
    return Section("sources", title, lead, (Table(plural(len(rows), "source"), columns, rows),))


def _source(one: Source) -> tuple[Cell, ...]:
    dirty = Cell(
        text=one.commit[:12] or "unknown",
        code=True,
        note="with uncommitted changes" if one.dirty else "",
        tone="unsure",
    )
    clean = Cell(text=one.commit[:12] or "unknown", code=True, tone="" if one.commit else "unsure")
    return (
        Cell(text=one.name, note=one.kind, anchor=anchor(one.name)),
        Cell(text=one.command or "unknown", code=True),
        dirty if one.dirty else clean,
        Cell(text=one.fingerprint or "unknown", code=True),
        Cell(text=one.data_digest[:16] or "none", code=True),
        Cell(text=one.hardware or "unknown", note=one.machine),
        Cell(text=moment(one.started), sort=one.started),
        _mlflow(one.mlflow),
    )


def _mlflow(path: str | None) -> Cell:
    """A link into the store's pages; an address that is none of MLflow's stays text."""
    if not path:
        return Cell(text="not recorded there", tone="muted")
    if RUN_PAGE.fullmatch(path):
        return Cell(text="open the run", link=SERVER + path, note=path)
    return Cell(text=path, code=True)


def problems(report: Report) -> Section:
    """What is missing and what went wrong, or that nothing did."""
    lead = "What a reader may look for and does not find, and what could not be read."
    blocks: list[Block] = []
    if report.missing:
        blocks.append(Points(report.missing, "unsure"))
    if report.problems:
        blocks += [Words("Problems while this report was made:"), Points(report.problems, "bad")]
    if not blocks:
        blocks.append(Words("Nothing is missing, and everything could be read."))
    return Section("missing", "Missing data and problems", lead, tuple(blocks))
