"""Counts of parameters, FLOPs and bytes: against published numbers, by hand, and against the built model."""

import re
import subprocess
import sys
from dataclasses import replace

import pytest

from superblock.config.model import AttentionConfig, DeltaNetConfig, ModelConfig, MoEConfig, MTPConfig
from superblock.models.formulas import count, layers_per_superblock, mean_context, named_layers

FULL = ModelConfig(
    d_model=8192,
    vocab_size=50432,
    num_superblocks=12,
    max_sequence_length=4096,
    gdn=DeltaNetConfig(num_key_heads=16, num_value_heads=32, key_dim=256, value_dim=256),
    gqa=AttentionConfig(num_heads=16, num_kv_heads=4, head_dim=256),
    moe=MoEConfig(num_experts=128, top_k=8, d_expert=3008, d_shared=3008),
    mtp=MTPConfig(last="block", d_hidden=2048, d_block=8192),
)
SMALL = ModelConfig(d_model=64, vocab_size=128, gdn=DeltaNetConfig(2, 2, 16, 16), gqa=AttentionConfig(4, 2, 16))


def small(**changes: object) -> ModelConfig:
    return replace(SMALL, **changes)  # type: ignore[arg-type]


VARIANTS = {
    "full": FULL,
    "full, 1 superblock": replace(FULL, num_superblocks=1),
    "small": SMALL,
    "literal": small(wiring="literal", num_superblocks=2),
    "tied": small(tie_embeddings=True),
    "attention only": small(pattern=["gqa"], num_superblocks=3),
    "three to one": small(pattern=["gdn", "gdn", "gdn", "gqa"], num_superblocks=2),
    "grouped values": small(gdn=DeltaNetConfig(2, 6, 16, 24, conv_width=2)),
    "no output gate": small(gqa=AttentionConfig(4, 1, 16, output_gate=False)),
    "no shared expert": small(moe=MoEConfig(d_shared=0)),
    "shared gate": small(moe=MoEConfig(score="softmax", shared_gate=True)),
    "no heads": small(mtp=MTPConfig(enabled=False), num_superblocks=2),
    "block head": small(mtp=MTPConfig(last="block"), num_superblocks=3),
    "block head alone": small(mtp=MTPConfig(last="block")),
    "two depths": small(mtp=MTPConfig(last="block", depth=2), num_superblocks=2),
}


@pytest.mark.parametrize(
    ("superblocks", "total", "active"),
    [(12, 235_366_983_936, 21_044_119_296), (1, 20.74e9, 2.13e9), (3, 59.76e9, 5.57e9), (6, 118.30e9, 10.73e9)],
)
def test_full_scale_is_the_planned_size(superblocks: int, total: float, active: float) -> None:
    counts = count(replace(FULL, num_superblocks=superblocks))
    tolerance = 0 if superblocks == 12 else 0.005e9
    assert abs(counts.total - total) <= tolerance
    assert abs(counts.active - active) <= tolerance


def test_full_scale_row_by_row() -> None:
    rows = {(row.layer, row.name): (row.parameters, row.copies) for row in count(FULL).rows}
    assert rows[2, "Gated DeltaNet"] == (269_025_600, 12)
    assert rows[5, "Grouped Query Attention"] == (117_441_024, 12)
    assert rows[3, "MoE FFN"] == rows[6, "MoE FFN"] == (9_537_331_200, 12)
    assert rows[8, "MTP Head (mlp)"][0] * 11 + rows[8, "MTP Head (block)"][0] == 1_006_854_656
    assert count(FULL).rows[3].active == 666_378_240


def test_full_scale_bytes_and_flops() -> None:
    counts = count(FULL)
    assert counts.kv_bytes_per_token() == 48 * 1024
    assert counts.recurrent_state_bytes() == 96 * 2**20
    assert counts.conv_state_bytes() == 12 * 3 * (2 * 4096 + 8192) * 2
    assert counts.weight_bytes() == 470_733_967_872
    assert counts.training_bytes() == 16 * counts.total == pytest.approx(3.77e12, abs=0.005e12)
    assert counts.flops_per_token(1) == pytest.approx(42e9, rel=0.01)


def test_flops_of_a_model_small_enough_to_count_by_hand() -> None:
    config = small(pattern=["gqa"], moe=MoEConfig(num_experts=4, top_k=2, d_expert=8, d_shared=16))
    D, queries, keys = 64, 4 * 16, 2 * 16
    attention = 2 * (D * (queries + queries + 2 * keys) + queries * D) + 4 * queries * 10
    experts = 2 * (4 * D + 3 * D * 16 + 2 * 3 * D * 8)
    assert count(config).flops_per_token(10) == attention + experts + 2 * D * 128
    head = 0.25 * (2 * 3 * D * 64 + 2 * D * 128)
    assert count(config).head_flops_per_token(10) == head
    mean = (256 + 1) / 2
    forward = count(config).flops_per_token(mean)
    assert count(config).training_flops_per_token() == 3 * (forward + head)
    assert count(config).training_flops_per_token(heads=False) == 3 * forward


