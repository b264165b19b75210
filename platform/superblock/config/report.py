"""What the report command collects, compares and writes."""

import re
from collections.abc import Iterator
from dataclasses import dataclass

from superblock.config.fields import knob, section
from superblock.config.tracking import TrackingConfig

REPORT_NAME = r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}"
RECORDS = "runs/benchmarks"
"""Where benchmarks leave records, if there were any."""
RESERVED_NAMES = ("latest", "schedule", "auto", "none", "index.html", "index.md", "baseline.json")


@dataclass
class SelectConfig:
    """Which runs a report is about; without anything, all finished ones of the newest scale."""

    scale: str | None = knob(None, "scale; null is that of the newest finished run")
    stages: list[str] = knob(list, "stages, such as [mvp1,mvp2]; [] is all")
    arms: list[str] = knob(list, "arms, see tracking.arm; [] is all")
    seeds: list[int] = knob(list, "seeds; [] is all", minimum=0)
    days: float | None = knob(None, "runs that started in so many days before the newest; null is all", above=0)
    all_runs: bool = knob(
        False, "every finished run; false takes the newest of each stage, arm and seed, and keeps the others as history"
    )


@dataclass
class ScheduleConfig:
    """Repeating the report by the system's own means."""

    cron: str | None = knob(
        None,
        "when, as five fields of cron, such as '0 6 * * 1' for Mondays at six, or @daily; null makes one report now",
    )
    kind: str = knob(
        "auto",
        "systemd: a timer of the user; cron: a crontab line; auto: systemd where it runs",
        choices=("auto", "systemd", "cron"),
    )
    install: bool = knob(False, "install it; false only writes the files and says how")
    remove: bool = knob(False, "remove what was installed under this name")
    due: bool = knob(
        False,
        "what the crontab line calls: report only if a time of cron has passed since the last report under this name, once "
        "however many were missed",
    )
    name: str = knob("superblock-report", "name of the timer or of the crontab line")
    before: str | None = knob(
        None,
        "command line of `run` whose training comes before each report, such as 'stage=mvp1 scale=mini seed=1,2,3 "
        "trainer.budget=600steps'; null only reports",
    )

    def problems(self) -> Iterator[tuple[str, str]]:
        if not re.fullmatch(REPORT_NAME, self.name):
            yield "name", "must be letters, digits, '.', '_' and '-', at most 64, not starting with a sign"
        if self.install and self.remove:
            yield "remove", "cannot be set together with install"
        if self.due and (self.install or self.remove):
            yield "due", "is for the report itself; leave it out to install or remove"
        for name in ("install", "due"):
            if getattr(self, name) and self.cron is None:
                yield name, "needs to know when; set schedule.cron, for example 'schedule.cron=0 6 * * 1'"
        if self.before is not None and not self.before.strip():
            yield "before", "must be settings of `run`, such as 'stage=mvp1 seed=1,2,3', or null"


@dataclass
class ReportConfig:
    """`python -m platform.report`: what was run, compared and written down."""

    name: str | None = knob(None, "name of the report's folder; null makes one from scale, newest run and content")
    title: str | None = knob(None, "headline; null makes one")
    source: str = knob(
        "auto",
        "spool: the folders below runs/; mlflow: the tracking store; auto: the folders, and the store for runs that have none here",
        choices=("auto", "spool", "mlflow"),
    )
    select: SelectConfig = section(SelectConfig, "which runs")
    records: list[str] = knob(
        lambda: [RECORDS],
        "folders or files with records of benchmarks; the newest of each suite is taken, of each ablation by its name",
    )
    baseline: str = knob("auto", "report to compare with: a name below output, auto for the pinned one, none for none")
    pin: bool = knob(False, "make this report the baseline of later ones")
    fail_on: str = knob(
        "none",
        "what ends the command with status 3: regression (of a metric, or an alarm of its history) or none",
        choices=("none", "regression"),
    )
    quality_effect: float = knob(0.01, "smallest relative change of quality that counts", minimum=0, maximum=1)
    speed_effect: float = knob(0.05, "smallest relative change of speed and memory that counts", minimum=0, maximum=1)
    output: str = knob("reports", "folder that holds a folder per report and their index")
    log: bool = knob(True, "record the report in MLflow")
    tracking: TrackingConfig = section(TrackingConfig, "MLflow store")
    schedule: ScheduleConfig = section(ScheduleConfig, "repeating it")

    def problems(self) -> Iterator[tuple[str, str]]:
        if self.name is not None and not re.fullmatch(REPORT_NAME, self.name):
            yield "name", "must be letters, digits, '.', '_' and '-', at most 64, not starting with a sign"
        if self.name in RESERVED_NAMES:
            yield "name", f"is taken: {', '.join(RESERVED_NAMES)} have a meaning of their own below output"
        if self.name is not None and self.baseline == self.name:
            yield "baseline", "is what this report is called itself; name another report, or auto or none"
        if self.source == "mlflow" and self.tracking.store == "none":
            yield "source", "needs a store to read, and tracking=none has none; leave one of them out"
        if not self.output.strip():
            yield "output", "must name a folder"
        if self.pin and self.schedule.cron is not None:
            yield "pin", "cannot be scheduled: every report would be its own baseline; pin one by hand"
