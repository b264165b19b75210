"""The lines about exits in a run's closing summary."""

from collections.abc import Mapping

from rich import box
from rich.table import Table

from superblock.config.model import STAGE_DEPTHS


def exit_table(exits: Mapping[str, Mapping[str, float]]) -> Table | None:
    """One row for each exit that a stage ends at and for the whole model; None where there is no early one.

    Args:
        exits: as in `RunSummary.exits`.
    """
    depths = sorted(map(int, exits))
    if len(depths) < 2:
        return None
    shown = {str(s): exits[str(s)] for s in depths if s in STAGE_DEPTHS or s == depths[-1]}
    trained = any("trained_bits_per_byte" in values for values in shown.values())
    speed = any("tokens_per_second" in values for values in shown.values())
    table = Table(box=box.SIMPLE_HEAD, show_edge=False, pad_edge=False, collapse_padding=True)
    table.caption, table.caption_justify = "exits, test split", "left"
    for title in ("exit_at", "bits/byte", *(["trained there"] * trained), *(["tokens/s"] * speed)):
        table.add_column(title, justify="right", no_wrap=True)
    for s, values in shown.items():
        cells = [s, f"{values['bits_per_byte']:.3f}"]
        if trained:
            cells.append(_beside(values["bits_per_byte"], values.get("trained_bits_per_byte")))
        if speed:
            cells.append(f"{values['tokens_per_second']:,.0f}" if "tokens_per_second" in values else "")
        table.add_row(*cells)
    return table


def _beside(value: float, other: float | None) -> str:
    return "" if other is None else f"{other:.3f} ({value / other - 1:+.1%})"
