"""A configuration whose every case takes a fraction of a second."""

from collections.abc import Iterator

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