def test_heads_cost_more_with_an_early_exit_and_nothing_when_off() -> None:
    one, two = count(SMALL), count(small(num_superblocks=2))
    exit_flops = 0.25 * (2 * 3 * 64 * 64 + 2 * 2 * 64 * 128)
    assert two.head_flops_per_token(8) == one.head_flops_per_token(8) + exit_flops
    assert count(VARIANTS["no heads"]).head_flops_per_token(8) == 0


def test_flops_of_the_exits_that_learn_together() -> None:
    def exits(superblocks: int, **mtp: object) -> float:
        both = [small(num_superblocks=superblocks, mtp=MTPConfig(**m)) for m in (mtp, {"exit_weight": 0.0})]
        learning, none = (count(config).head_flops_per_token(8) for config in both)
        return learning - none

    unembed, depth = 2 * 64 * 128, 2 * 3 * 64 * 64
    assert exits(6) == exits(6, exits="stages") == 0.25 * (2 * unembed + depth)
    assert exits(6, exits="all") == 0.25 * 5 * (2 * unembed + depth)
    assert exits(6, exits="all", exit_mtp=False) == 0.25 * 5 * unembed
    assert exits(1, exits="all") == 0


def test_a_window_bounds_the_context() -> None:
    windowed = count(small(gqa=AttentionConfig(4, 2, 16, window=8)))
    assert windowed.flops_per_token(8) == windowed.flops_per_token(1000) < count(SMALL).flops_per_token(9)
    assert mean_context(4) == 2.5
    assert mean_context(4, 2) == (1 + 2 + 2 + 2) / 4
    assert mean_context(4, 100) == 2.5


def test_the_seed_counts_101_layers() -> None:
    layers = named_layers(FULL)
    assert len(layers) == 2 + 12 * 8 + 3 == 101
    assert sum(layer.parameters for layer in layers) == count(FULL).total
    assert [layer.name for layer in layers if layer.superblock == 12] == [
        "RMSNorm", "Gated DeltaNet", "MoE FFN", "RMSNorm", "Grouped Query Attention", "MoE FFN", "RMSNorm", "MTP Head (block)",
    ]  # fmt: skip


@pytest.mark.parametrize("config", VARIANTS.values(), ids=VARIANTS)
def test_named_layers_hold_every_parameter(config: ModelConfig) -> None:
    layers = named_layers(config)
    assert len(layers) == 2 + config.num_superblocks * layers_per_superblock(config) + 3
    assert sum(layer.parameters for layer in layers) == count(config).total


@pytest.mark.parametrize("config", VARIANTS.values(), ids=VARIANTS)
def test_formulas_equal_the_built_model(config: ModelConfig) -> None:
    from superblock.models.language_model import build_model

    sizes = {name: p.numel() for name, p in build_model(config, seed=0, device="meta").named_parameters()}
    counts = count(config)
    assert counts.total == sum(sizes.values())
    for row in counts.rows:
        assert row.total == sum(n for name, n in sizes.items() if re.match(row.where, name)), row.name
    for name in sizes:
        assert sum(bool(re.match(row.where, name)) for row in counts.rows) == 1, name


def test_counting_needs_no_torch() -> None:
    code = "import sys, superblock.models.formulas; assert 'torch' not in sys.modules and 'numpy' not in sys.modules"
    subprocess.run([sys.executable, "-c", code], check=True)


def test_heads_cost_nothing_before_they_begin() -> None:
    """Averaged over a training, as it is supervised: the exits may begin at another time than the multi-token loss."""

    def mean(**mtp: object) -> float:
        return count(small(num_superblocks=3, mtp=MTPConfig(**mtp))).mean_training_flops_per_token(8)

    whole = count(small(num_superblocks=3)).training_flops_per_token(8)
    trunk = count(small(num_superblocks=3)).training_flops_per_token(8, heads=False)
    assert mean(start=0) == pytest.approx(whole)
    assert mean(start=1) == mean(enabled=False) == pytest.approx(trunk)
    assert mean(start=0.25) == pytest.approx(0.25 * trunk + 0.75 * whole)
    exits_alone = mean(start=1, exit_start=0.5) - trunk
    assert exits_alone == pytest.approx(3 * 0.5 * 0.25 * 2 * 64 * 128)  # half of the training, a quarter of the tokens
