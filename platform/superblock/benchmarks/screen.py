"""What a person sees of a benchmark: a line when a case is done, a table at the end."""

import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

from rich import box
from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn
from rich.table import Table
from rich.text import Text

from superblock.benchmarks.records import Record

WIDTH = 116
"""Of the table where the output is no terminal."""


class Screen:
    """Lines for files and pipes, and below them a moving bar on a terminal."""

    def __init__(self, console: Console | None = None) -> None:
        self.console = console or Console(file=sys.stdout)
        if not self.console.is_terminal:
            self.console.width = WIDTH
        self._progress: Progress | None = None
        self._task: Any = None

    @contextmanager
    def cases(self, count: int) -> Iterator[None]:
        """Shows on a terminal which of how many cases runs; redrawn only between cases, so as not to disturb them."""
        columns = (
            BarColumn(bar_width=24),
            TextColumn("{task.completed}/{task.total}"),
            TimeElapsedColumn(),
            TextColumn("{task.description}"),
        )
        shown = self.console.is_terminal
        with Progress(
            *columns, console=self.console, transient=True, auto_refresh=False, disable=not shown
        ) as progress:
            self._progress, self._task = progress, progress.add_task("", total=count)
            yield
        self._progress = None

    def begin(self, case: str) -> None:
        """The case that runs now."""
        if self._progress:
            self._progress.update(self._task, description=case, refresh=True)

    def end(self, line: str) -> None:
        """A case is over."""
        self.line(line)
        if self._progress:
            self._progress.advance(self._task)

    def line(self, text: str) -> None:
        """A line as it is."""
        self.console.print(text, highlight=False, markup=False, soft_wrap=True)

    def table(self, record: Record) -> None:
        """Every case and variant of a record."""
        if record.cases:
            self.console.print(table(record))
        for line in remarks(record):
            self.line(line)


def summary_line(case: str, entry: Mapping[str, Any]) -> str:
    """`train/s1/b4-t512  superblock-bf16 160.2 ms, 3.10x of transformers-bf16`."""
    variants: Mapping[str, Any] = entry["variants"]
    own = [name for name, v in variants.items() if not v["baseline"]]
    name = min(own, key=lambda n: variants[n]["ms"]["median"])
    best = variants[name]
    text = f"{case:<22}  {name} {milliseconds(best['ms']['median'])} ms"
    if best["ratio"]:
        text += f", {best['ratio']['median']:.2f}x of {entry['fastest_baseline']}"
    if best.get("memory_ratio"):
        text += f", {best['memory_ratio']:.2f} of its memory"
    if entry["disturbed"]:
        text += f"; {entry['disturbed']} disturbed samples repeated"
    if entry["kept_disturbed"]:
        text += f"; {entry['kept_disturbed']} stayed disturbed"
    return f"{text}  ({entry['seconds']:.0f} s)"


def table(record: Record) -> Table:
    """A row per variant; the ratio stands at those that have a baseline to be compared with."""
    shown = Table(box=box.SIMPLE_HEAD, show_edge=False, pad_edge=False, collapse_padding=True)
    shown.add_column("case", no_wrap=True)
    shown.add_column("variant", no_wrap=True)
    for title in ("ms", "min", "max", "tokens/s", "GFLOP/s", "limit", "MiB", "ratio"):
        shown.add_column(title, justify="right", no_wrap=True)
    for case, entry in record.cases.items():
        for number, (name, v) in enumerate(entry["variants"].items()):
            star = " *" if name == entry["fastest_baseline"] else ""
            shown.add_row(
                case if number == 0 else "",
                name + star,
                *(milliseconds(v["ms"][key]) for key in ("median", "min", "max")),
                _number(v["tokens_per_second"]),
                "" if v["flops_per_second"] is None else f"{v['flops_per_second'] / 1e9:,.1f}",
                "" if v["matmul_share"] is None else f"{v['matmul_share']:.0%}",
                "" if v["peak_bytes"] is None else f"{v['peak_bytes'] / 2**20:,.0f}",
                Text(f"{v['ratio']['median']:.2f}x", style="bold") if v["ratio"] else "",
            )
        shown.add_section()
    return shown


def remarks(record: Record) -> Iterator[str]:
    """What the table does not say."""
    yield "ms per call; ratio: how many times faster than the fastest baseline (*), the median of paired samples"
    limits = ", ".join(f"{name} {value / 1e9:,.0f} GFLOP/s" for name, value in record.limits.items())
    if limits:
        yield f"limit: share of what plain matrix products reach here ({limits})"
    around = record.cases.get("around/step", {}).get("variants", {}).get("whole-run")
    if around:
        yield f"around a step: {around['beyond_baseline_ms']:.2f} ms for loop, callbacks, tracking and loader"
    c = record.contention
    if c.get("blind"):
        yield "contention: this system's counters stand still, so disturbed samples cannot be told"
    elif c.get("disturbed") or c.get("kept_disturbed"):
        yield (
            f"contention: {c['disturbed']} samples repeated because something else used the processors, "
            f"{c['kept_disturbed']} of {c['samples']} kept though disturbed"
        )
    for name, reason in record.failed.items():
        yield f"failed: {name}: {reason}"
    if record.skipped:
        yield f"not run: {', '.join(record.skipped)} ({next(iter(record.skipped.values()))})"


def milliseconds(value: float) -> str:
    """Three digits or more: 0.0123, 1.23, 1,234."""
    return f"{value:,.0f}" if value >= 1000 else f"{value:.1f}" if value >= 100 else f"{value:.3g}"


def _number(value: float | None) -> str:
    return "" if value is None else f"{value:,.0f}"
