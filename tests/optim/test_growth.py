"""The optimizer of a grown model: whose state is inherited, whose is new, and that a checkpoint is enough for it."""

from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
from torch import Tensor
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard
from torch.testing._internal.distributed.fake_pg import FakeStore

from superblock.config.fields import ConfigError
from superblock.config.model import AttentionConfig, DeltaNetConfig, ModelConfig, MoEConfig, MTPConfig
from superblock.config.optim import OptimConfig
from superblock.models.batch import Supervision
from superblock.models.growth import plan_growth, transplant
from superblock.models.language_model import SuperblockModel, build_model
from superblock.optim.build import build_optimizer
from superblock.optim.growth import transplant_states
from superblock.training import checkpoint, manifest, storage

States = dict[str, dict[str, Tensor]]
Trained = tuple[SuperblockModel, torch.optim.Optimizer]
METHODS = ["identity", "stack", "interpolate"]


def small(superblocks: int) -> ModelConfig:
    return ModelConfig(
        d_model=16, vocab_size=64, num_superblocks=superblocks,
        gdn=DeltaNetConfig(num_key_heads=1, num_value_heads=2, key_dim=8, value_dim=8, chunk_size=8),
        gqa=AttentionConfig(num_heads=2, num_kv_heads=1, head_dim=8),
        moe=MoEConfig(num_experts=2, top_k=1, d_expert=8, d_shared=8), mtp=MTPConfig(d_hidden=8),
    )  # fmt: skip


def step(model: SuperblockModel, optimizer: torch.optim.Optimizer, seed: int, exiting: int | None) -> None:
    """One step in which only one of the early exits has its turn, as in training."""
    tokens = torch.randint(0, 64, (2, 17), generator=torch.Generator().manual_seed(seed))
    exits = () if exiting is None else ((exiting, 0.1),)
    asked = Supervision(begin=0, end=16, mtp_weight=0.3, exits=exits)
    optimizer.zero_grad()
    losses = model(tokens[:, :-1], None, tokens[:, 1:], supervision=asked).losses
    torch.stack([term.weight * term.total / term.count for term in losses.values()]).sum().backward()
    optimizer.step()


def trained(superblocks: int, name: str, steps: int = 3) -> Trained:
    model = build_model(small(superblocks), seed=1)
    optimizer = build_optimizer(model, OptimConfig(name=name, learning_rate=1e-2))
    for i in range(steps):
        step(model, optimizer, i, 0 if superblocks > 1 else None)
    return model, optimizer


def named(model: SuperblockModel, optimizer: torch.optim.Optimizer) -> States:
    return {n: dict(optimizer.state[p]) for n, p in model.named_parameters() if p in optimizer.state}


def grow(parent: Trained, superblocks: int, method: str, name: str) -> Trained:
    config = small(superblocks)
    plan, model = plan_growth(parent[0].config, config, method), build_model(config, seed=5)
    transplant(plan, parent[0].state_dict(), model)
    optimizer = build_optimizer(model, OptimConfig(name=name, learning_rate=1e-2))
    transplant_states(plan, named(*parent), model, optimizer)
    return model, optimizer


@pytest.mark.parametrize("name", ["adamw", "muon"])
@pytest.mark.parametrize("method", METHODS)
def test_state_follows_the_weights(method: str, name: str) -> None:
    parent = trained(3, name)
    before = {n: {k: v.clone() for k, v in state.items()} for n, state in named(*parent).items()}
    plan, grown = plan_growth(small(3), small(6), method), grow(parent, 6, method, name)
    after = named(*grown)
    assert "heads.1.norm.weight" not in before  # the exit that never had its turn
    for target, _ in grown[0].named_parameters():
        source = plan.origins[target].source
        if source is None or source not in before:
            assert target not in after
            continue
        assert after[target].keys() == before[source].keys()
        assert all(torch.equal(after[target][key], value) for key, value in before[source].items()), target
    assert ("superblocks.3.layers.0.mixer.out.weight" in after) == (method != "identity")
    tensors = [value.data_ptr() for state in [*after.values(), *named(*parent).values()] for value in state.values()]
    assert len(set(tensors)) == len(tensors)

    step(*grown, 9, None)
    assert all(
        torch.equal(before[n][k], v) for n, state in named(*parent).items() for k, v in state.items()
    )  # the parent's own


