"""Writes a schedule, installs it or takes it away, and says when the next reports come."""

import sys
from collections.abc import Callable, Sequence
from datetime import datetime
from pathlib import Path

from superblock.config.fields import ConfigError
from superblock.config.report import ReportConfig
from superblock.reporting.schedule import crontab, systemd
from superblock.reporting.schedule.cron import Cron, next_times, parse
from superblock.reporting.schedule.due import note
from superblock.reporting.schedule.words import command, environment
from superblock.reporting.shelf import made_folder

Say = Callable[[str], None]
FOLDER = "schedule"
"""Below the folder of the reports: timers, logs, and which times are done with."""
OF_SYSTEMD, OF_CRON = ("service", "timer"), ("crontab", "json")
FILES = OF_SYSTEMD + OF_CRON
"""How the files of a schedule in that folder end."""
SHOWN_TIMES = 3
ELSEWHERE = "elsewhere: .github/workflows/report.yml, reports/schedule/cronjob.yaml"


def folder_of(config: ReportConfig) -> Path:
    """Where the files of a schedule lie."""
    return Path(config.output).expanduser().resolve() / FOLDER


def state_file(config: ReportConfig) -> Path:
    """Which of its times are done with."""
    return folder_of(config) / f"{config.schedule.name}.json"


def arrange(config: ReportConfig, *, say: Say, now: Callable[[], datetime]) -> int:
    """Writes the schedule of a report, and installs it if asked to.

    Returns:
        Status of the process: 0.

    Raises:
        ConfigError: for a time that cannot be read, or a system that does not take the schedule.
    """
    schedule = config.schedule
    assert schedule.cron is not None
    cron = parse(schedule.cron)
    if not sys.executable:
        raise ConfigError("schedule.cron: Python does not know its own path; start it by its absolute path")
    kind = _kind(config)
    files = _write(config, cron, kind)
    for file in files:
        say(f"written: {file}")
    if schedule.install:
        _install(config, cron, kind, files, say, now())
        _remove_other(config, kind, say)
    else:
        _explain(kind, files, say)
    shown = ", ".join(f"{time:%a %Y-%m-%d %H:%M}" for time in next_times(cron, now(), SHOWN_TIMES))
    say(f"next times: {shown}" if schedule.install else f"next times, once installed: {shown}")
    return 0


def remove(config: ReportConfig, *, say: Say) -> int:
    """Takes away what was installed under a name, timer and crontab line, and the files beside it.

    Each part is taken away, or said to be still there, whatever becomes of the others.

    Returns:
        Status of the process: 0, whether or not there was anything.

    Raises:
        ConfigError: when all has been tried, for the parts that could not be taken away.
    """
    name = config.schedule.name
    removed, faults = 0, []
    for what, take in (
        ("the timer", lambda: systemd.remove(name)),
        ("the crontab line", lambda: crontab.remove(name)),
        ("the files", lambda: _delete(config, FILES)),
    ):
        try:
            found = take()
        except (ConfigError, OSError) as error:
            faults.append(f"schedule.remove=true: {what} of {name} cannot be removed, if there: {error}")
            continue
        if found:
            removed += 1
            say(f"removed: {what} of {name}")
    if faults:
        raise ConfigError("\n".join(faults))
    if not removed:
        say(f"nothing is installed under schedule.name={name}")
    return 0


def _delete(config: ReportConfig, kinds: Sequence[str]) -> bool:
    """Deletes files of a schedule; whether there were any."""
    there = [file for kind in kinds if (file := folder_of(config) / f"{config.schedule.name}.{kind}").exists()]
    for file in there:
        file.unlink()
    return bool(there)


def _remove_other(config: ReportConfig, kind: str, say: Say) -> None:
    """Takes away what was installed under the same name by the other means: both would make every report, and train."""
    name = config.schedule.name
    what, other, kinds = (
        ("the crontab line", crontab, OF_CRON) if kind == "systemd" else ("the timer", systemd, OF_SYSTEMD)
    )
    try:
        found = other.remove(name)
        _delete(config, kinds)
    except (ConfigError, OSError) as error:
        say(f"problem: {what} of {name} from an earlier time, if there, cannot be removed: {error}")
        return
    if found:
        say(f"removed: {what} of {name}, which this replaces")


def _kind(config: ReportConfig) -> str:
    """systemd or cron, as asked for or as it runs here.

    Raises:
        ConfigError: if it is to be installed where it does not run.
    """
    schedule = config.schedule
    kind = schedule.kind
    if kind == "auto":
        kind = "systemd" if systemd.runs_here() else "cron"
        if schedule.install and kind == "cron" and not crontab.runs_here():
            raise ConfigError(
                "schedule.install=true: this user has neither a systemd session (`systemctl --user`) nor the command "
                f"crontab (on Debian: apt install cron)\n{ELSEWHERE}"
            )
        return kind
    if schedule.install and not (systemd if kind == "systemd" else crontab).runs_here():
        missing = (
            "`systemctl --user` reaches no systemd session of this user; log in on the machine itself or over ssh, or "
            "use schedule.kind=cron"
            if kind == "systemd"
            else "there is no command crontab; on Debian: apt install cron, or use schedule.kind=systemd"
        )
        raise ConfigError(f"schedule.kind={kind}: {missing}\n{ELSEWHERE}")
    return kind


def _write(config: ReportConfig, cron: Cron, kind: str) -> list[Path]:
    """The files of the schedule, in the folder of the reports."""
    name, here = config.schedule.name, Path.cwd()
    folder = folder_of(config)
    if kind == "systemd":
        texts = systemd.units(name, cron, command(config, due=False), here, environment())
    else:
        log = folder / f"{name}.log"
        texts = {f"{name}.crontab": crontab.block(name, cron, command(config, due=True), here, environment(), log)}
    made_folder(config.output)
    folder.mkdir(exist_ok=True)
    for file, text in texts.items():
        systemd.write(folder / file, text)
    return [folder / file for file in texts]


def _install(config: ReportConfig, cron: Cron, kind: str, files: list[Path], say: Say, now: datetime) -> None:
    name = config.schedule.name
    texts = {file.name: file.read_text(encoding="utf-8") for file in files}
    if kind == "systemd":
        replaced = systemd.install(texts)
        say(f"installed: the timer {name}{', in place of an earlier one' if replaced else ''}")
        say(f"watch it:  systemctl --user list-timers {name}.timer; journalctl --user -u {name}.service")
        if not systemd.lingers():
            say("it runs while you are logged in; `loginctl enable-linger` lets it run always")
        return
    if not state_file(config).exists():  # what came before does not count as missed
        note(state_file(config), now, cron)
    replaced = crontab.install(texts[f"{name}.crontab"], name)
    say(f"installed: the crontab line {name}{', in place of an earlier one' if replaced else ''}")
    say(f"watch it:  tail {folder_of(config) / name}.log")


def _explain(kind: str, files: list[Path], say: Say) -> None:
    if kind == "systemd":
        say("to install: the same command with schedule.install=true, or by hand")
        say(f"  cp {files[0].parent}/{files[0].stem}.* {systemd.folder_of_units()} && systemctl --user daemon-reload")
        say(f"  systemctl --user enable --now {files[0].stem}.timer")
    else:
        say("to install: the same command with schedule.install=true, or add these lines with `crontab -e`")
    say(ELSEWHERE)
