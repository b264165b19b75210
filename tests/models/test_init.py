"""Initial weights: the table, and independence from construction, sharding and the rest of the model."""

import math
from collections.abc import Callable, Iterator

import pytest
import torch
import torch.distributed as dist
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard
from torch.testing._internal.distributed.fake_pg import FakeStore

from superblock.config.model import DeltaNetConfig, ModelConfig, MoEConfig, MTPConfig
from superblock.models.init import init_weights, initial_std, writer_std
from superblock.models.language_model import build_model

Small = Callable[..., ModelConfig]


def test_meta_then_init_equals_a_direct_build(small: Small) -> None:
    direct = build_model(small(), seed=7)
    later = build_model(small(), seed=7, device="meta")
    assert all(p.is_meta for p in later.parameters())
    later.to_empty(device="cpu")
    for tensor in [*later.parameters(), *later.buffers()]:
        tensor.data.fill_(float("nan"))
    init_weights(later, 7)
    state = later.state_dict()
    assert all(torch.equal(value, state[name]) for name, value in direct.state_dict().items())


def test_seed_and_global_generator(small: Small) -> None:
    torch.manual_seed(0)
    first = build_model(small(), seed=1).state_dict()
    torch.manual_seed(1)
    again, other = build_model(small(), seed=1).state_dict(), build_model(small(), seed=2).state_dict()
    assert all(torch.equal(value, again[name]) for name, value in first.items())
    assert not torch.equal(first["embedding.weight"], other["embedding.weight"])


def test_a_superblock_does_not_depend_on_the_others(small: Small) -> None:
    one, three = (build_model(small(num_superblocks=n), seed=1).state_dict() for n in (1, 3))
    for name in (name for name in one if name.startswith("superblocks.0.") or name in ("embedding.weight",)):
        leaf = name.removesuffix(".weight").rpartition(".")[2]
        scale = math.sqrt(3) if leaf in ("out", "down", "shared_down") else 1.0
        torch.testing.assert_close(one[name], three[name] * scale, rtol=1e-6, atol=0)


def test_statistics_match_the_table() -> None:
    config = ModelConfig(
        d_model=128,
        num_superblocks=2,
        gdn=DeltaNetConfig(num_key_heads=128, num_value_heads=256, key_dim=8, value_dim=8),
        moe=MoEConfig(num_experts=16, d_expert=64, d_shared=64),
        mtp=MTPConfig(last="block", d_hidden=64),
    )
    assert initial_std(config) == 0.02
    assert writer_std(config) == pytest.approx(0.02 / math.sqrt(8))
    for name, p in build_model(config, seed=3).named_parameters():
        leaf = name.removesuffix(".weight").rpartition(".")[2]
        if leaf.endswith("norm"):
            assert (p == 1).all(), name
        elif leaf == "w2":
            assert (p == 0).all(), name
        elif leaf == "conv":
            assert p.abs().max() <= 0.5
            assert p.std().item() == pytest.approx(0.5 / math.sqrt(3), rel=0.05)
        elif leaf == "A_log":
            assert p.exp().min() >= 0.01 and p.exp().max() <= 16
            assert p.exp().mean().item() == pytest.approx(8, rel=0.1)
        elif leaf == "dt_bias":
            step = torch.nn.functional.softplus(p)
            assert step.min() >= 0.99e-3 and step.max() <= 1.01e-1
            assert step.log().mean().item() == pytest.approx(math.log(1e-2), rel=0.05)
        else:
            std = writer_std(config) if leaf in ("out", "down", "shared_down") else 0.02
            assert p.std().item() == pytest.approx(std, rel=0.07), name
            assert abs(p.mean().item()) < 5 * std / math.sqrt(p.numel()), name


def test_the_delta_rule_starts_with_a_memory_of_several_tokens() -> None:
    config = ModelConfig(gdn=DeltaNetConfig(num_key_heads=256, num_value_heads=1024, key_dim=8, value_dim=8))
    mixer = build_model(config, seed=0).superblocks[0].layers[0].mixer  # type: ignore[index, union-attr]
    g, _ = mixer.gates(torch.zeros(1, 1, 256))
    half_life = math.log(0.5) / g
    assert 5 < half_life.median() < 25


def test_init_std_can_be_set_and_follows_the_width(small: Small) -> None:
    assert initial_std(small(init_std=0.5)) == 0.5
    assert initial_std(ModelConfig(d_model=8192)) == pytest.approx(8192**-0.5)


@pytest.fixture
def processes() -> Iterator[Callable[[int, int], None]]:
    """Makes this process one rank of several that need not exist."""

    def start(rank: int, world_size: int) -> None:
        dist.init_process_group("fake", store=FakeStore(), rank=rank, world_size=world_size)

    yield start
    dist.destroy_process_group()


# a world size each: torch remembers a mesh's coordinates for the life of the interpreter
@pytest.mark.parametrize(("rank", "world_size"), [(0, 2), (1, 3), (3, 4), (4, 5)])
def test_shards_hold_their_part_of_the_same_weights(
    small: Small, processes: Callable[[int, int], None], rank: int, world_size: int
) -> None:
    """Even and uneven shards; with six experts on four ranks the last one has none."""
    config = small(moe=MoEConfig(num_experts=6, d_expert=16, d_shared=16))
    whole = dict(build_model(config, seed=5).named_parameters())
    processes(rank, world_size)
    model = build_model(config, seed=5, device="meta")
    mesh = init_device_mesh("cpu", (world_size,))
    for unit in [*model.superblocks, *model.heads, model]:
        fully_shard(unit, mesh=mesh)
    model.to_empty(device="cpu")
    init_weights(model, 5)
    for name, parameter in model.named_parameters():
        parts = whole[name].chunk(world_size)
        expected = parts[rank] if rank < len(parts) else whole[name][:0]
        assert torch.equal(parameter.to_local(), expected), name  # type: ignore[operator]
