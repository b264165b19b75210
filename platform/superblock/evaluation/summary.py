"""The closing summary of a run: what a person sees last, and `summary.json` for whoever reads it later."""

import json
import math
import sys
from collections.abc import Iterable, Iterator
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from rich import box
from rich.console import Console
from rich.padding import Padding
from rich.table import Table
from rich.text import Text

from superblock.config.typed import typed
from superblock.evaluation.exit_table import exit_table
from superblock.tracking.files import write_json

WIDTH = 100
REFERENCE_TITLES = {"unigram": "unigram", "trigram": "trigram", "xz": "xz -9e"}


@dataclass
class SplitResult:
    """Quality on one split, and what simpler models need for the same text."""

    perplexity: float
    bits_per_byte: float
    accuracy_top1: float | None = None
    references: dict[str, float] = field(default_factory=dict)
    """Bits per byte on this split by name, in the order shown: unigram, trigram, xz, the previous stage's best run."""


@dataclass
class RunSummary:
    """Everything the closing summary says. `None` is not known, and not shown."""

    name: str
    stage: str
    scale: str
    steps: int
    tokens: int
    minutes: float
    parameters_total: int
    parameters_active: int
    splits: dict[str, SplitResult] = field(default_factory=dict)
    """Results by split: `validation` and `test`."""
    tokens_per_second: float | None = None
    flops_per_second: float | None = None
    matmul_share: float | None = None
    """Model FLOP/s as a share of what plain matrix products reach on this device."""
    peak_memory_bytes: int | None = None
    checkpoint: str | None = None
    data_digest: str | None = None
    """Digest of the text: bits per byte of two runs compare only where it is the same."""
    next_stage: str | None = None
    seed: int | None = None
    minutes_in_all: float | None = None
    """From the command's start to this summary."""
    parent: str | None = None
    """Run that the weights began from."""
    flops: float | None = None
    """Of this run's training, forward and backward."""
    lineage: list[dict[str, Any]] = field(default_factory=list)
    """This run and those it came from, oldest first: `training.lineage.Ancestor`."""
    lineage_flops: float | None = None
    """Of the training of all of them."""
    growth: dict[str, Any] | None = None
    """What was measured when the weights were taken over: `training.growing.Boundary`."""
    exits: dict[str, dict[str, float]] = field(default_factory=dict)
    """By number of superblocks, the exits that learnt and the model itself: `bits_per_byte`, `perplexity`,
    `tokens_per_second` on the test split (speed is missing where it was not measured), and `trained_bits_per_byte` where
    the model it grew from at that depth is known."""
    prediction: dict[str, Any] | None = None
    """What was predicted before training: `planning.prediction`."""

    def save(self, path: Path) -> None:
        """Writes the summary as JSON; the file is either old or new, never half."""
        write_json(path, asdict(self))

    @classmethod
    def load(cls, path: Path) -> "RunSummary":
        """Reads what `save` wrote."""
        data: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
        splits = {name: SplitResult(**values) for name, values in data.pop("splits").items()}
        return cls(**data, splits=splits)


def wide_console() -> Console:
    """Standard output; 100 columns where it is no terminal, since rich takes 80 for files."""
    return Console(width=None if sys.stdout.isatty() else WIDTH)


def render(summary: RunSummary, console: Console) -> None:
    """Prints the summary, at most 100 columns wide, in plain ASCII where the console knows no more."""
    width = min(WIDTH, console.width)
    console.print(Text(f"\n{summary.name}: stage {summary.stage} at scale {summary.scale}", style="bold"))
    for label, text in _facts(summary):
        line = Text.assemble((f"  {label:<12}", "dim"), text)
        console.print(
            line, width=width if label != "checkpoint" else None, soft_wrap=label == "checkpoint", highlight=False
        )
    if summary.splits:
        console.print(
            Padding(_quality(summary, ascii_only=console.options.ascii_only), (1, 0, 0, 2), expand=False), width=width
        )
    if (exits := exit_table(summary.exits)) is not None:
        console.print(Padding(exits, (1, 0, 0, 2), expand=False), width=width)
    if rows := list(_foreseen(summary)):
        table = _predicted(rows, (summary.prediction or {}).get("confidence"), ascii_only=console.options.ascii_only)
        console.print(Padding(table, (1, 0, 0, 2), expand=False), width=width)
    console.print(Text("\nNext", style="bold"))
    for command in next_commands(summary):
        console.print(f"  {command}", highlight=False, markup=False, soft_wrap=True)


def next_commands(summary: RunSummary) -> list[str]:
    """What to type next."""
    commands = [typed("ui"), typed(f'generate run={summary.name} prompt="def "')]
    if summary.next_stage:
        scale = "" if summary.scale == "tiny" else f" scale={summary.scale}"
        commands.append(typed(f"run stage={summary.next_stage}{scale}"))
    return commands


