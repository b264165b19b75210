"""Arranging a schedule by the command: files, installation, what is said, and where no scheduler runs."""

import shlex
from collections.abc import Callable
from datetime import datetime
from pathlib import Path
from typing import Any

import pytest

from superblock.config.fields import ConfigError
from superblock.reporting.schedule import arrange, systemd

NOW = datetime(2026, 11, 21, 12, 30)


@pytest.fixture
def tools(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty folder for programs, in front of the shell's own."""
    folder = tmp_path / "tools"
    folder.mkdir()
    for name in ("sh", "cat"):
        (folder / name).symlink_to(f"/bin/{name}")
    monkeypatch.setenv("PATH", str(folder))
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path / "config"))
    return folder


def program(folder: Path, name: str, text: str) -> None:
    (folder / name).write_text(f"#!/bin/sh\n{text}\n")
    (folder / name).chmod(0o755)


def cron(folder: Path) -> Path:
    table = folder / "table"
    place = shlex.quote(str(table))
    program(
        folder,
        "crontab",
        f"if [ $1 = - ]; then cat > {place}; elif [ -e {place} ]; then cat {place}; else echo no crontab >&2; exit 1; fi",
    )
    return table


@pytest.fixture
def arranged(compose: Callable[..., Any]) -> Callable[..., list[str]]:
    """Arranges `report <words>` and returns what was said."""

    def make(*words: str) -> list[str]:
        said: list[str] = []
        config = compose("report", *words)
        if config.schedule.remove:
            assert arrange.remove(config, say=said.append) == 0
        else:
            assert arrange.arrange(config, say=said.append, now=lambda: NOW) == 0
        return said

    return make


def test_systemd_where_it_runs(tools: Path, arranged: Callable[..., list[str]], tmp_path: Path) -> None:
    program(tools, "systemctl", "exit 0")
    said = arranged("schedule.cron=0 6 * * 1", "fail_on=regression")
    folder = tmp_path / "reports" / "schedule"
    assert sorted(file.name for file in folder.iterdir()) == ["superblock-report.service", "superblock-report.timer"]
    assert '"fail_on=regression"' in (folder / "superblock-report.service").read_text()
    assert said[:2] == [f"written: {folder}/superblock-report.service", f"written: {folder}/superblock-report.timer"]
    assert said[-1] == "next times, once installed: Mon 2026-11-23 06:00, Mon 2026-11-30 06:00, Mon 2026-12-07 06:00"
    assert not systemd.folder_of_units().exists()


def test_installing_and_removing_a_timer(tools: Path, arranged: Callable[..., list[str]], tmp_path: Path) -> None:
    program(tools, "systemctl", "exit 0")
    words = ("schedule.cron=@daily", "schedule.install=true", "schedule.name=mine")
    said = arranged(*words)
    assert "installed: the timer mine" in said and said[-1].startswith("next times: Sun 2026-11-22 00:00")
    assert "installed: the timer mine, in place of an earlier one" in arranged(*words)
    assert (systemd.folder_of_units() / "mine.timer").exists()
    assert arranged("schedule.remove=true", "schedule.name=mine") == [
        "removed: the timer of mine",
        "removed: the files of mine",
    ]
    assert arranged("schedule.remove=true", "schedule.name=mine") == ["nothing is installed under schedule.name=mine"]
    assert list(systemd.folder_of_units().iterdir()) == []


def test_cron_elsewhere(tools: Path, arranged: Callable[..., list[str]], tmp_path: Path) -> None:
    table = cron(tools)
    table.write_text("# mine\n")
    said = arranged("schedule.cron=0 6 * * mon", "schedule.install=true")
    assert "installed: the crontab line superblock-report" in said
    text = table.read_text()
    assert text.startswith("# mine\n") and "\n0 6 * * 1 cd " in text and "schedule.due=true" in text
    state = tmp_path / "reports" / "schedule" / "superblock-report.json"
    noted = state.read_text()
    arranged("schedule.cron=0 6 * * mon", "schedule.install=true")
    assert table.read_text() == text and state.read_text() == noted
    arranged("schedule.remove=true")
    assert table.read_text() == "# mine\n" and not state.exists()


