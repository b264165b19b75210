"""What README tells people to type can be typed."""

import re
import shlex
import sys
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

ROOT = Path(__file__).parents[1]
README = (ROOT / "README.md").read_text()
FENCE = re.compile(r"^```(?:sh|bash|console|shell)\n(.*?)^```", re.MULTILINE | re.DOTALL)
COMMAND = re.compile(r"(?:-m platform\.|(?:^|/|\s)superblock )(\w+)([^&|#;]*)")


def marked(name: str) -> list[str]:
    """The lines below `<!-- command: name -->`."""
    [block] = re.findall(rf"<!-- command: {name} -->\s*```\w*\n(.*?)```", README, re.DOTALL)
    return block.strip().splitlines()


def typed() -> list[tuple[str, str]]:
    """Every use of a command in a shell fence: its name and the overrides that follow."""
    text = "\n".join(FENCE.findall(README)).replace("\\\n", " ")
    lines = [line.strip() for line in text.splitlines() if not line.lstrip().startswith("#")]
    return [(match[1], match[2].strip()) for line in lines for match in COMMAND.finditer(line)]


@pytest.fixture
def called(monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    """The library's entries, replaced by a list of the configurations they were given."""
    given: list[Any] = []

    def entry(what: Any, **rest: Any) -> int:
        given.extend(what if isinstance(what, list) else [what])
        return 0

    for module, function in (
        ("superblock.staging.pipeline", "run_stages"),
        ("superblock.generation.command", "generate"),
        ("superblock.planning.plan", "show"),
        ("superblock.benchmarks.command", "benchmark"),
        ("superblock.reporting.command", "run"),
        ("superblock.tracking.server", "serve"),
        ("superblock.staging.search", "run_trial"),
    ):
        stand_in = ModuleType(module)
        setattr(stand_in, function, entry)
        monkeypatch.setitem(sys.modules, module, stand_in)
    return given


@pytest.mark.parametrize("name", ["run", "test"])
def test_the_two_commands_are_one_line_each(name: str) -> None:
    [line] = marked(name)
    assert line.startswith("python3 -m venv .venv && ") and "-c constraints.txt" in line


def test_the_two_commands_do_what_they_say() -> None:
    assert "python -m platform.run stage=mvp1" in marked("run")[0]
    assert marked("test")[0].endswith("python -m pytest -n logical")


@pytest.mark.parametrize(("command", "overrides"), typed())
def test_every_command_is_understood(
    superblock: Callable, called: list[Any], monkeypatch: pytest.MonkeyPatch, command: str, overrides: str
) -> None:
    words = shlex.split(overrides)
    if any(word.startswith("trainer.strategy=") for word in words):
        monkeypatch.setenv("WORLD_SIZE", "2")  # README starts these with torchrun
    answer = superblock(command, *words)
    assert answer.status == 0, answer.err
    assert called or "--help" in words or "--cfg" in words


@pytest.mark.parametrize("overrides", sorted({rest for name, rest in typed() if name == "plan"}))
def test_every_plan_runs(superblock: Callable, overrides: str) -> None:
    answer = superblock("plan", *shlex.split(overrides))
    assert answer.status == 0 and answer.out


def test_every_path_in_the_tree_exists() -> None:
    missing = [path for path in re.findall(r"\]\(([\w./-]+)\)", README) if not (ROOT / path).exists()]
    assert missing == []
