"""`superblock report`: write down what was run and how it compares, now or on a schedule."""

import os
import shlex
import sys

from superblock.cli.app import launch
from superblock.cli.commands import ALL_STAGES, COMMANDS
from superblock.config.fields import ConfigError
from superblock.config.report import ReportConfig


def main() -> None:
    launch("report", run)


def run(config: ReportConfig) -> None:
    """Makes the report, or its schedule.

    Raises:
        ConfigError: for a training before the report that `run` would refuse, or under torchrun.
        SystemExit: with the statuses of `reporting.command`.
    """
    if int(os.environ.get("WORLD_SIZE", "1")) > 1:
        raise ConfigError("WORLD_SIZE: a report is made by one process; start it without torchrun")
    if config.schedule.before is not None:
        check_before(config.schedule.before)
    from superblock.reporting.command import run as report

    if status := report(config):
        sys.exit(status)


def check_before(text: str) -> None:
    """Refuses settings of `run` that do not exist now rather than at six in the morning.

    Raises:
        ConfigError: naming the setting and what would be right.
    """
    from superblock.cli.overrides import MULTIRUN, check, literal

    try:
        words = [word for word in shlex.split(text) if word not in MULTIRUN and word != ALL_STAGES]
        check(COMMANDS["run"], [literal(word) for word in words], multirun=True)
    except ValueError as error:  # ConfigError is one
        raise ConfigError(f"schedule.before={text}: {error}") from None
