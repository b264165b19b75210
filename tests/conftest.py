"""What holds for every test: one thread, a cache and a current folder of its own, and a way to type a command."""

import logging
import os
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from hypothesis import settings

os.environ["OMP_NUM_THREADS"] = os.environ["MKL_NUM_THREADS"] = "1"
os.environ["HF_HUB_OFFLINE"] = os.environ["HF_DATASETS_OFFLINE"] = "1"

ROOT = Path(__file__).parents[1]

settings.register_profile("untimed", deadline=None)  # how fast a shared machine is says nothing about the code
settings.load_profile("untimed")


@dataclass(frozen=True)
class Answer:
    """What a command said and how it ended."""

    status: int
    out: str
    err: str


@pytest.fixture(scope="session")
def _cache(tmp_path_factory: pytest.TempPathFactory, pytestconfig: pytest.Config) -> Path:
    """The cache of a session; compiled kernels outlive it, in pytest's own cache."""
    folder = tmp_path_factory.getbasetemp() / "cache"
    folder.mkdir()
    if pytestconfig.cache is not None:
        (folder / "kernels").symlink_to(pytestconfig.cache.mkdir("kernels"), target_is_directory=True)
    return folder


@pytest.fixture(autouse=True)
def _own_place(tmp_path: Path, _cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whatever a test writes goes below its temporary folder; only corpora and kernels are shared."""
    cache = _cache
    monkeypatch.setenv("SUPERBLOCK_CACHE", str(cache))
    monkeypatch.setenv("XDG_CACHE_HOME", str(cache))
    monkeypatch.chdir(tmp_path)


@pytest.fixture(autouse=True)
def _same_start() -> Iterator[None]:
    """Pools of several threads fight for the cores of a small machine; a test may have asked for more than one.

    A training also has the processor flush subnormal numbers, with which hypothesis cannot draw; and what a test draws
    itself should not depend on the tests before it.
    """
    if "torch" in sys.modules:
        torch = sys.modules["torch"]
        torch.set_num_threads(1)
        torch.set_flush_denormal(False)
        torch.default_generator.manual_seed(0)
    yield


@pytest.fixture(scope="session")
def root() -> Path:
    """The root of the repository."""
    return ROOT


@pytest.fixture
def superblock(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Iterator[Callable[..., Answer]]:
    """Types `superblock <words>` in this process."""
    from superblock.cli.__main__ import main

    root = logging.getLogger()
    handlers, level = list(root.handlers), root.level  # `--info` has Hydra log everything to stderr from then on

    def type_command(*words: str) -> Answer:
        monkeypatch.setattr(sys, "argv", ["superblock", *words])
        capsys.readouterr()
        status = 0
        try:
            main()
        except SystemExit as end:
            status = end.code if isinstance(end.code, int) else 1
        return Answer(status, *capsys.readouterr())

    yield type_command
    root.handlers[:], root.level = handlers, level


@pytest.fixture
def compose(monkeypatch: pytest.MonkeyPatch) -> Callable[..., Any]:
    """Makes the checked configuration of a command line, such as `compose("run", "stage=mvp2")`."""
    from superblock.cli import app
    from superblock.cli.commands import COMMANDS

    def make(name: str, *overrides: str) -> Any:
        monkeypatch.setattr(sys, "argv", ["superblock", *overrides])
        [(_, composed)] = app.compose(COMMANDS[name])
        return app.configuration(COMMANDS[name], composed)

    return make
