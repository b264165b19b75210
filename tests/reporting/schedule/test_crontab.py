"""The block in a crontab: the shell reads it as it is meant, and no other line is touched."""

import json
import shlex
import subprocess
import sys
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from superblock.config.fields import ConfigError
from superblock.reporting.schedule import crontab
from superblock.reporting.schedule.cron import parse

WEEKLY = parse("0 6 * * 1")
OTHERS = "MAILTO=me\n# my own\n5 4 * * *\t/bin/backup 100\\%  \r\n\n@reboot x"


def lines(text: str) -> list[str]:
    return [line for line in text.splitlines() if line and not line.startswith("#")]


def as_cron_starts_it(line: str) -> str:
    """The command of a line as cron hands it to the shell: five fields off, `\\%` a percent sign."""
    command = line.split(" ", 5)[5]
    assert "%" not in command.replace("\\%", "")
    return command.replace("\\%", "%")


def test_both_lines_start_the_command_in_its_folder(tmp_path: Path) -> None:
    here = tmp_path / "a b's 100% $HOME"
    here.mkdir()
    show = "import json, os, sys; print(json.dumps([os.getcwd(), os.environ['SUPERBLOCK_CACHE'], sys.argv[1:]]))"
    words = ["title='100 %, \"x\"'", "b;c", "$d `e`"]
    text = crontab.block(
        "mine", WEEKLY, [sys.executable, "-c", show, *words], here, {"SUPERBLOCK_CACHE": "/c d"}, here / "log"
    )
    at, hourly = lines(text)
    assert at.startswith("0 6 * * 1 ") and hourly.startswith("7 * * * * ")
    for line in (at, hourly):
        subprocess.run(["/bin/sh", "-c", as_cron_starts_it(line)], check=True, cwd="/")
    assert [json.loads(said) for said in (here / "log").read_text().splitlines()] == [[str(here), "/c d", words]] * 2


@pytest.mark.parametrize(
    ("word", "complaint"), [("a\nb", "line break"), ("a\\%b", "backslash"), ("x" * 1000, "cron takes 990 signs")]
)
def test_what_cron_cannot_hold_is_refused(tmp_path: Path, word: str, complaint: str) -> None:
    with pytest.raises(ConfigError, match=complaint):
        crontab.block("mine", WEEKLY, ["python", word], tmp_path, {}, tmp_path / "log")


def block(name: str, word: str = "x") -> str:
    return crontab.block(name, WEEKLY, ["/bin/python", word], Path("/here"), {}, Path("/here/log"))


@pytest.fixture
def table(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A `crontab` that keeps its table in a file, as cron does it."""
    tools = tmp_path / "tools"
    tools.mkdir()
    file = tools / "table"
    place = shlex.quote(str(file))
    (tools / "crontab").write_text(
        f"#!/bin/sh\ncase $1 in\n-l) [ -e {place} ] || {{ echo 'no crontab for me' >&2; exit 1; }}; cat {place};;\n"
        f"-) cat > {place}; echo write >> {place}.log;;\nesac\n"
    )
    (tools / "crontab").chmod(0o755)
    monkeypatch.setenv("PATH", f"{tools}:/usr/bin:/bin")
    return file


def test_installing_into_nothing_twice_and_removing(table: Path) -> None:
    assert crontab.install(block("mine"), "mine") is False
    assert table.read_text() == block("mine")
    assert crontab.install(block("mine"), "mine") is True
    assert table.read_text() == block("mine")
    assert (table.parent / "table.log").read_text() == "write\n"  # the second time nothing was written
    assert crontab.remove("mine") is True
    assert table.read_text() == ""
    assert crontab.remove("mine") is False


def test_other_lines_stay_byte_for_byte(table: Path) -> None:
    others = OTHERS.encode() + b"\xff"  # somebody's Latin-1, and no line break at the end
    table.write_bytes(others)
    crontab.install(block("first"), "first")
    crontab.install(block("second"), "second")
    assert table.read_bytes() == others + b"\n" + (block("first") + block("second")).encode()
    crontab.install(block("first", "new"), "first")
    assert table.read_bytes() == others + b"\n" + (block("second") + block("first", "new")).encode()
    crontab.remove("first")
    crontab.remove("second")
    assert table.read_bytes() == others + b"\n"


@given(st.lists(st.text(st.characters(exclude_characters="\r", exclude_categories=("Cs",)), max_size=20), max_size=6))
def test_a_block_comes_out_as_it_went_in(before: list[str]) -> None:
    text = "".join(f"{line}\n" for line in before)
    middle = len(before) // 2
    parts = "".join(f"{line}\n" for line in before[:middle]), "".join(f"{line}\n" for line in before[middle:])
    assert crontab.without(parts[0] + block("mine") + parts[1], "mine") == (text, True)
    assert crontab.without(text, "mine") == (text, False)


@pytest.mark.parametrize("mark", [0, 1])
def test_a_block_that_lost_a_mark_is_left_alone(table: Path, mark: int) -> None:
    broken = block("mine").replace(crontab.marks("mine")[mark] + "\n", "") + "1 2 * * * /bin/mine\n"
    table.write_text(broken)
    for act in (lambda: crontab.install(block("mine"), "mine"), lambda: crontab.remove("mine")):
        with pytest.raises(ConfigError, match="crontab -e"):
            act()
    assert table.read_text() == broken


def test_a_crontab_that_refuses_is_quoted(table: Path) -> None:
    (table.parent / "crontab").write_text("#!/bin/sh\necho 'You (me) are not allowed' >&2\nexit 1\n")
    with pytest.raises(ConfigError, match=r"`crontab -l` says: You \(me\) are not allowed"):
        crontab.install(block("mine"), "mine")


def test_names_that_begin_alike_are_two(table: Path) -> None:
    crontab.install(block("a"), "a")
    crontab.install(block("a-b"), "a-b")
    crontab.remove("a")
    assert table.read_text() == block("a-b")
