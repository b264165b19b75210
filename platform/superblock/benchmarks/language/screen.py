"""What a person sees of the language suite: a row per run, a row per package, and lines over the context."""

from collections import defaultdict
from collections.abc import Mapping, Sequence
from statistics import fmean
from typing import Any

from rich import box
from rich.table import Table

from superblock.tracking.runs import RunRecord

PACKAGES = 12
"""Rows shown; the file has all."""
Measured = Sequence[tuple[RunRecord, Mapping[str, Any]]]


def runs_table(found: Measured) -> Table:
    """Totals of each run, and bits per byte with the least, a middle and the longest context."""
    caption = f"{found[0][1]['split']} text; in brackets the 95 % interval over blocks of it; 1-4 and so on: tokens of context"
    if any(one["beyond"] for _, one in found):
        caption += f"; beyond {trained_length(found)} no model was trained, it extrapolates"
    table = _table(caption)
    for title in ("run", "bits/byte", "", "perplexity", "top-1", "top-5"):
        table.add_column(title, justify="left" if title == "run" else "right", no_wrap=True)
    shown = _stretches(found)
    for name in shown:
        table.add_column(name, justify="right", no_wrap=True)
    for run, one in found:
        low, high = one["intervals"]["bits_per_byte"]
        at = {p["name"]: p["bits_per_byte"] for p in (*one["positions"], *one["beyond"])}
        table.add_row(
            run.name,
            f"{one['bits_per_byte']:.4f}",
            "" if low is None else f"[{low:.3f}, {high:.3f}]".replace("[", "\\["),
            f"{one['perplexity']:,.2f}",
            f"{one['accuracy']:.1%}",
            f"{one['accuracy_top5']:.1%}",
            *(_bits(at.get(name)) for name in shown),
        )
    return table


def packages_table(found: Measured) -> Table | None:
    """Bits per byte of each package, averaged over the runs of a stage; None where the text has no packages."""
    groups = _groups(found)
    rows: dict[str, dict[str, float]] = defaultdict(dict)
    sizes: dict[str, int] = {}
    for label, ones in groups.items():
        for package in (p for one in ones for p in one["packages"]):
            sizes[package["name"]] = package["bytes"]
            same = [p["bits_per_byte"] for one in ones for p in one["packages"] if p["name"] == package["name"]]
            rows[package["name"]][label] = fmean(same)
    if not rows:
        return None
    rest = len(rows) - PACKAGES
    table = _table(f"{rest} smaller ones are in the files" if rest > 0 else None)
    table.add_column("package", no_wrap=True)
    table.add_column("bytes", justify="right", no_wrap=True)
    for label in groups:
        table.add_column(label, justify="right", no_wrap=True)
    for name in sorted(rows, key=lambda name: (-sizes[name], name))[:PACKAGES]:
        table.add_row(name, f"{sizes[name]:,}", *(_bits(rows[name].get(label)) for label in groups))
    return table


def curves(found: Measured) -> dict[str, list[tuple[int, float]]]:
    """Bits per byte by the end of each stretch, averaged over the runs of a stage."""
    lines = {}
    for label, ones in _groups(found).items():
        at: dict[int, list[float]] = defaultdict(list)
        for one in ones:
            for p in (*one["positions"], *one["beyond"]):
                if p["bits_per_byte"] is not None:
                    at[p["up_to"]].append(p["bits_per_byte"])
        lines[label] = [(end, fmean(at[end])) for end in sorted(at)]
    return lines


def trained_length(found: Measured) -> int:
    """Tokens of a training sequence, the longest of all runs."""
    return max(int(one["sequence_length"]) for _, one in found)


def _groups(found: Measured) -> dict[str, list[Mapping[str, Any]]]:
    """Results by what differs: the stage, and the scale and arm where there are several."""
    scales, arms = {run.scale for run, _ in found}, {run.arm for run, _ in found}
    groups: dict[str, list[Mapping[str, Any]]] = defaultdict(list)
    for run, one in found:
        parts = (run.stage, run.scale if len(scales) > 1 else "", run.arm if len(arms) > 1 else "")
        groups[" ".join(part for part in parts if part)].append(one)
    return groups


def _stretches(found: Measured) -> list[str]:
    """The first, a middle and the last within training, and all beyond it."""
    names = [p["name"] for p in found[0][1]["positions"]]
    chosen = list(dict.fromkeys([names[0], names[len(names) // 2], names[-1]]))
    return chosen + [p["name"] for p in found[0][1]["beyond"]]


def _bits(value: float | None) -> str:
    return "" if value is None else f"{value:.3f}"


def _table(caption: str | None) -> Table:
    table = Table(box=box.SIMPLE_HEAD, show_edge=False, pad_edge=False, collapse_padding=True)
    table.caption, table.caption_justify = caption, "left"
    return table
