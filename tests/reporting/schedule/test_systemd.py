"""Timers as systemd itself reads them, and what is done to those that are installed."""

import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from superblock.config.fields import ConfigError
from superblock.reporting.schedule import systemd
from superblock.reporting.schedule.cron import parse

needs_systemd = pytest.mark.skipif(shutil.which("systemd-analyze") is None, reason="systemd-analyze is not installed")
ODD = 'a b\'s "c" 100% $HOME ü'


def write(folder: Path, texts: dict[str, str]) -> Path:
    for name, text in texts.items():
        (folder / name).write_text(text)
    return folder / next(name for name in texts if name.endswith(".timer"))


def verify(timer: Path) -> "subprocess.CompletedProcess[str]":
    files = [str(timer), str(timer.with_suffix(".service"))]
    return subprocess.run(["systemd-analyze", "verify", "--man=no", *files], capture_output=True, text=True)


@needs_systemd
@pytest.mark.parametrize("cron", ["0 6 * * 1", "0 6 1 * 1", "*/7 1-5,23 1-31/2 jan-mar sun", "@hourly"])
def test_systemd_verifies_the_units(tmp_path: Path, cron: str) -> None:
    command = [sys.executable, "-m", "superblock.cli", "report", "fail_on=regression"]
    texts = systemd.units("superblock-report", parse(cron), command, tmp_path, {})
    done = verify(write(tmp_path, texts))
    assert (done.returncode, done.stderr) == (0, "")


@needs_systemd
@pytest.mark.parametrize("odd", ["a b 100% ü", ODD])
def test_paths_and_settings_with_odd_signs(tmp_path: Path, odd: str) -> None:
    """systemd finds the program behind the quotes, or misses it by its true name, so it read it as it is."""
    here = tmp_path / odd
    here.mkdir()
    python = here / "python"
    python.write_text("#!/bin/sh\n")
    python.chmod(0o755)
    command = [str(python), "-m", "superblock.cli", "report", f"title='{odd}'"]
    units = systemd.units("odd", parse("@daily"), command, here, {"SUPERBLOCK_CACHE": f"/cache/{odd}"})
    done = verify(write(tmp_path, units))
    assert (done.returncode, done.stderr) == (0, "")
    python.unlink()
    done = verify(write(tmp_path, units))
    if odd == ODD:  # found by env, when it starts
        assert "\nExecStart=/usr/bin/env " in units["odd.service"]
    else:
        assert done.returncode != 0 and f"{python} is not executable" in done.stderr


def test_what_the_units_say(tmp_path: Path) -> None:
    texts = systemd.units(
        "weekly", parse("0 6 * * 1"), ["/x y/python", "a%b", "$c", 'd"e', "f\\g"], tmp_path, {"A": "$b %c"}
    )
    service, timer = texts["weekly.service"].splitlines(), texts["weekly.timer"].splitlines()
    assert f"WorkingDirectory={tmp_path}" in service
    assert 'ExecStart="/x y/python" "a%%b" "$$c" "d\\"e" "f\\\\g"' in service
    assert 'Environment="A=$b %%c"' in service
    assert {"OnCalendar=Mon *-*-* 06:00:00", "Persistent=true", "WantedBy=timers.target"} <= set(timer)


@pytest.mark.parametrize(("folder", "command"), [("/a/b ", ["x"]), ("/a/b\\", ["x"]), ("/a", ["x\ny"])])
def test_what_a_unit_cannot_hold_is_refused(folder: str, command: list[str]) -> None:
    with pytest.raises(ConfigError, match="systemd can"):
        systemd.units("x", parse("@daily"), command, Path(folder), {})


@pytest.fixture
def systemctl(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A `systemctl` that notes how it was called; the file of its notes. It fails where a file `refuse` says so."""
    tools = tmp_path / "tools"
    tools.mkdir()
    log = tools / "log"
    (tools / "systemctl").write_text(
        f'#!/bin/sh\necho "$@" >> {shlex.quote(str(log))}\n'
        f"if [ -e {shlex.quote(str(tools / 'refuse'))} ]; then echo 'Failed to connect to bus: No medium found' >&2; exit 1; fi\n"
    )
    (tools / "systemctl").chmod(0o755)
    monkeypatch.setenv("PATH", f"{tools}:/usr/bin:/bin")
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path / "config home"))
    return log


TEXTS = {"weekly.service": f"{systemd.MARK}\nservice\n", "weekly.timer": f"{systemd.MARK}\ntimer\n"}


def test_installing_twice_and_removing(systemctl: Path) -> None:
    assert systemd.runs_here()
    assert systemd.install(TEXTS) is False
    assert systemd.install(TEXTS) is True
    folder = systemd.folder_of_units()
    assert {file.name: file.read_text() for file in folder.iterdir()} == TEXTS
    assert all(file.stat().st_mode & 0o077 == 0 for file in folder.iterdir())
    (folder / "other.timer").write_text("somebody's own")
    assert systemd.remove("weekly") is True
    assert systemd.remove("weekly") is False
    assert [file.name for file in folder.iterdir()] == ["other.timer"]
    assert systemctl.read_text().splitlines() == [
        "--user show-environment",
        *(["--user daemon-reload", "--user enable weekly.timer", "--user restart weekly.timer"] * 2),
        "--user disable --now weekly.timer",
        "--user daemon-reload",
    ]


def test_a_unit_of_somebody_else_stays(systemctl: Path) -> None:
    folder = systemd.folder_of_units()
    folder.mkdir(parents=True)
    (folder / "weekly.service").write_text("[Service]\nExecStart=/bin/true\n")
    for act in (lambda: systemd.install(TEXTS), lambda: systemd.remove("weekly")):
        with pytest.raises(ConfigError, match=r"schedule.name=weekly: .*was not written by this command"):
            act()
    assert (folder / "weekly.service").read_text() == "[Service]\nExecStart=/bin/true\n"
    assert not (folder / "weekly.timer").exists()


def test_a_system_without_a_session_is_said(systemctl: Path) -> None:
    (systemctl.parent / "refuse").touch()
    assert not systemd.runs_here()
    with pytest.raises(ConfigError, match="daemon-reload` says: Failed to connect to bus"):
        systemd.install(TEXTS)
