"""The end of an experiment whose runs lie in one record: what follows from them, on the screen and beside the record."""

from collections.abc import Callable, Collection, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING

from rich.table import Table

from superblock.benchmarks.ablation.record import Record, RecordFile, finish
from superblock.benchmarks.ablation.screen import failures
from superblock.benchmarks.records import COMPLETE
from superblock.benchmarks.screen import Screen

if TYPE_CHECKING:
    from matplotlib.figure import Figure


@dataclass(frozen=True)
class Closing:
    """What an experiment's runs come to."""

    conclude: Callable[[Record], None]
    """Fills `results` and `says` from the runs there are."""
    tables: Callable[[Record], Iterable[tuple[str, Table]]]
    """Titles and tables."""
    picture: "Callable[[Record], Callable[[], Figure] | None]"
    """What makes the figure; None where there is nothing to draw."""


def close(file: RecordFile, closing: Closing, chosen: Collection[str], screen: Screen) -> int:
    """Says and draws what follows from the runs there are.

    Args:
        file: the experiment's record, in whose folder the picture `<suite>.svg` and `.png` is written.
        closing: what they come to.
        chosen: names of the runs that this start was to do.
        screen: where it is said.

    Returns:
        Status of the process: 0, or 1 if a run failed.
    """

    def settle(record: Record) -> None:
        finish(record)
        closing.conclude(record)

    record = file.update(settle)
    for title, table in closing.tables(record):
        screen.line(f"\n{title}")
        screen.console.print(table)
    screen.line("")
    for line in [*record.says, *failures(record)]:
        screen.line(line)
    if make := closing.picture(record):
        from superblock.evaluation.curve import write_picture

        for kind in ("svg", "png"):
            write_picture(make, file.folder / f"{file.suite}.{kind}")
        screen.line(f"picture: {file.folder / file.suite}.png")
    left = [name for name in chosen if name not in record.runs]
    if left:
        screen.line(f"{len(left)} of {len(chosen)} runs are left; to go on: the same command")
    elif record.status == COMPLETE:
        screen.line("every run is done")
    screen.line(f"record: {file.path}")
    return 1 if any(name in record.failed for name in left) else 0


@contextmanager
def saying_how_to_go_on(screen: Screen) -> Iterator[None]:
    """A line for whoever stopped an experiment."""
    try:
        yield
    except (KeyboardInterrupt, SystemExit):
        screen.line(
            "stopped; what has finished is recorded, the run that was stopped begins again. To go on: the same command"
        )
        raise
