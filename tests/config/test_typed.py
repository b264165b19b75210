"""Commands in the form in which they can be typed where they are read."""

import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from types import ModuleType, SimpleNamespace

import pytest

from superblock.config.typed import command_line, stored, typed

LIKE_THE_SCRIPT = "import sys; from superblock.cli.__main__ import main; main()"


@pytest.fixture
def start(monkeypatch: pytest.MonkeyPatch) -> Callable[..., None]:
    """Makes this process look as if it had been started with a module, or as a script if there is none."""

    def pretend(module: str | None, *argv: str) -> None:
        spec = SimpleNamespace(name=module) if module else None
        monkeypatch.setitem(sys.modules, "__main__", SimpleNamespace(__spec__=spec))  # type: ignore[arg-type]
        monkeypatch.setattr(sys, "argv", list(argv))

    return pretend


@pytest.mark.parametrize(
    ("module", "shown"),
    [
        ("platform.report", "python -m platform.ui"),  # the door works where it was opened
        (None, "superblock ui"),
        ("superblock.cli.__main__", "superblock ui"),
    ],
)
def test_a_hint_has_the_form_of_the_start(start: Callable[..., None], module: str | None, shown: str) -> None:
    start(module, "x")
    assert typed("ui") == shown and stored("ui") == "superblock ui"


@pytest.mark.parametrize(
    ("module", "line"),
    [
        (None, "superblock benchmark suite=probes 'probes.tasks=[s5,mqar]' 'name=a b'"),
        (
            "superblock.cli.__main__",
            "python -m superblock.cli benchmark suite=probes 'probes.tasks=[s5,mqar]' 'name=a b'",
        ),
    ],
)
def test_the_command_line_keeps_the_command_and_can_be_typed(
    start: Callable[..., None], monkeypatch: pytest.MonkeyPatch, module: str | None, line: str
) -> None:
    from superblock.cli.__main__ import main

    seen: list[str] = []
    stand_in = ModuleType("superblock.cli.benchmark")
    stand_in.main = lambda: seen.append(command_line())  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "superblock.cli.benchmark", stand_in)
    start(module, "/usr/bin/superblock", "benchmark", "suite=probes", "probes.tasks=[s5,mqar]", "name=a b")
    main()
    assert seen == [line]


def test_the_door_is_a_command_by_itself(start: Callable[..., None]) -> None:
    start("platform.run", "/somewhere/platform/run.py", "stage=all")
    assert command_line() == "python -m platform.run stage=all"


def test_in_a_process_of_its_own(root: Path, tmp_path: Path) -> None:
    """From the repository the door is advised, from any other folder the console script."""
    at_the_door = [sys.executable, "-m", "platform.ui", f"tracking.uri=sqlite:///{tmp_path}/none.db"]
    elsewhere = [sys.executable, "-c", LIKE_THE_SCRIPT, "ui"]
    for words, folder, hint in (
        (at_the_door, root, "python -m platform.run stage=mvp1"),
        (elsewhere, tmp_path, "superblock run stage=mvp1"),
    ):
        answer = subprocess.run(words, cwd=folder, capture_output=True, text=True, timeout=120)
        assert answer.returncode == 2 and f"`{hint}`" in answer.stderr
