"""No part of a step asks the device for a value.

Tensors on the meta device have no values, so whatever would read one (`item`, `tolist`, `nonzero`, a condition) raises
there, as it would wait on a GPU. The forms are those that a GPU runs, as far as torch can tell their shapes.
"""

import importlib
from collections.abc import Callable
from typing import Any

import pytest
import torch

from superblock.config.model import AttentionConfig, ModelConfig, MoEConfig, MTPConfig
from superblock.kernels.packing import PackInfo
from superblock.models.batch import Batch, Supervision
from superblock.models.language_model import build_model
from superblock.training.sharding import clip_gradients

META = torch.device("meta")


@pytest.mark.parametrize("window", [None, 5])
@pytest.mark.parametrize("rows", [[16], [7, 9]])
def test_a_whole_step_on_a_device_without_values(
    small: Callable[..., ModelConfig],
    packed: Callable[..., Batch],
    monkeypatch: pytest.MonkeyPatch,
    window: int | None,
    rows: list[int],
) -> None:
    grouped = importlib.import_module("superblock.kernels.experts.grouped")
    monkeypatch.setattr(grouped, "compute_dtype", lambda x: torch.bfloat16)  # the only one whose shapes torch tells
    attention = AttentionConfig(
        num_heads=4, num_kv_heads=2, head_dim=8, rope_fraction=0.5, window=window, backend="sdpa"
    )
    config = small(
        gqa=attention,
        moe=MoEConfig(num_experts=4, top_k=2, d_expert=16, d_shared=16, backend="grouped"),
        mtp=MTPConfig(depth=2, d_hidden=8, d_block=16, last="block"),
    )
    model: Any = build_model(config, seed=1, device="meta")
    optimizer = torch.optim.AdamW(model.parameters(), foreach=True)
    supervision = Supervision(begin=3, end=11, mtp_weight=0.3, exits=((0, 0.1),))
    batch = packed(rows, rows, rows, rows).to(META)
    for part in batch.split(2):
        targets = model.count_targets(part, supervision)
        assert part.num_targets == targets["next_token"] == 32
        output = model(part.input_ids_BT, part.pack, part.labels_BT, supervision=supervision)
        sum(term.weight * term.total / targets[name] for name, term in output.losses.items()).backward()
    clip_gradients(model.parameters(), 1.0)
    optimizer.step()
    model.balance_experts(output.expert_counts_LE, 1e-3)
    assert model.embedding.weight.grad.device == META


def test_a_value_would_be_noticed() -> None:
    """The control of the test above: without the copy on the processor, boundaries have to be read from the device."""
    doc_ids_BT = torch.tensor([[0, 0, 1, 1]])
    on_device = PackInfo.from_doc_ids(doc_ids_BT).to(META)
    assert on_device.slice(1, 4).cu_seqlens.shape == (3,)
    alone = PackInfo(on_device.doc_ids_BT, on_device.position_ids_BT, on_device.cu_seqlens, 2, False)
    with pytest.raises((NotImplementedError, RuntimeError)):
        alone.slice(1, 4)


def test_parts_keep_the_tokens_of_their_rows(packed: Callable[..., Batch]) -> None:
    batch = packed([4, 5], [9], [1, 8], [3, 6])
    parts = batch.split(2)
    assert torch.equal(torch.cat([part.input_ids_BT for part in parts]), batch.input_ids_BT)
    assert sum(part.num_targets for part in parts) == batch.num_targets
    again = [part.pack.cu_seqlens.tolist() for part in batch.to(META).host.split(2)]
    assert again == [part.pack.cu_seqlens.tolist() for part in parts] == [[0, 4, 9, 18], [0, 1, 9, 12, 18]]
