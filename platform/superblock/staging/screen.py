"""What a person sees of several stages: a table above the progress bar, printed whenever a stage changes its state."""

import time
from collections.abc import Sequence
from dataclasses import dataclass, field

from rich import box
from rich.console import Console
from rich.padding import Padding
from rich.table import Table
from rich.text import Text

from superblock.callbacks.progress import duration
from superblock.evaluation.summary import short

WAITING, RUNNING, CHECKING, PROMOTED, KEPT, DONE, FAILED, STOPPED = (
    "waiting", "running", "checking gates", "promoted", "already promoted", "trained, not registered", "failed", "stopped",
)  # fmt: skip
_STYLES = {
    RUNNING: "bold", CHECKING: "bold", PROMOTED: "green", KEPT: "green", DONE: "", FAILED: "bold red", STOPPED: "yellow",
    WAITING: "dim",
}  # fmt: skip


@dataclass
class Row:
    """One stage of the table. `None` is not known yet."""

    stage: str
    superblocks: int
    minutes: float | None
    """Expected, from the prediction or the budget."""
    state: str = WAITING
    parent: str | None = None
    bits_per_byte: float | None = None
    lineage_flops: float | None = None
    note: str = ""
    began: float | None = field(default=None, repr=False)
    seconds: float | None = None
    """Taken, where it has ended in this process."""


class Board:
    """The stages of one pipeline and how far they are; a rich renderable.

    Args:
        rows: in the order in which they run.
        console: where to print it.
    """

    def __init__(self, rows: Sequence[Row], console: Console) -> None:
        self.rows = {row.stage: row for row in rows}
        self.console = console
        self._left: float | None = None  # seconds of training, as the progress bar has them

    def begin(self, stage: str, state: str = RUNNING) -> None:
        """A stage's turn. On a terminal the table is above the progress bar from now on."""
        row = self.rows[stage]
        row.state, self._left = state, None
        if row.began is None:
            row.began = time.monotonic()
        if not self.console.is_terminal:
            self.show()

    def end(self, stage: str, state: str, note: str = "") -> None:
        """A stage is over, for this time."""
        row = self.rows[stage]
        row.state, row.note = state, note
        if row.began is not None:
            row.seconds = time.monotonic() - row.began
        self.show()

    def training(self, seconds_left: float) -> None:
        """Told by the progress bar while a stage trains."""
        self._left = seconds_left

    def show(self) -> None:
        """Prints the table as it is."""
        self.console.print(self)

    def seconds_left(self) -> float | None:
        """Of all stages that are not over, as far as it can be known."""
        left = 0.0
        for row in self.rows.values():
            if row.state in (RUNNING, CHECKING):
                left += self._row_left(row) or 0.0
            elif row.state == WAITING:
                if row.minutes is None:
                    return None
                left += row.minutes * 60
        return left

    def __rich__(self) -> Padding:
        table = Table(box=box.SIMPLE_HEAD, show_edge=False, pad_edge=False, collapse_padding=True)
        for title, justify in (
            ("stage", "left"), ("superblocks", "right"), ("state", "left"), ("bits/byte", "right"), ("time", "right"),
            ("lineage FLOPs", "right"), ("", "left"),
        ):  # fmt: skip
            table.add_column(title, justify=justify, no_wrap=title != "")  # type: ignore[arg-type]
        for row in self.rows.values():
            table.add_row(
                row.stage,
                str(row.superblocks),
                Text(row.state, style=_STYLES[row.state]),
                "" if row.bits_per_byte is None else f"{row.bits_per_byte:.3f}",
                self._time(row),
                "" if row.lineage_flops is None else short(row.lineage_flops),
                row.note or (f"from {row.parent}" if row.parent else ""),
            )
        left = self.seconds_left()
        if left and len(self.rows) > 1:
            table.caption, table.caption_justify = f"about {duration(left)} left in all", "left"
        return Padding(table, (1, 0, 1, 2), expand=False)

    def _time(self, row: Row) -> str:
        if row.seconds is not None and row.state not in (RUNNING, CHECKING):
            return duration(row.seconds)
        if row.state in (RUNNING, CHECKING):
            left = self._row_left(row)
            return f"{duration(left)} left" if left is not None else ""
        if row.state == WAITING and row.minutes is not None:
            return f"about {duration(row.minutes * 60)}"
        return ""

    def _row_left(self, row: Row) -> float | None:
        """Of the stage that runs: what the bar says, and what follows training as it was expected."""
        if self._left is not None and row.state == RUNNING:
            return self._left
        if row.minutes is None or row.began is None:
            return None
        return max(0.0, row.minutes * 60 - (time.monotonic() - row.began))
