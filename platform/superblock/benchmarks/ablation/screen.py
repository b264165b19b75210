"""What a person sees of an experiment: the plan, a line per run with the time that is left, tables at the end."""

import time
from collections.abc import Collection, Iterable, Mapping, Sequence
from typing import Any

from rich import box
from rich.table import Table

from superblock.benchmarks.ablation.plan import Run, arms_of
from superblock.benchmarks.ablation.record import Record
from superblock.benchmarks.screen import Screen

SMALL_MODEL_SHARE = 0.25
"""Of the limit of matrix products that training at scale mini reached here, evaluation not counted."""
EVALUATION_STEPS = 35
"""Training steps in whose time the whole validation and test split are evaluated, about, at scale mini."""


class Lines:
    """The lines of one process; every process that shares an experiment has its own."""

    def __init__(self, screen: Screen, runs: Sequence[Run], machine: str) -> None:
        self.screen, self.machine = screen, machine
        self._number = {run.name: number for number, run in enumerate(runs, 1)}
        self._width = max(map(len, self._number), default=0)

    def plan(self, runs: Sequence[Run], record: Record) -> None:
        """Arms, runs and seconds, before anything is trained."""
        for group, arm, members in arms_of(runs):
            seconds = sum(record.planned[run.name]["seconds"] for run in members)
            steps, seeds = members[0].steps, ",".join(str(run.seed) for run in members)
            words = " ".join(members[0].words) or ("what the best arm has" if members[0].late_words else "")
            self.screen.line(
                f"  {group + '/' + arm:<24} {len(members):>2} x {seconds / len(members):>4.0f} s  "
                f"{steps:>4} steps of {members[0].superblocks} superblocks, seeds {seeds}  {words}".rstrip()
            )
        left = [run for run in runs if run.name not in record.runs]
        self.screen.line(
            f"{len(left)} of {len(runs)} runs to do, about {minutes(self.left(record))} of one process's work; the same "
            "command started a second time shares it"
        )

    def begin(self, run: Run) -> None:
        """A run begins; shown on a terminal alone, until its result replaces it."""
        if self.screen.console.is_terminal:
            self.screen.console.print(f"{run.name} ...", end="\r", highlight=False, markup=False)

    def done(self, run: Run, entry: Mapping[str, Any], record: Record) -> None:
        """`[12/51] 1-3/identity/s2  test 1.7213 bits per byte, 120 steps, 31 s; 39 runs, about 22 min of work left`."""
        left = [name for name in record.planned if name not in record.runs]
        rest = f"{len(left)} runs, about {minutes(self.left(record))} of work left" if left else "all done"
        self._say(
            run,
            f"test {entry['test']:.4f} bits per byte, {entry['steps']} steps, {entry['seconds_in_all']:.0f} s; {rest}",
        )

    def failed(self, run: Run, reason: str, record: Record) -> None:
        """A run came to nothing."""
        self._say(run, f"failed: {reason}")

    def waiting(self, count: int) -> None:
        """Other processes have all that could be done now."""
        self.screen.line(f"{time.strftime('%H:%M:%S')} waiting for runs of other processes, {count} left")

    def left(self, record: Record) -> float:
        """See `seconds_left`."""
        return seconds_left(record, self.machine)

    def _say(self, run: Run, text: str) -> None:
        number = f"[{self._number[run.name]}/{len(self._number)}]"
        self.screen.line(f"{time.strftime('%H:%M:%S')} {number:<8} {run.name:<{self._width}}  {text}")


def seconds_left(record: Record, machine: str, only: Collection[str] | None = None) -> float:
    """Seconds of one process for what is planned and not recorded, by what runs have taken on this machine so far.

    Args:
        only: names of the runs that count; None is all that are planned.
    """
    done = [name for name, entry in record.runs.items() if entry["machine"] == machine and name in record.planned]
    planned = sum(record.planned[name]["seconds"] for name in done)
    factor = sum(record.runs[name]["seconds_in_all"] for name in done) / planned if planned else 1.0
    names = [name for name in record.planned if name not in record.runs and (only is None or name in only)]
    return factor * sum(record.planned[name]["seconds"] for name in names)


def planned(runs: Iterable[Run], matmul_limit: float) -> dict[str, dict[str, float]]:
    """FLOPs, steps and, roughly, seconds of every run.

    Args:
        matmul_limit: FLOP/s of this process in plain matrix products.
    """
    rate = SMALL_MODEL_SHARE * matmul_limit
    return {
        run.name: {
            "flops": run.flops,
            "steps": run.steps,
            "seconds": round(run.flops * (1 + EVALUATION_STEPS / run.steps) / rate, 1),
        }
        for run in runs
    }


def table(titles: Sequence[str], rows: Iterable[Sequence[str]]) -> Table:
    """A table whose first column is text and whose others are numbers."""
    shown = Table(box=box.SIMPLE_HEAD, show_edge=False, pad_edge=False, collapse_padding=True)
    for number, title in enumerate(titles):
        shown.add_column(title, justify="right" if number else "left", no_wrap=True)
    for row in rows:
        shown.add_row(*row)
    return shown


def interval_text(interval: Mapping[str, Any] | None, scale: float = 1.0, digits: int = 4) -> str:
    """`-0.0213 [-0.0301, -0.0125]`; the mean alone where one value allows no interval."""
    if interval is None:
        return ""
    mean = f"{scale * interval['mean']:+.{digits}f}"
    if interval["low"] is None:
        return mean
    return f"{mean} [{scale * interval['low']:+.{digits}f}, {scale * interval['high']:+.{digits}f}]"


def minutes(seconds: float) -> str:
    """`22 min`, or seconds below two minutes."""
    return f"{seconds / 60:.0f} min" if seconds >= 120 else f"{seconds:.0f} s"


def failures(record: Record) -> list[str]:
    """A line for each run that came to nothing, and for what the runs do not share though they should."""
    lines = [f"failed: {name}: {failure['reason']}" for name, failure in record.failed.items()]
    if len(record.commits) > 1:
        lines.append(f"the runs come from {len(record.commits)} states of the code: {', '.join(record.commits)}")
    if len({entry.get("data") for entry in record.runs.values()}) > 1:  # probes make their own
        lines.append("the runs read different texts, so that their bits per byte cannot be compared")
    return lines
