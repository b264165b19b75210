"""What a run was found to show: the outcome of every gate and claim, on disk, on screen and as metrics.

No torch here, so that a finished run's results are read at once; measuring is the work of `gates` and `claims`.
"""

import math
import sys
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Literal

from rich import box
from rich.console import Console
from rich.padding import Padding
from rich.table import Table
from rich.text import Text

from superblock.config.run import RunConfig
from superblock.tracking.files import read_json, write_json
from superblock.tracking.runs import RunRecord

FILE = "statements.json"
WIDTH = 100

Kind = Literal["gate", "claim"]
Verdict = Literal["passed", "failed", "held", "not held", "undecided"]
Compose = Callable[[Sequence[str]], RunConfig]
Say = Callable[[str], None]

MARKS = {
    "passed": ("✓", "+"),
    "failed": ("✗", "x"),
    "held": ("✓", "+"),
    "not held": ("✗", "x"),
    "undecided": ("?", "?"),
}
"""As Unicode and as ASCII."""
STYLES = {"passed": "green", "failed": "bold red", "held": "green", "not held": "yellow", "undecided": "dim"}


@dataclass(frozen=True)
class Outcome:
    """One statement about one run, with what a person needs to judge it."""

    name: str
    kind: Kind
    verdict: Verdict
    measured: str
    """What was found, in words with numbers."""
    asked: str
    """What would do."""
    because: str
    """Why it is asked."""
    value: float | None = None
    """The number behind `measured`, where there is one, and for a claim its interval."""
    low: float | None = None
    high: float | None = None

    def line(self, *, ascii_only: bool) -> str:
        """The outcome in a few words, for those who wait for the table."""
        return f"{self.kind:7} {MARKS[self.verdict][ascii_only]} {self.name}"


@dataclass
class Statements:
    """Every outcome of a run, gates first."""

    run: str
    outcomes: list[Outcome] = field(default_factory=list)

    @property
    def passed(self) -> bool:
        """Whether every gate passed. Claims never count."""
        return not self.failures

    @property
    def failures(self) -> list[Outcome]:
        """The gates that failed."""
        return [outcome for outcome in self.outcomes if outcome.verdict == "failed"]

    def save(self, folder: Path) -> None:
        """Writes `statements.json` into the run's folder; the file is either old or new, never half."""
        plain = [{key: _to_json(value) for key, value in asdict(outcome).items()} for outcome in self.outcomes]
        write_json(folder / FILE, {"run": self.run, "passed": self.passed, "outcomes": plain})

    @classmethod
    def load(cls, folder: Path) -> "Statements | None":
        """What `save` wrote; None where nothing was measured yet."""
        stored = read_json(folder / FILE)
        if "outcomes" not in stored:
            return None
        return cls(stored["run"], [Outcome(**_from_json(plain)) for plain in stored["outcomes"]])

    def metrics(self) -> dict[str, float]:
        """Numbers for MLflow: `gate/<name>` is 1 or 0, `claim/<name>` the measured value with its interval."""
        values: dict[str, float | None] = {}
        for one in self.outcomes:
            if one.kind == "gate":
                values[f"gate/{one.name}"] = float(one.verdict == "passed")
            else:
                values |= {f"claim/{one.name}": one.value}
                values |= {f"claim/{one.name}/low": one.low, f"claim/{one.name}/high": one.high}
        return {name: value for name, value in values.items() if value is not None and math.isfinite(value)}

    def tags(self) -> dict[str, str]:
        """Labels for MLflow, by which runs are filtered: `gates`, and the verdict of every claim."""
        failed = ", ".join(outcome.name for outcome in self.failures)
        verdicts = {f"claim.{one.name}": one.verdict for one in self.outcomes if one.kind == "claim"}
        return {"gates": f"failed: {failed}" if failed else "passed"} | verdicts


def evaluate(run: RunRecord, config: RunConfig, *, compose: Compose, say: Say) -> Statements:
    """Measures every gate and claim of `config.stage` on a finished run, says each, and saves them in its folder.

    Nothing is trained but the 40 small steps of the gate `resume`. A second evaluation finds the same. A measurement
    that fails is a failed gate or an undecided claim, and says why.

    Args:
        config: the run's own, as it was trained; its `stage` holds what is asked.
        compose: makes another configuration of `run` from words of a command line.
        say: shows a line.
    """
    from superblock.staging.claims import CLAIMS  # they import torch
    from superblock.staging.evidence import Evidence, measure
    from superblock.staging.gates import GATES

    evidence = Evidence(run, config, compose)
    statements, ascii_only = Statements(run.name), not speaks_unicode()
    for name, gate in config.stage.gates.items():
        statements.outcomes.append(measure(evidence, "gate", name, gate, GATES))
        say(statements.outcomes[-1].line(ascii_only=ascii_only))
    for name, claim in config.stage.claims.items():
        statements.outcomes.append(measure(evidence, "claim", name, claim, CLAIMS))
        say(statements.outcomes[-1].line(ascii_only=ascii_only))
    statements.save(run.folder)
    return statements


def render(statements: Statements, console: Console) -> None:
    """Prints the outcomes as two tables, at most 100 columns wide, in plain ASCII where the console knows no more."""
    ascii_only, width = console.options.ascii_only, min(WIDTH, console.width)
    for kind, title in (("gate", "gates"), ("claim", "claims")):
        chosen = [outcome for outcome in statements.outcomes if outcome.kind == kind]
        if chosen:
            table = _table(title, chosen, ascii_only=ascii_only)
            console.print(Padding(table, (1, 0, 0, 2), expand=False), width=width)


def speaks_unicode() -> bool:
    """Whether stdout can show the marks."""
    try:
        "✓✗".encode(getattr(sys.stdout, "encoding", None) or "ascii")
    except (UnicodeEncodeError, LookupError):
        return False
    return True


def _table(title: str, outcomes: Sequence[Outcome], *, ascii_only: bool) -> Table:
    table = Table(box=box.SIMPLE_HEAD, show_edge=False, pad_edge=False, collapse_padding=True)
    table.add_column(title, no_wrap=True)
    table.add_column("", no_wrap=True)
    table.add_column("measured", overflow="fold")
    table.add_column("asked", overflow="fold")
    for one in outcomes:
        verdict = Text(f"{MARKS[one.verdict][ascii_only]} {one.verdict}", style=STYLES[one.verdict])
        table.add_row(Text(one.name), verdict, Text(one.measured), Text(one.asked))
    return table


def _to_json(value: object) -> object:
    """JSON has no infinity: an unbounded interval is written in words."""
    return str(value) if isinstance(value, float) and not math.isfinite(value) else value


def _from_json(plain: dict[str, Any]) -> dict[str, Any]:
    numbers = ("value", "low", "high")
    return {key: float(value) if key in numbers and isinstance(value, str) else value for key, value in plain.items()}
