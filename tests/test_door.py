"""`python -m platform.<command>`: the standard module is untouched, and every command file opens the console script."""

import importlib.util
import os
import runpy
import shutil
import subprocess
import sys
import types
from pathlib import Path

import pytest

COMMANDS = ("run", "generate", "plan", "benchmark", "report", "ui")


def python(*words: str, cwd: Path, **environment: str) -> subprocess.CompletedProcess[str]:
    inherited = {k: v for k, v in os.environ.items() if k not in ("PYTHONSAFEPATH", "PYTHONPATH")}
    return subprocess.run(
        [sys.executable, *words], cwd=cwd, env=inherited | environment, capture_output=True, text=True, timeout=120
    )


def load(name: str, file: Path) -> types.ModuleType:
    spec = importlib.util.spec_from_file_location(name, file)
    assert spec and spec.loader
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="module")
def shim(root: Path) -> types.ModuleType:
    return load("platform_of_the_repository", root / "platform" / "__init__.py")


@pytest.fixture(scope="module")
def standard() -> types.ModuleType:
    """Read from its file: `import platform` finds the repository's folder under `python -m pytest`."""
    return load("platform_of_python", Path(os.__file__).parent / "platform.py")


def test_every_attribute_is_the_standard_one(shim: types.ModuleType, standard: types.ModuleType) -> None:
    names = [name for name in vars(standard) if not name.startswith("__")]
    assert len(names) > 40
    for name in names:
        ours, theirs = getattr(shim, name), getattr(standard, name)
        assert type(ours).__name__ == type(theirs).__name__, name
        if isinstance(theirs, types.FunctionType):
            assert ours.__code__ == theirs.__code__, name
        elif isinstance(theirs, types.ModuleType | str | int | dict):
            assert ours == theirs, name


def test_it_answers_as_the_standard_module(shim: types.ModuleType, standard: types.ModuleType) -> None:
    for name in ("platform", "python_version", "machine", "system", "node", "release", "python_implementation"):
        assert getattr(shim, name)() == getattr(standard, name)()
    assert tuple(shim.uname()) == tuple(standard.uname())


def test_python_m_platform_still_says_what_it_said(
    root: Path, standard: types.ModuleType, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys, "argv", ["platform"])
    runpy.run_path(str(root / "platform" / "__main__.py"), run_name="__main__")
    out, err = capsys.readouterr()
    assert out.strip() == standard.platform(aliased=True)
    assert "platform.{run,generate,plan,benchmark,report,ui}" in err


def test_every_command_has_a_file_and_every_file_a_command(root: Path) -> None:
    from superblock.cli.commands import COMMANDS as known

    files = {file.stem for file in (root / "platform").glob("*.py") if not file.stem.startswith("_")}
    assert files == set(known) == set(COMMANDS)


@pytest.mark.parametrize("command", COMMANDS)
def test_a_command_file_only_opens_the_door(command: str, root: Path) -> None:
    lines = (root / "platform" / f"{command}.py").read_text().splitlines()
    assert len([line for line in lines if line and not line.startswith('"""')]) == 3
    assert f'start("{command}")' in lines[-1]


def test_from_the_root_of_the_repository(root: Path) -> None:
    answer = python("-m", "platform.plan", "stage=mvp9", cwd=root)
    assert answer.returncode == 2
    assert answer.stderr.startswith("stage=mvp9: must be one of mvp1, mvp2, mvp3, mvp4")


def test_a_bare_clone_says_how_to_install(root: Path, tmp_path: Path) -> None:
    (tmp_path / "platform").mkdir()
    for file in (root / "platform").glob("*.py"):
        shutil.copy(file, tmp_path / "platform")
    answer = python("-S", "-m", "platform.run", cwd=tmp_path)  # without site-packages nothing is installed
    assert answer.returncode == 1
    assert "python -m pip install -c constraints.txt -e ." in answer.stderr
    assert len(answer.stderr.splitlines()) <= 2


def test_with_a_safe_path_python_finds_only_its_own_module(root: Path) -> None:
    """Then `superblock run` is the same command; README says so under troubleshooting."""
    answer = python("-m", "platform.run", cwd=root, PYTHONSAFEPATH="1")
    assert answer.returncode == 1
    assert "platform.run" in answer.stderr and "ModuleNotFoundError" in answer.stderr


def test_cpython_tests_of_the_module(root: Path) -> None:
    if importlib.util.find_spec("test") is None or importlib.util.find_spec("test.test_platform") is None:
        pytest.skip("this interpreter does not ship CPython's own tests (on Debian: libpython3-testsuite)")
    answer = python("-m", "unittest", "test.test_platform", cwd=root)
    assert answer.returncode == 0, answer.stderr[-3000:]
    assert "Ran " in answer.stderr
