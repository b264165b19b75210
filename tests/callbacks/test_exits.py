"""The curve of exits: what is recorded from the test's results, and when the speed is left out."""

from contextlib import nullcontext
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import nn

from superblock.callbacks.exits import ExitCurve
from superblock.callbacks.perplexity import Perplexity
from superblock.config.model import AttentionConfig, DeltaNetConfig, ModelConfig, MoEConfig, MTPConfig
from superblock.kernels.packing import PackInfo
from superblock.models.batch import Batch
from superblock.models.language_model import SuperblockModel, build_model

RESULTS = {
    "test/bits_per_byte": 2.0, "test/loss": 1.0, "test/exit_1/bits_per_byte": 3.0, "test/exit_1/loss": 2.0,
    "test/exit_2/bits_per_byte": 2.5, "test/exit_2/loss": 1.5,
}  # fmt: skip


def small(**mtp: object) -> SuperblockModel:
    return build_model(
        ModelConfig(
            d_model=16, vocab_size=64, num_superblocks=3, max_sequence_length=16,
            gdn=DeltaNetConfig(num_key_heads=1, num_value_heads=2, key_dim=8, value_dim=8, chunk_size=8),
            gqa=AttentionConfig(num_heads=2, num_kv_heads=1, head_dim=8),
            moe=MoEConfig(num_experts=2, top_k=1, d_expert=8, d_shared=8), mtp=MTPConfig(d_hidden=8, **mtp),
        ), seed=2,
    )  # fmt: skip


@pytest.fixture
def asked() -> list[int]:
    """Rows of the batches that speed was measured with."""
    return []


@pytest.fixture
def tested(module: Any, trainer: SimpleNamespace, asked: list[int]) -> tuple[ExitCurve, Any, SimpleNamespace]:
    """A callback after a test, its module and its trainer."""
    perplexity = Perplexity(train_bytes_per_token=4.0)
    perplexity.results = dict(RESULTS)

    def few(rows: int) -> Batch:
        asked.append(rows)
        ids_BT = torch.randint(64, (rows, 16), generator=torch.Generator().manual_seed(0))
        return Batch(ids_BT, ids_BT.roll(-1, 1), PackInfo.dense(rows, 16))

    module.model, module.data = small(), SimpleNamespace(few=few)
    module.config.data.sequence_length = 512
    trainer.precision_plugin = SimpleNamespace(test_step_context=nullcontext)
    return ExitCurve(perplexity), module, trainer


def test_one_point_per_exit(tested: tuple[ExitCurve, Any, SimpleNamespace], asked: list[int]) -> None:
    curve, module, trainer = tested
    curve.on_test_end(trainer, module)
    assert module.tracker.series("exits/bits_per_byte") == [(1, 3.0), (2, 2.5), (3, 2.0)]
    assert dict(module.tracker.series("exits/perplexity")) == pytest.approx({1: 7.389, 2: 4.4817, 3: 2.7183}, rel=1e-4)
    speeds = module.tracker.series("exits/tokens_per_second")
    assert [s for s, _ in speeds] == [1, 2, 3]
    assert all(value > 0 for _, value in speeds)
    assert curve.results["2"] == {
        "bits_per_byte": 2.5, "perplexity": pytest.approx(4.4817, rel=1e-4), "tokens_per_second": speeds[1][1],
    }  # fmt: skip
    assert asked == [2]  # 1,024 tokens


def test_exits_that_never_learnt_are_left_out(tested: tuple[ExitCurve, Any, SimpleNamespace]) -> None:
    curve, module, trainer = tested
    module.model = small(exits="stages")
    curve.on_test_end(trainer, module)
    assert list(curve.results) == ["1", "3"]


def test_a_sharded_model_has_no_speed(tested: tuple[ExitCurve, Any, SimpleNamespace], asked: list[int]) -> None:
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.fsdp import fully_shard

    curve, module, trainer = tested
    torch.distributed.init_process_group("gloo", store=torch.distributed.HashStore(), rank=0, world_size=1)
    try:
        fully_shard(module.model, mesh=init_device_mesh("cpu", (1,)))
        curve.on_test_end(trainer, module)
    finally:
        torch.distributed.destroy_process_group()
    assert asked == []
    assert curve.results["3"] == {"bits_per_byte": 2.0, "perplexity": pytest.approx(2.7183, rel=1e-4)}


@pytest.mark.parametrize("case", ["another process", "another family"])
def test_nothing_to_record(tested: tuple[ExitCurve, Any, SimpleNamespace], case: str) -> None:
    curve, module, trainer = tested
    if case == "another process":
        trainer.is_global_zero = False
    else:
        module.model = nn.Linear(2, 2)
    curve.on_test_end(trainer, module)
    assert curve.results == {}
    assert module.tracker.steps == []
