"""A configuration whose every case takes a fraction of a second."""

import os
import shutil
import sysconfig
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from superblock.config.benchmark import BenchmarkConfig, SpeedConfig
from superblock.config.stage import ScaleConfig
from superblock.config.tracking import TrackingConfig

TINY = (
    "scale.name=least", "scale.d_model=32", "scale.vocab_size=512", "scale.key_heads=1", "scale.value_heads=2",
    "scale.delta_head_dim=16", "scale.query_heads=2", "scale.kv_heads=1", "scale.attention_head_dim=16", "scale.experts=4",
    "scale.d_expert=16", "scale.mtp_hidden=16", "scale.mtp_block=32", "speed.sequence_length=32", "speed.part_tokens=64",
    "speed.prefill=[32]", "speed.contexts=[16]", "speed.sequence_lengths=[32]", "speed.head_dims=[16]",
    "speed.superblocks=[1]", "quick=true", "threads=1", "tracking=none", "tracking.system_metrics=false",
)  # fmt: skip
"""Overrides of such a benchmark on the command line."""

SMALL_RUN = (
    "stage=mvp1", "parent=none", "promote=false", "scale=mini", "data=text", "data.vocab_size=512", "data.sequence_length=32",
    "data.test_percent=20", "data.val_percent=15", "model.d_model=32", "model.vocab_size=512", "model.max_sequence_length=32",
    "model.gdn.num_key_heads=1", "model.gdn.num_value_heads=2", "model.gdn.key_dim=16", "model.gdn.value_dim=16",
    "model.gqa.num_heads=2", "model.gqa.num_kv_heads=1", "model.gqa.head_dim=16", "model.moe.num_experts=4",
    "model.moe.d_expert=16", "model.moe.d_shared=16", "model.mtp.enabled=false", "trainer.batch_size=4",
    "trainer.precision=fp32", "trainer.budget=40steps", "trainer.progress=false", "evaluation=quick", "evaluation.test=true",
    "tracking=none", "tracking.system_metrics=false", "trainer.threads=1",
)  # fmt: skip
"""Overrides of a run that ends in a second or two."""


@pytest.fixture
def config() -> BenchmarkConfig:
    """The configuration that `TINY` makes."""
    scale = ScaleConfig(
        name="least", d_model=32, vocab_size=512, key_heads=1, value_heads=2, delta_head_dim=16, query_heads=2, kv_heads=1,
        attention_head_dim=16, experts=4, d_expert=16, mtp_hidden=16, mtp_block=32,
    )  # fmt: skip
    speed = SpeedConfig(
        sequence_length=32, part_tokens=64, prefill=[32], contexts=[16], sequence_lengths=[32], head_dims=[16], superblocks=[1],
    )  # fmt: skip
    tracking = TrackingConfig(store="none", system_metrics=False)
    return BenchmarkConfig(speed=speed, scale=scale, tracking=tracking, quick=True, threads=1)


@pytest.fixture
def tiny() -> tuple[str, ...]:
    """`TINY`, for tests that type the command."""
    return TINY


@pytest.fixture(autouse=True)
def _subnormals_again() -> Iterator[None]:
    """A benchmark flushes subnormal numbers in its process, which the tests after it must not inherit."""
    yield
    torch.set_flush_denormal(False)


@pytest.fixture(scope="session")
def _finished_runs(tmp_path_factory: pytest.TempPathFactory, _cache: Path) -> Path:
    """A folder with one finished run on two packages of the standard library, trained once."""
    from superblock.cli.app import compose_run
    from superblock.training.loop import train

    place, text = tmp_path_factory.mktemp("finished"), tmp_path_factory.mktemp("packages")
    library = Path(sysconfig.get_path("stdlib"))
    for path in sorted([*library.glob("json/*.py"), *library.glob("email/*.py")]):
        (text / path.parent.name).mkdir(exist_ok=True)
        shutil.copyfile(path, text / path.parent.name / path.name)
    before = Path.cwd()
    os.chdir(place)
    try:
        train(compose_run((*SMALL_RUN, f"data.path={text}", f"data.cache_dir={_cache}")))
    finally:
        os.chdir(before)
    return place / "runs"


@pytest.fixture
def finished_run(_finished_runs: Path, _own_place: None) -> Path:
    """That run, copied into the test's own folder."""
    shutil.copytree(_finished_runs, "runs")
    [folder] = Path("runs").glob("mvp1*")
    return folder