def test_none_starts_anew() -> None:
    parent = trained(1, "adamw")
    model, optimizer = grow(parent, 3, "none", "adamw")
    assert named(model, optimizer) == {}
    step(model, optimizer, 9, 1)
    transplant_states(plan_growth(small(1), small(3), "none"), named(*parent), model, optimizer)
    assert named(model, optimizer) == {}  # a state that the optimizer had is forgotten


@pytest.mark.parametrize("name", ["adamw", "muon"])
def test_each_parameter_counts_its_own_steps(name: str) -> None:
    """After growth, an old and a new parameter of one group are updated as if each were alone in its optimizer."""
    model, optimizer = grow(trained(1, name), 3, "identity", name)
    inherited = {n: {k: v.clone() for k, v in state.items()} for n, state in named(model, optimizer).items()}
    weights = {n: p.detach().clone() for n, p in model.named_parameters()}
    step(model, optimizer, 9, 1)
    kinds = {p: group for group in optimizer.param_groups for p in group["params"]}
    counts = {}
    for n, p in model.named_parameters():
        if p.grad is None:
            assert torch.equal(p, weights[n])
            continue
        group: dict[str, Any] = {k: v for k, v in kinds[p].items() if k != "params"}
        if group.get("muon"):
            continue
        alone = torch.nn.Parameter(weights[n].clone())
        alone.grad = p.grad.clone()
        keys = ("lr", "betas", "eps", "weight_decay")
        single = torch.optim.AdamW([alone], **{key: group[key] for key in keys}, foreach=False)
        if n in inherited:
            single.state[alone] = {k: v.clone() for k, v in inherited[n].items()}
        single.step()
        torch.testing.assert_close(p.detach(), alone.detach(), rtol=1e-5, atol=1e-7)
        counts[n] = int(optimizer.state[p]["step"])
    assert counts["norm.weight"] == 4 and counts["superblocks.0.layers.0.norm.weight"] == 4
    assert counts["superblocks.1.layers.0.norm.weight"] == counts["superblocks.2.layers.0.mixer.A_log"] == 1
    assert counts["heads.1.norm.weight"] == 4  # from the final norm, with its state


@pytest.mark.parametrize("name", ["adamw", "muon"])
def test_two_growths_in_a_row_with_training_between(name: str) -> None:
    one = trained(1, name)
    three = grow(one, 3, "identity", name)
    for i in range(3):
        step(*three, 20 + i, i % 2)
    twelve = grow(three, 12, "identity", name)
    tokens = torch.randint(0, 64, (2, 16), generator=torch.Generator().manual_seed(3))
    torch.testing.assert_close(twelve[0](tokens).logits_BTV, three[0](tokens).logits_BTV, rtol=0, atol=1e-5)
    before, after = named(*three), named(*twelve)
    assert all(
        torch.equal(after[n][k], v) for n in before if n in after for k, v in before[n].items() if "heads" not in n
    )
    assert {n.split(".")[1] for n in after if n.startswith("superblocks.")} == {"0", "1", "2"}
    for i in range(2):
        step(*twelve, 30 + i, i)
    assert all(p.isfinite().all() for p in twelve[0].parameters())
    assert {n.split(".")[1] for n in named(*twelve) if n.startswith("superblocks.")} == {str(s) for s in range(12)}


