"""Only what an experiment or a search left itself is removed to begin again."""

from pathlib import Path

import pytest

from superblock.benchmarks.ablation.work import discard
from superblock.config.fields import ConfigError
from superblock.tracking.files import write_json
from superblock.tracking.identity import IDENTITY_FILE, write_status
from superblock.tracking.spool import Spool

OWN = {"suite": "search", "study": "foo"}


def made(folder: Path, tags: dict[str, str], status: str | None = "FINISHED", *, steps: int = 1) -> Path:
    """A run; without a status one whose process died."""
    spool = Spool(folder)
    write_json(folder / IDENTITY_FILE, {"uid": "1", "started": 1.0, "suite": "training"})
    spool.append("tags", {"values": {"suite": "training"}})
    spool.append("tags", {"values": tags})
    spool.metrics({"system/memory": 1.0}, 1)
    for step in range(steps):
        spool.metrics({"train/loss": 3.0}, step + 1)
    spool.close()
    if status:
        write_status(folder, status)
    return folder


@pytest.mark.parametrize("status", ["FINISHED", "KILLED", None])
def test_ones_own_is_removed(tmp_path: Path, status: str | None) -> None:
    folder = made(tmp_path / "foo-t0", OWN | {"trial": "0", "arm": "a"}, status)
    assert discard(folder, OWN) and not folder.exists()
    assert not discard(folder, OWN)


@pytest.mark.parametrize("status", ["FINISHED", "KILLED", None])
@pytest.mark.parametrize("tags", [{}, OWN | {"study": "bar"}, OWN | {"suite": "growth"}])
def test_what_is_somebody_elses_stays(tmp_path: Path, tags: dict[str, str], status: str | None) -> None:
    folder = made(tmp_path / "foo-t0", tags, status)
    with pytest.raises(ConfigError, match=r"foo-t0: holds a run that is none of suite=search, study=foo; move it away"):
        discard(folder, OWN)
    assert folder.exists()


def test_an_end_before_anything_was_recorded_leaves_nothing_to_keep(tmp_path: Path) -> None:
    assert discard(made(tmp_path / "killed", {}, None, steps=0), OWN)
    with pytest.raises(ConfigError):
        discard(made(tmp_path / "finished", {}, steps=0), OWN)
