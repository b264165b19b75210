"""One process at a time, and a report that is there whole or not at all."""

import os
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from superblock.config.fields import ConfigError
from superblock.reporting.content import Report
from superblock.reporting.files import write_report
from superblock.reporting.lock import Busy, only_one
from superblock.reporting.shelf import BASELINE_FILE, Shelf

HOLD = """
import sys, time
from pathlib import Path
from superblock.reporting.lock import only_one
with only_one(Path(sys.argv[1]), wait=0, say=print):
    print("held", flush=True)
    time.sleep(float(sys.argv[2]))
"""


@contextmanager
def holder(path: Path, seconds: float) -> "Iterator[subprocess.Popen[str]]":
    """Another process that holds the lock."""
    command = [sys.executable, "-c", HOLD, str(path), str(seconds)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout and process.stdout.readline() == "held\n"
        yield process
        process.kill()


def test_a_second_process_is_told_who_holds_it(tmp_path: Path) -> None:
    lock, said = tmp_path / "a" / ".lock", list[str]()
    with holder(lock, 60) as process:
        told = pytest.raises(Busy, match=rf"process {process.pid} on .* is at work there since 20")
        with told, only_one(lock, wait=0.3, say=said.append):
            raise AssertionError
        assert len(said) == 1 and said[0].startswith("waiting up to 0 s: process ")
    with only_one(lock, wait=0, say=said.append):  # a killed process holds nothing
        pass
    assert len(said) == 1


def test_waiting_is_worth_it(tmp_path: Path) -> None:
    said: list[str] = []
    with holder(tmp_path / ".lock", 0.6), only_one(tmp_path / ".lock", wait=30, say=said.append):
        assert len(said) == 1
    assert not (tmp_path / ".lock.json").exists()


def report(name: str, time: float = 1.0) -> Report:
    return Report(name, name, time, "new", "words", "runs/", None)


def put(shelf: Shelf, one: Report, page: str = "page") -> bool:
    def fill(folder: Path) -> None:
        write_report(one, folder)
        (folder / "index.html").write_text(page)

    return shelf.put(one.name, fill)


def test_the_same_report_is_not_written_again(tmp_path: Path) -> None:
    shelf = Shelf(tmp_path / "reports")
    assert put(shelf, report("a"))
    before = (shelf.folder / "a").stat().st_ino
    assert not put(shelf, report("a"))
    assert (shelf.folder / "a").stat().st_ino == before
    assert put(shelf, report("a"), "another page")
    assert (shelf.folder / "a" / "index.html").read_text() == "another page"
    assert [path.name for path in shelf.folder.iterdir()] == ["a"]


def test_what_was_added_to_a_report_stays(tmp_path: Path) -> None:
    shelf, home = Shelf(tmp_path), tmp_path / "a"

    def drawn(*pictures: str) -> bool:
        def fill(folder: Path) -> None:
            write_report(report("a"), folder)
            (folder / "report.md").write_text("".join(f"![a picture]({name}.svg)" for name in pictures))
            for name in pictures:
                (folder / f"{name}.svg").write_text("drawn")

        return shelf.put("a", fill)

    assert drawn("one", "two")
    (home / "shots" / "empty").mkdir(parents=True)
    for name in ("notes.md", "mine.svg", "shots/1.png"):
        (home / name).write_text("added")
    (home / "link").symlink_to("nowhere")
    number = home.stat().st_ino
    assert not drawn("one", "two") and home.stat().st_ino == number
    assert drawn("one", "three")
    assert [(home / name).read_text() for name in ("notes.md", "mine.svg", "shots/1.png")] == ["added"] * 3
    assert os.readlink(home / "link") == "nowhere" and (home / "shots" / "empty").is_dir()
    assert {path.stem for path in home.glob("*.svg")} == {"one", "three", "mine"}
    assert not drawn("one", "three")


def test_the_latest_of_equal_times_is_the_one_just_made(tmp_path: Path) -> None:
    shelf = Shelf(tmp_path)
    for name in ("b", "a", "c", "b"):
        put(shelf, report(name))
        shelf.point_latest(report(name))
        assert os.readlink(tmp_path / "latest") == name


@pytest.mark.parametrize("point", ["write", "away", "in", "clean"])
def test_cut_off_at_any_point_there_is_the_old_report_or_the_new_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, point: str
) -> None:
    shelf = Shelf(tmp_path)
    put(shelf, report("a"), "old")
    moves: list[str] = []
    rename = os.rename

    def cut(source: Path, target: Path) -> None:
        moves.append("away" if not moves else "in")
        if moves[-1] == point:
            raise KeyboardInterrupt
        rename(source, target)

    def fill(folder: Path) -> None:
        (folder / "index.html").write_text("half")
        if point == "write":
            raise KeyboardInterrupt
        write_report(report("a"), folder)
        (folder / "index.html").write_text("new")

    with monkeypatch.context() as patched, pytest.raises(KeyboardInterrupt):
        patched.setattr("superblock.reporting.shelf.os.rename", cut)
        if point == "clean":
            patched.setattr("superblock.reporting.shelf.shutil.rmtree", _interrupted_at(tmp_path / ".old-a"))
        shelf.put("a", fill)
    shelf.tidy()
    assert (tmp_path / "a" / "index.html").read_text() == ("new" if point == "clean" else "old")
    assert [path.name for path in tmp_path.iterdir()] == ["a"]
    assert [one.name for one in shelf.all()] == ["a"]


def _interrupted_at(folder: Path):  # type: ignore[no-untyped-def]
    def rmtree(path: Path, ignore_errors: bool = False) -> None:
        if path == folder and path.exists():
            raise KeyboardInterrupt

    return rmtree


def test_what_is_no_report_is_never_replaced(tmp_path: Path) -> None:
    shelf = Shelf(tmp_path)
    (tmp_path / "records").mkdir()
    (tmp_path / "records" / "mine.json").write_text("{}")
    with pytest.raises(ConfigError, match=r"name=records: .*holds something that is no report"):
        put(shelf, report("records"))
    assert (tmp_path / "records" / "mine.json").read_text() == "{}"


def test_reports_in_order_baseline_and_latest(tmp_path: Path) -> None:
    shelf = Shelf(tmp_path)
    for one in (report("b", 2.0), report("a", 3.0), report("c", 1.0)):
        put(shelf, one)
    for made in (report("b", 2.0), report("a", 3.0), report("c", 1.0)):
        shelf.point_latest(made)  # a report of older runs does not become the latest
    assert [one.name for one in shelf.all()] == ["c", "b", "a"]  # `latest` is none of its own
    assert (tmp_path / "latest" / "report.json").exists() and os.readlink(tmp_path / "latest") == "a"
    assert shelf.baseline() is None
    shelf.pin("b")
    assert shelf.baseline() == "b"
    (tmp_path / BASELINE_FILE).write_text("{")
    assert shelf.baseline() is None


def test_a_baseline_that_does_not_exist(tmp_path: Path) -> None:
    shelf = Shelf(tmp_path)
    with pytest.raises(ConfigError, match="baseline=b: .* none is there"):
        shelf.named("b")
    put(shelf, report("mini-2026"))
    with pytest.raises(ConfigError, match=r"did you mean mini-2026\?"):
        shelf.named("mini-2025")
    assert shelf.named("mini-2026") == report("mini-2026")


def test_a_latest_of_somebody_else_stays(tmp_path: Path) -> None:
    (tmp_path / "latest").mkdir()
    Shelf(tmp_path).point_latest(report("a"))
    assert (tmp_path / "latest").is_dir() and not (tmp_path / "latest").is_symlink()