@pytest.mark.parametrize("method", METHODS)
def test_a_checkpoint_is_enough(tmp_path: Path, method: str) -> None:
    """Weights and state are read by name, without the old model, and what comes out can be saved and resumed."""
    parent = trained(2, "adamw")
    path = checkpoint.save(
        tmp_path, model=parent[0], optimizer=parent[1], progress={"step": 3}, config={"model": asdict(small(2))}
    )
    metadata = storage.read_metadata(path, manifest.read_manifest(path)["files"])
    items = storage.entries(metadata, "")
    tensors = {key: torch.empty(item.size, dtype=item.properties.dtype) for key, item in items.items()}
    storage.read_tensors(path, metadata, tensors)
    state = {key.removeprefix("model/"): value for key, value in tensors.items() if key.startswith("model/")}
    states: States = {}
    for key, value in tensors.items():
        if key.startswith("optimizer/"):
            name, kind = key.removeprefix("optimizer/").rsplit("/", 1)
            states.setdefault(name, {})[kind] = value

    plan, model = plan_growth(small(2), small(4), method), build_model(small(4), seed=5)
    optimizer = build_optimizer(model, OptimConfig(learning_rate=1e-2))
    transplant(plan, state, model)
    transplant_states(plan, states, model, optimizer)
    expected = grow(parent, 4, method, "adamw")
    again = build_model(small(4), seed=8)
    resumed = build_optimizer(again, OptimConfig(learning_rate=1e-2))
    folder = tmp_path / "grown"
    saved = checkpoint.save(
        folder, model=model, optimizer=optimizer, progress={"step": 0}, config={"model": asdict(small(4))}
    )
    checkpoint.load(saved, model=again, optimizer=resumed)
    for pair in ((model, optimizer), (again, resumed), expected):
        step(*pair, 9, 2)
    for ours in (model, again):
        assert all(torch.equal(v, expected[0].state_dict()[n]) for n, v in ours.state_dict().items())


@pytest.mark.parametrize(("theirs", "ours"), [("adamw", "muon"), ("muon", "adamw")])
def test_another_optimizer_is_refused(theirs: str, ours: str) -> None:
    parent = trained(1, theirs)
    with pytest.raises(ConfigError, match=rf"^optim.name: the parent's state of .*; optim.name={theirs} continues it$"):
        grow(parent, 3, "stack", ours)


def test_states_of_another_model_are_refused() -> None:
    parent, config = trained(1, "adamw"), small(3)
    plan, model = plan_growth(small(1), config, "identity"), build_model(config, seed=5)
    optimizer = build_optimizer(model, OptimConfig())
    states = named(*parent)
    with pytest.raises(ValueError, match=r"state of strange.weight, which the plan's parent does not have$"):
        transplant_states(plan, states | {"strange.weight": {}}, model, optimizer)
    odd = states | {"norm.weight": states["norm.weight"] | {"exp_avg": torch.zeros(3)}}
    with pytest.raises(ValueError, match=r"exp_avg of norm.weight is \[3\], not \[16\]$"):
        transplant_states(plan, odd, model, optimizer)
    assert not optimizer.state


@pytest.fixture
def processes() -> Any:
    """Makes this process one rank of several that need not exist."""

    def start(rank: int, world_size: int) -> None:
        dist.init_process_group("fake", store=FakeStore(), rank=rank, world_size=world_size)

    yield start
    dist.destroy_process_group()


def test_sharded_parameters_get_their_part(processes: Callable[[int, int], None]) -> None:
    parent, config = trained(1, "adamw"), small(3)
    whole = named(*grow(parent, 3, "stack", "adamw"))
    processes(3, 6)
    plan, model = plan_growth(small(1), config, "stack"), build_model(config, seed=5)
    for unit in [*model.superblocks, *model.heads, model]:
        fully_shard(unit, mesh=init_device_mesh("cpu", (6,)))
    optimizer = build_optimizer(model, OptimConfig())
    transplant_states(plan, named(*parent), model, optimizer)
    for name, parameter in model.named_parameters():
        for key, value in optimizer.state.get(parameter, {}).items():
            if key == "step":
                assert torch.equal(value, whole[name][key])
                continue
            parts = whole[name][key].chunk(6)
            expected = parts[3] if len(parts) > 3 else whole[name][key][:0]
            assert torch.equal(value.to_local(), expected), name
