"""What torch.compile is told about the kernels."""

import shutil
from pathlib import Path

import pytest
import torch

from superblock import kernels
from superblock.kernels.tracing import before_compiling, sources_tag

SOURCES = Path(kernels.__file__).parent


def test_compiled_code_of_another_version_is_not_used(monkeypatch: pytest.MonkeyPatch) -> None:
    """What torch keeps on disk is found again by this tag; a user's own is kept, and it does not grow."""
    monkeypatch.setattr(torch.compiler.config, "cache_key_tag", "mine")
    for _ in range(2):
        before_compiling()
        assert torch.compiler.config.cache_key_tag == f"mine{sources_tag(SOURCES)}"


@pytest.mark.parametrize("file", ["norm/native.py", "norm/native.cpp", "native/strips.h"])
def test_the_tag_changes_with_every_source(tmp_path: Path, file: str) -> None:
    copy = shutil.copytree(SOURCES, tmp_path / "kernels", ignore=shutil.ignore_patterns("__pycache__"))
    assert sources_tag(copy) == sources_tag(SOURCES)
    with (copy / file).open("a") as text:
        text.write("\n")
    assert sources_tag(copy) != sources_tag(SOURCES)


def test_the_tag_changes_with_a_name(tmp_path: Path) -> None:
    (tmp_path / "a.py").write_text("x")
    former = sources_tag(tmp_path)
    (tmp_path / "a.py").rename(tmp_path / "b.py")
    assert sources_tag(tmp_path) != former
