"""A systemd timer of the user. It makes up for a time that the machine slept through, once however many there were."""

import os
import shutil
import subprocess
from collections.abc import Mapping, Sequence
from pathlib import Path

from superblock.config.fields import ConfigError
from superblock.reporting.schedule.cron import Cron, calendars

MARK = "# Written by `superblock report`, which replaces and removes it; changes made here are lost."
NOTHING_TO_REPORT = 4


def units(
    name: str, cron: Cron, command: Sequence[str], folder: Path, environment: Mapping[str, str]
) -> dict[str, str]:
    """The text of service and timer by file name.

    Args:
        name: of both.
        cron: when.
        command: what the service starts, its first word an absolute path.
        folder: where.
        environment: variables it gets.

    Raises:
        ConfigError: for a folder that a unit cannot name.
    """
    if folder.as_posix() != folder.as_posix().strip() or folder.as_posix().endswith("\\"):
        raise ConfigError(f"{folder}: systemd cannot start in a folder whose name ends like this; rename it")
    service = [
        MARK,
        "[Unit]",
        f"Description=Report of the superblock experiments in {_percent(folder.as_posix())}",
        "",
        "[Service]",
        "Type=oneshot",
        f"WorkingDirectory={_percent(folder.as_posix())}",
        *(f"Environment={_quote(f'{key}={value}', dollars=False)}" for key, value in environment.items()),
        f"ExecStart={' '.join(_start(command))}",
        "# nothing to report is no failure",
        f"SuccessExitStatus={NOTHING_TO_REPORT}",
        "Nice=10",
    ]
    timer = [
        MARK,
        "[Unit]",
        f"Description=When {name} runs: {cron.text}",
        "",
        "[Timer]",
        *(f"OnCalendar={calendar}" for calendar in calendars(cron)),
        "# a time that the machine slept through is made up for",
        "Persistent=true",
        "",
        "[Install]",
        "WantedBy=timers.target",
    ]
    texts = {f"{name}.service": service, f"{name}.timer": timer}
    for line in (line for lines in texts.values() for line in lines):
        if any(ord(sign) < 32 for sign in line):
            raise ConfigError("schedule: systemd cannot take a line break in a path or a setting")
    return {file: "\n".join(lines) + "\n" for file, lines in texts.items()}


def runs_here() -> bool:
    """Whether this user has a systemd that answers."""
    return shutil.which("systemctl") is not None and _systemctl("show-environment") is None


def folder_of_units() -> Path:
    """Where systemd looks for the user's own units."""
    return Path(os.environ.get("XDG_CONFIG_HOME") or Path.home() / ".config") / "systemd" / "user"


def install(texts: Mapping[str, str]) -> bool:
    """Writes the units where systemd looks and starts the timer; whether an earlier one was replaced.

    Raises:
        ConfigError: if a unit of that name is somebody else's, or systemd refuses.
    """
    folder = folder_of_units()
    replaced = any(_own(folder / file) for file in texts)
    folder.mkdir(parents=True, exist_ok=True)
    for file, text in texts.items():
        write(folder / file, text)
    [timer] = (file for file in texts if file.endswith(".timer"))
    for words in (("daemon-reload",), ("enable", timer), ("restart", timer)):
        if fault := _systemctl(*words):
            raise ConfigError(f"schedule.install=true: `systemctl --user {' '.join(words)}` says: {fault}")
    return replaced


def remove(name: str) -> bool:
    """Stops the timer and deletes its units; whether there was one.

    Raises:
        ConfigError: if a unit of that name is somebody else's.
    """
    files = [folder_of_units() / f"{name}.{kind}" for kind in ("timer", "service")]
    found = [file for file in files if _own(file)]
    if found and shutil.which("systemctl"):
        _systemctl("disable", "--now", f"{name}.timer")
    for file in found:
        file.unlink()
    if found and shutil.which("systemctl"):
        _systemctl("daemon-reload")
    return bool(found)


def lingers() -> bool:
    """Whether the user's timers run while the user is logged out."""
    user = os.environ.get("USER") or os.environ.get("LOGNAME") or ""
    return (Path("/var/lib/systemd/linger") / user).is_file()


def write(path: Path, text: str) -> None:
    """Replaces a file in one move; for this user's eyes only, since a setting may hold a password."""
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    temporary.touch(mode=0o600)
    temporary.write_text(text, encoding="utf-8")
    os.replace(temporary, path)


def _own(file: Path) -> bool:
    """Whether a unit is there.

    Raises:
        ConfigError: if it is not one of ours.
    """
    if not file.exists():
        return False
    if not file.read_text(encoding="utf-8", errors="replace").startswith(MARK):
        raise ConfigError(f"schedule.name={file.stem}: {file} was not written by this command; choose another name")
    return True


def _systemctl(*words: str) -> str | None:
    """None if the call succeeded, else what went wrong in a line."""
    try:
        done = subprocess.run(
            ["systemctl", "--user", *words],
            capture_output=True,
            text=True,
            timeout=30,
            check=False,
            stdin=subprocess.DEVNULL,
        )
    except (OSError, subprocess.TimeoutExpired) as error:
        return str(error)
    return None if done.returncode == 0 else " ".join(done.stderr.split()) or f"status {done.returncode}"


def _start(command: Sequence[str]) -> list[str]:
    """The quoted words; a program whose path has signs that systemd refuses is found by env."""
    odd = any(sign in "\"'\\$" for sign in command[0])
    return [*(["/usr/bin/env"] if odd else []), *map(_quote, command)]


def _percent(text: str) -> str:
    return text.replace("%", "%%")


def _quote(word: str, *, dollars: bool = True) -> str:
    """A word of a command line, as systemd.service(5) reads it; an assignment keeps its dollars."""
    text = _percent(word.replace("\\", "\\\\").replace('"', '\\"'))
    return f'"{text.replace("$", "$$") if dollars else text}"'
