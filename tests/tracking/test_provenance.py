"""Commit, machine, versions, command."""

import os
import subprocess
from pathlib import Path

import pytest

from superblock.tracking import provenance
from superblock.tracking.provenance import Hardware, code_state


@pytest.fixture
def project(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A repository with one committed module."""
    monkeypatch.setenv("GIT_DIR", "/nowhere")  # as a hook would set; it must not mislead
    (tmp_path / "module.py").write_text("a = 1\n")
    git(tmp_path, "init", "-q", "-b", "trunk")
    git(tmp_path, "add", ".")
    git(tmp_path, "commit", "-q", "-m", "Start")
    return tmp_path


def git(folder: Path, *arguments: str) -> str:
    clean = {k: v for k, v in os.environ.items() if not k.startswith("GIT_")}
    identity = ["-c", "user.name=a", "-c", "user.email=a@b"]
    command = ["git", "-C", str(folder), *identity, *arguments]
    return subprocess.run(command, check=True, capture_output=True, text=True, env=clean).stdout.strip()


def test_clean_tree(project: Path) -> None:
    (project / "notes.txt").write_text("not source")
    code = code_state(project / "module.py")
    assert (code.commit, code.branch) == (git(project, "rev-parse", "HEAD"), "trunk")
    assert not code.dirty and code.diff == ""


def test_dirty_tree(project: Path) -> None:
    (project / "module.py").write_text("a = 2\n")
    code = code_state(project / "module.py")
    assert code.dirty and "-a = 1\n+a = 2" in code.diff


def test_new_source_file_is_dirty(project: Path) -> None:
    (project / "new.py").write_text("")
    code = code_state(project / "module.py")
    assert code.dirty and code.untracked == ["new.py"] and code.diff == ""


def test_diff_is_limited(project: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(provenance, "MAX_DIFF_BYTES", 100)
    (project / "module.py").write_text("b\n" * 500)
    assert "[cut: the whole diff has" in code_state(project / "module.py").diff


def test_foreign_repository_is_not_ours(project: Path, tmp_path_factory: pytest.TempPathFactory) -> None:
    (project / ".gitignore").write_text("venv\n")
    (project / "venv").mkdir()
    (project / "venv" / "installed.py").write_text("")
    assert code_state(project / "venv" / "installed.py") == provenance.Code()
    assert code_state(tmp_path_factory.mktemp("bare") / "absent.py") == provenance.Code()


def test_without_git(project: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", "")
    assert code_state(project / "module.py") == provenance.Code()


def test_environment_has_no_secrets(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    monkeypatch.setenv("HF_TOKEN", "hunter2")
    monkeypatch.setenv("UNRELATED", "x")
    found = provenance.environment()
    assert found["OMP_NUM_THREADS"] == "1" and not {"HF_TOKEN", "UNRELATED"} & found.keys()


def test_hardware_fingerprint() -> None:
    one, two = Hardware("cpu", 2, 16, []), Hardware("cpu", 2, 16, ["gpu"])
    assert one.fingerprint == Hardware("cpu", 2, 16, []).fingerprint != two.fingerprint
    assert one.describe() == "2 x cpu, 16 GiB, no GPU"
    real = provenance.hardware()
    assert real.cpu and real.cores >= 1 and real.memory_gib >= 1


def test_versions() -> None:
    assert {"python", "torch", "mlflow"} <= provenance.versions().keys()
