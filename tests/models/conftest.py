"""A model small enough to run in milliseconds, with every part present, and packed batches for it."""

from collections.abc import Callable

import pytest
import torch

from superblock.config.fields import validate
from superblock.config.model import AttentionConfig, DeltaNetConfig, ModelConfig, MoEConfig, MTPConfig
from superblock.kernels.packing import PackInfo
from superblock.models.batch import Batch


@pytest.fixture
def small() -> Callable[..., ModelConfig]:
    """Makes a configuration of width 32; keyword arguments replace sections or values."""

    def make(**changes: object) -> ModelConfig:
        defaults: dict[str, object] = {
            "d_model": 32,
            "vocab_size": 64,
            "num_superblocks": 2,
            "cross_entropy_chunk": 16,
            "gdn": DeltaNetConfig(num_key_heads=2, num_value_heads=4, key_dim=8, value_dim=16, chunk_size=8),
            "gqa": AttentionConfig(num_heads=4, num_kv_heads=2, head_dim=8, rope_fraction=0.5),
            "moe": MoEConfig(num_experts=4, top_k=2, d_expert=16, d_shared=16, route_scale=1.5),
            "mtp": MTPConfig(depth=2, d_hidden=8, d_block=16),
        }
        config = ModelConfig(**(defaults | changes))  # type: ignore[arg-type]
        validate(config, "model.")
        return config

    return make


@pytest.fixture
def packed() -> Callable[..., Batch]:
    """Makes a batch of rows of documents with the given lengths; the label is the next token of the row."""

    def make(*rows: list[int], vocab_size: int = 64, seed: int = 0) -> Batch:
        generator = torch.Generator().manual_seed(seed)
        tokens = torch.randint(0, vocab_size, (len(rows), sum(rows[0]) + 1), generator=generator)
        doc_ids = torch.stack([torch.repeat_interleave(torch.tensor(row)) for row in rows]).to(torch.int32)
        return Batch(tokens[:, :-1].contiguous(), tokens[:, 1:].contiguous(), PackInfo.from_doc_ids(doc_ids))

    return make
