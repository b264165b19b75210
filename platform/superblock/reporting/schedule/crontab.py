"""A block of lines in the user's crontab, between two marks; every other line stays as it is.

cron forgets a time at which the machine was off. So the block has a line at the times themselves and one every hour,
and both start the same command, which reports only if a time has passed since the last report (`schedule.due=true`).
"""

import re
import shlex
import shutil
import subprocess
from collections.abc import Mapping, Sequence
from pathlib import Path

from superblock.config.fields import ConfigError
from superblock.reporting.schedule.cron import Cron

LONGEST_COMMAND = 990
"""Signs that cron takes after the time fields."""


def block(
    name: str, cron: Cron, command: Sequence[str], folder: Path, environment: Mapping[str, str], log: Path
) -> str:
    """The lines of one schedule.

    Args:
        name: tells it from other schedules.
        cron: when.
        command: what is started.
        folder: where.
        environment: variables it gets.
        log: file that takes what it says.

    Raises:
        ConfigError: for a command that cron cannot hold.
    """
    assignments = [f"{key}={shlex.quote(value)}" for key, value in environment.items()]
    line = " ".join(["cd", shlex.quote(str(folder)), "&&", *assignments, shlex.join(command)])
    line += f" >> {shlex.quote(str(log))} 2>&1"
    if re.search(r"[\r\n]|\\%", line):
        raise ConfigError("schedule: cron cannot take a line break, nor a backslash before %, in a path or a setting")
    line = line.replace("%", r"\%")  # a bare one ends the command
    if len(line) > LONGEST_COMMAND:
        raise ConfigError(
            f"schedule: cron takes {LONGEST_COMMAND} signs, and the command has {len(line)}; shorten schedule.before or "
            f"work in a folder with a shorter path"
        )
    begin, end = marks(name)
    hourly = f"{(min(cron.minutes) + 7) % 60} * * * *"
    return "\n".join(
        [
            begin,
            "# written by `superblock report`, which replaces and removes these lines; the second makes up for missed times",
            f"{cron.text} {line}",
            f"{hourly} {line}",
            end,
            "",
        ]
    )


def marks(name: str) -> tuple[str, str]:
    """The lines around a block."""
    return f"# superblock report {name}: begin", f"# superblock report {name}: end"


def runs_here() -> bool:
    """Whether this machine has a crontab."""
    return shutil.which("crontab") is not None


def install(text: str, name: str) -> bool:
    """Puts a block into the user's crontab, in place of an earlier one of its name; whether there was one."""
    before = read()
    rest, found = without(before, name)
    if rest and not rest.endswith("\n"):
        rest += "\n"
    if rest + text != before:
        _write(rest + text)
    return found


def remove(name: str) -> bool:
    """Takes a block out of the user's crontab; whether there was one."""
    if not runs_here():
        return False
    rest, found = without(read(), name)
    if found:
        _write(rest)
    return found


def without(crontab: str, name: str) -> tuple[str, bool]:
    """A crontab without the block of a name, and whether it had one. A block whose end is missing is left alone.

    Raises:
        ConfigError: if somebody removed one of the two marks.
    """
    begin, end = marks(name)
    lines = crontab.splitlines(keepends=True)
    first = [number for number, line in enumerate(lines) if line.strip() == begin]
    last = [number for number, line in enumerate(lines) if line.strip() == end]
    if not first and not last:
        return crontab, False
    if len(first) != 1 or len(last) != 1 or last < first:
        raise ConfigError(
            f"schedule.name={name}: the crontab has '{begin}' {len(first)} times and '{end}' {len(last)} times; with "
            f"`crontab -e` remove these lines and what lies between them"
        )
    return "".join(lines[: first[0]] + lines[last[0] + 1 :]), True


def read() -> str:
    """The user's crontab; empty if there is none.

    Raises:
        ConfigError: if it cannot be read.
    """
    status, text, fault = _crontab("-l")
    if status == 0:
        return text
    if "no crontab" in fault.lower():
        return ""
    raise ConfigError(f"schedule: `crontab -l` says: {fault or f'status {status}'}")


def _write(text: str) -> None:
    status, _, fault = _crontab("-", text)
    if status:
        raise ConfigError(f"schedule: `crontab -` says: {fault or f'status {status}'}")


def _crontab(word: str, text: str = "") -> tuple[int, str, str]:
    """Status, output and complaint of a call; other people's lines pass through it byte for byte."""
    given = text.encode("utf-8", "surrogateescape")
    try:
        done = subprocess.run(["crontab", word], input=given, capture_output=True, timeout=30, check=False)
    except (OSError, subprocess.TimeoutExpired) as error:
        raise ConfigError(f"schedule: crontab cannot be started: {error}") from None
    return (
        done.returncode,
        done.stdout.decode("utf-8", "surrogateescape"),
        " ".join(done.stderr.decode(errors="replace").split()),
    )