def _facts(s: RunSummary) -> Iterator[tuple[str, str]]:
    yield "parameters", f"{short(s.parameters_total)} total, {short(s.parameters_active)} active per token"
    yield "training", f"{s.steps:,} steps, {short(s.tokens)} tokens, {s.minutes:.1f} minutes"
    if s.parent is not None and s.lineage_flops is not None:
        route = " -> ".join(str(one["superblocks"]) for one in s.lineage)
        method = (s.growth or {}).get("method", "?")
        yield "lineage", f"{route} superblocks by {method}, from {s.parent}; {short(s.lineage_flops)} FLOPs in all"
    speed = []
    if s.tokens_per_second is not None:
        speed.append(f"{s.tokens_per_second:,.0f} tokens/s")
    if s.flops_per_second is not None:
        speed.append(f"{short(s.flops_per_second / 1e9)} GFLOP/s")
    if s.matmul_share is not None:
        speed.append(f"{s.matmul_share:.0%} of the matmul limit here")
    if speed:
        yield "speed", ", ".join(speed)
    if s.peak_memory_bytes is not None:
        yield "memory", f"{s.peak_memory_bytes / 2**30:.2f} GiB at most"
    if s.checkpoint is not None:
        yield "checkpoint", s.checkpoint


def _quality(summary: RunSummary, *, ascii_only: bool) -> Table:
    """One row per split; a reference point is marked where the model needs fewer bits."""
    names = list(dict.fromkeys(name for result in summary.splits.values() for name in result.references))
    mark = "*" if ascii_only else "✓"
    accuracy = any(result.accuracy_top1 is not None for result in summary.splits.values())
    table = Table(box=box.SIMPLE_HEAD, show_edge=False, pad_edge=False, collapse_padding=True)
    table.caption, table.caption_justify = f"bits per byte; {mark} where the model needs fewer", "left"
    table.add_column("split", no_wrap=True)
    for title in (
        "perplexity",
        *(["top-1"] if accuracy else []),
        "bits/byte",
        *(REFERENCE_TITLES.get(n, n) for n in names),
    ):
        table.add_column(title, justify="right", no_wrap=True)
    for split, result in summary.splits.items():
        cells = [Text(f"{result.perplexity:,.2f}")]
        if accuracy:
            cells.append(Text("" if result.accuracy_top1 is None else f"{result.accuracy_top1:.1%}"))
        cells.append(Text(f"{result.bits_per_byte:.3f}", style="bold"))
        cells += [_against(result.bits_per_byte, result.references.get(name), mark) for name in names]
        table.add_row(split, *cells)
    return table


def _against(value: float, reference: float | None, mark: str) -> Text:
    if reference is None or math.isnan(reference):
        return Text("")
    below = value < reference
    return Text(f"{mark} {reference:.3f}" if below else f"{reference:.3f}", style="green" if below else "")


FORESEEN = {"bits_per_byte": ("bits per byte", 1, 3), "minutes": ("minutes of training", 1, 1), "minutes_in_all": ("minutes in all", 1, 1),
            "memory_bytes": ("memory, GiB", 2**30, 2)}  # fmt: skip
"""Quantities of a prediction that are measured: their title, unit and digits."""


def measured(summary: RunSummary) -> dict[str, float]:
    """What came of the quantities that a prediction names."""
    test = summary.splits.get("test")
    found = {
        "bits_per_byte": test.bits_per_byte if test else None,
        "minutes": summary.minutes,
        "minutes_in_all": summary.minutes_in_all,
        "memory_bytes": summary.peak_memory_bytes,
    }
    return {name: value for name, value in found.items() if value is not None}


def _foreseen(summary: RunSummary) -> Iterator[tuple[str, dict[str, float], float]]:
    """Name, estimate and measured value of what was predicted before training."""
    for name, value in measured(summary).items():
        if estimate := (summary.prediction or {}).get(name):
            yield name, estimate, value


def _predicted(
    rows: Iterable[tuple[str, dict[str, float], float]], confidence: float | None, *, ascii_only: bool
) -> Table:
    """One row per quantity: what was predicted, its interval, what was measured, and whether that lies inside."""
    mark, dash = ("*", "-") if ascii_only else ("✓", "–")
    table = Table(box=box.SIMPLE_HEAD, show_edge=False, pad_edge=False, collapse_padding=True)
    share = "" if confidence is None else f"{confidence:.0%} "
    table.caption, table.caption_justify = f"{mark} where the measured value lies in the {share}interval", "left"
    table.add_column("before training", no_wrap=True)
    for title in ("predicted", "interval", "measured"):
        table.add_column(title, justify="right", no_wrap=True)
    for name, estimate, value in rows:
        title, unit, digits = FORESEEN[name]
        middle, low, high, came = (
            f"{v / unit:.{digits}f}" for v in (estimate["value"], estimate["low"], estimate["high"], value)
        )
        inside = estimate["low"] <= value <= estimate["high"]
        last = Text(f"{mark} {came}" if inside else came, style="green" if inside else "")
        table.add_row(title, middle, f"{low} {dash} {high}", last)
    return table


def short(value: float) -> str:
    """A number in three or four digits with a unit: 7.54M, 235.37B, 812."""
    for factor, unit in ((1e15, "P"), (1e12, "T"), (1e9, "B"), (1e6, "M"), (1e3, "k")):
        if abs(value) >= factor:
            return f"{value / factor:.2f}{unit}"
    return f"{value:.0f}"
