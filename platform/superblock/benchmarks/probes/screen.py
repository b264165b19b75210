"""What a person sees of the probes while they run: the plan, and a line per run with the time that is left."""

import time
from collections.abc import Mapping, Sequence
from typing import Any

from superblock.benchmarks.ablation.record import Record
from superblock.benchmarks.ablation.screen import minutes, seconds_left
from superblock.benchmarks.probes.runs import ProbeRun
from superblock.benchmarks.screen import Screen


class ProbeLines:
    """The lines of one process; every process that shares the runs has its own."""

    def __init__(self, screen: Screen, runs: Sequence[ProbeRun], machine: str) -> None:
        self.screen, self.runs, self.machine = screen, runs, machine
        self._number = {run.name: number for number, run in enumerate(runs, 1)}
        self._width = max(map(len, self._number), default=0)

    def plan(self, record: Record) -> None:
        """Tasks, runs and seconds, before anything is trained."""
        for task in dict.fromkeys(run.task.name for run in self.runs):
            members = [run for run in self.runs if run.task.name == task]
            arms = ", ".join(dict.fromkeys(run.arm for run in members))
            recipe = members[0].task.recipe
            self.screen.line(
                f"  {task:<28} {len(members):>2} x {recipe.seconds:>4.0f} s  at most {recipe.steps} steps; {arms}"
            )
        left = [run for run in self.runs if run.name not in record.runs]
        self.screen.line(
            f"{len(left)} of {len(self.runs)} runs to do, about {minutes(self._left(record))} of one process's work; the same "
            "command started a second time shares it"
        )

    def begin(self, run: ProbeRun) -> None:
        """A run begins; shown on a terminal alone, until its result replaces it."""
        if self.screen.console.is_terminal:
            self.screen.console.print(f"{run.name} ...", end="\r", highlight=False, markup=False)

    def done(self, run: ProbeRun, entry: Mapping[str, Any], record: Record) -> None:
        """`[3/33] mqar/hybrid/s1  accuracy 0.998 (chance 0.008), 900 steps, 62 s; 30 runs, about 41 min of work left`."""
        left = [run.name for run in self.runs if run.name not in record.runs]
        rest = f"{len(left)} runs, about {minutes(self._left(record))} of work left" if left else "all done"
        self._say(
            run,
            f"{entry['score_name']} {entry['score']:.3f} (chance {entry['chance']:.3f}), {entry['steps']} steps, "
            f"{entry['seconds_in_all']:.0f} s; {rest}",
        )

    def failed(self, run: ProbeRun, reason: str, record: Record) -> None:
        """A run came to nothing."""
        self._say(run, f"failed: {reason}")

    def waiting(self, count: int) -> None:
        """Other processes have all that could be done now."""
        self.screen.line(f"{time.strftime('%H:%M:%S')} waiting for runs of other processes, {count} left")

    def _left(self, record: Record) -> float:
        return seconds_left(record, self.machine, only={run.name for run in self.runs})

    def _say(self, run: ProbeRun, text: str) -> None:
        number = f"[{self._number[run.name]}/{len(self._number)}]"
        self.screen.line(f"{time.strftime('%H:%M:%S')} {number:<8} {run.name:<{self._width}}  {text}")