def test_cron_by_name_although_systemd_runs(tools: Path, arranged: Callable[..., list[str]]) -> None:
    program(tools, "systemctl", "exit 0")
    table = cron(tools)
    arranged("schedule.cron=@daily", "schedule.kind=cron", "schedule.install=true")
    assert "0 0 * * *" in table.read_text() and not systemd.folder_of_units().exists()


def test_one_kind_takes_the_place_of_the_other(tools: Path, arranged: Callable[..., list[str]], tmp_path: Path) -> None:
    program(tools, "systemctl", "exit 0")
    table, units = cron(tools), systemd.folder_of_units()
    table.write_text("# mine\n")
    words = ("schedule.cron=@daily", "schedule.install=true")
    files = tmp_path / "reports" / "schedule"
    arranged(*words, "schedule.kind=cron")
    for _ in range(2):
        said = arranged(*words)
        assert "removed: the crontab line of superblock-report, which this replaces" in said
        assert table.read_text() == "# mine\n" and (units / "superblock-report.timer").exists()
        assert sorted(file.suffix for file in files.iterdir()) == [".service", ".timer"]
        said = arranged(*words, "schedule.kind=cron")
        assert "removed: the timer of superblock-report, which this replaces" in said
        assert "schedule.due=true" in table.read_text() and list(units.iterdir()) == []
        assert sorted(file.suffix for file in files.iterdir()) == [".crontab", ".json"]


def test_a_crontab_that_refuses_keeps_nothing_else(
    tools: Path, arranged: Callable[..., list[str]], compose: Callable[..., Any], tmp_path: Path
) -> None:
    program(tools, "systemctl", "exit 0")
    program(tools, "crontab", "echo 'You (me) are not allowed' >&2; exit 1")
    said = arranged("schedule.cron=@daily", "schedule.install=true")
    assert "installed: the timer superblock-report" in said
    assert any(line.startswith("problem: the crontab line") and "not allowed" in line for line in said)
    said.clear()
    with pytest.raises(ConfigError, match=r"the crontab line of superblock-report .*You \(me\) are not allowed"):
        arrange.remove(compose("report", "schedule.remove=true"), say=said.append)
    assert said == ["removed: the timer of superblock-report", "removed: the files of superblock-report"]
    assert list(systemd.folder_of_units().iterdir()) == [] == list((tmp_path / "reports" / "schedule").iterdir())


@pytest.mark.parametrize(
    ("kind", "complaint"),
    [
        ("auto", "neither a systemd session (`systemctl --user`) nor the command crontab"),
        ("systemd", "schedule.kind=systemd: `systemctl --user` reaches no systemd session"),
        ("cron", "schedule.kind=cron: there is no command crontab; on Debian: apt install cron"),
    ],
)
def test_where_nothing_runs_it_is_said_and_what_else_there_is(
    tools: Path, arranged: Callable[..., list[str]], kind: str, complaint: str, tmp_path: Path
) -> None:
    words = ("schedule.cron=0 6 * * 1", f"schedule.kind={kind}")
    with pytest.raises(ConfigError) as error:
        arranged(*words, "schedule.install=true")
    assert complaint in str(error.value) and ".github/workflows/report.yml" in str(error.value)
    assert not (tmp_path / "reports").exists()
    said = arranged(*words)  # the files are written all the same
    assert any("to install: " in line for line in said)


@pytest.mark.parametrize("variable", ["SUPERBLOCK_CACHE", "SUPERBLOCK_NATIVE"])
def test_variables_that_change_a_report_go_along(
    tools: Path, arranged: Callable[..., list[str]], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, variable: str
) -> None:
    monkeypatch.setenv(variable, "/some where")
    arranged("schedule.cron=@daily", "schedule.kind=systemd")
    arranged("schedule.cron=@daily", "schedule.kind=cron")
    folder = tmp_path / "reports" / "schedule"
    assert f'Environment="{variable}=/some where"' in (folder / "superblock-report.service").read_text()
    assert f"{variable}='/some where'" in (folder / "superblock-report.crontab").read_text()
