"""The command line that a schedule starts: this environment's own Python, and the settings that were given."""

import os
import re
import sys
from collections.abc import Iterator
from dataclasses import fields, is_dataclass
from typing import Any

from superblock.config.report import ReportConfig

CARRIED = ("SUPERBLOCK_CACHE", "SUPERBLOCK_NATIVE")
"""Variables that a scheduled report gets as they are now."""
_BARE = re.compile(r"[A-Za-z_./][A-Za-z0-9_./-]*", re.ASCII)
_WORDS_OF_HYDRA = ("null", "true", "false", "nan", "inf", "yes", "no", "on", "off")


def command(config: ReportConfig, *, due: bool) -> list[str]:
    """The words that make the same report without its schedule.

    Args:
        config: the report that is scheduled.
        due: have the command decide itself whether a time has come, for cron, which does not catch up.
    """
    schedule = config.schedule
    words = [word for word in settings(config, ReportConfig()) if not word.startswith("schedule.")]
    if schedule.before is not None:
        words.append(f"schedule.before={free(schedule.before)}")
    if due:
        words += [f"schedule.cron={free(schedule.cron or '')}", "schedule.due=true", f"schedule.name={schedule.name}"]
    return [sys.executable, "-m", "superblock.cli", "report", *words]


def environment() -> dict[str, str]:
    """Variables that the schedule sets."""
    return {name: os.environ[name] for name in CARRIED if name in os.environ}


def settings(config: Any, default: Any, prefix: str = "") -> Iterator[str]:
    """What differs from the default, as it is typed: `key=value`."""
    for field in fields(config):
        value, usual = getattr(config, field.name), getattr(default, field.name)
        if is_dataclass(value):
            yield from settings(value, usual, f"{prefix}{field.name}.")
        elif value != usual:
            yield f"{prefix}{field.name}={quoted(value)}"


def free(text: str) -> str:
    """The value of a key that is taken as it is typed (`cli.overrides.FREE_TEXT`), unless it looks quoted."""
    return quoted(text) if len(text) < 2 or (text[0] == text[-1] and text[0] in "'\"") else text


def quoted(value: Any) -> str:
    """A value that Hydra reads as what it is."""
    if value is None:
        return "null"
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, list):
        return "[" + ",".join(quoted(item) for item in value) + "]"
    if not isinstance(value, str):
        return repr(value)
    if _BARE.fullmatch(value) and value.lower() not in _WORDS_OF_HYDRA:
        return value
    text = re.sub(r"(\\*)('|$)", lambda m: m[1] * 2 + ("\\'" if m[2] else ""), value)
    return "'" + text.replace("${", "\\${") + "'"
