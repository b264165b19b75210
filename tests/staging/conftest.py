"""Finished runs of a model so small that gates and claims are measured in seconds: one from scratch, one grown from it."""

import os
import shutil
import sysconfig
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from superblock.cli.app import compose_run
from superblock.config.run import RunConfig
from superblock.tracking.runs import RunRecord, read_run

SMALL = (
    "scale=mini", "data=text", "data.vocab_size=512", "data.sequence_length=32", "data.test_percent=15", "data.val_percent=15",
    "model.d_model=32", "model.vocab_size=512", "model.max_sequence_length=32", "model.gdn.num_key_heads=1",
    "model.gdn.num_value_heads=2", "model.gdn.key_dim=16", "model.gdn.value_dim=16", "model.gqa.num_heads=2",
    "model.gqa.num_kv_heads=1", "model.gqa.head_dim=16", "model.moe.num_experts=4", "model.moe.d_expert=16",
    "model.moe.d_shared=16", "model.mtp.d_hidden=16", "model.mtp.d_block=32", "trainer.batch_size=4", "trainer.precision=fp32",
    "trainer.budget=12steps", "trainer.log_every=1", "trainer.progress=false", "evaluation=quick", "evaluation.test=true",
    "evaluation.reference_points=true", "tracking=none", "tracking.system_metrics=false", "trainer.threads=1",
)  # fmt: skip


@dataclass
class Stages:
    """The runs `first` (1 superblock) and `second` (3, grown from it) below `runs`, and what composes more."""

    words: tuple[str, ...]

    def compose(self, words: Any) -> RunConfig:
        """As the command line does; what is said about full scale is not made small."""
        chosen = tuple(words)
        return compose_run(chosen if "scale=full" in chosen else (*self.words, *chosen))

    def config(self, name: str, *more: str) -> RunConfig:
        """The configuration that a run was trained with."""
        own = {"first": ("stage=mvp1",), "second": ("stage=mvp2", "parent=first")}[name]
        return self.compose((*own, f"name={name}", *more))

    def record(self, name: str) -> RunRecord:
        found = read_run(Path("runs") / name)
        assert found is not None
        return found


@pytest.fixture(scope="session")
def _trained(tmp_path_factory: pytest.TempPathFactory, _cache: Path) -> tuple[Path, tuple[str, ...]]:
    """Both runs, trained once; and the words that made them."""
    from superblock.training.loop import train

    text, place = tmp_path_factory.mktemp("text"), tmp_path_factory.mktemp("stages")
    library = Path(sysconfig.get_path("stdlib"))
    for path in sorted([*library.glob("json/*.py"), *library.glob("email/*.py")]):
        (text / f"{path.parent.name}_{path.name}").write_text(path.read_text("utf-8"), "utf-8")
    stages = Stages((*SMALL, f"data.path={text}", f"data.cache_dir={_cache}"))
    before = Path.cwd()
    os.chdir(place)
    try:
        for name in ("first", "second"):
            train(stages.config(name))
    finally:
        os.chdir(before)
    return place / "runs", stages.words


@pytest.fixture
def stages(_trained: tuple[Path, tuple[str, ...]], _own_place: None) -> Stages:
    """The trained runs, copied into the test's own folder."""
    runs, words = _trained
    shutil.copytree(runs, "runs")
    return Stages(words)


@pytest.fixture
def evidence(stages: Stages) -> Callable[..., Any]:
    """What gates look at, of one of the runs with further words behind its own."""
    from superblock.staging.evidence import Evidence

    def make(name: str, *more: str) -> Any:
        return Evidence(stages.record(name), stages.config(name, *more), stages.compose)

    return make
