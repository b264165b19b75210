"""Growth: what stays equal, what is copied from where, and that new superblocks learn."""

from collections.abc import Callable
from dataclasses import fields, is_dataclass
from itertools import pairwise
from typing import Any

import pytest
import torch
import torch.distributed as dist
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard
from torch.testing._internal.distributed.fake_pg import FakeStore

from superblock.config.fields import ConfigError
from superblock.config.model import AttentionConfig, DeltaNetConfig, ModelConfig, MoEConfig, MTPConfig
from superblock.config.optim import OptimConfig
from superblock.kernels.packing import PackInfo
from superblock.models.batch import Batch, Supervision
from superblock.models.growth import MAY_DIFFER, METHODS, plan_growth, transplant
from superblock.models.init import WRITERS, leaf_name
from superblock.models.language_model import SuperblockModel, build_model
from superblock.optim.build import build_optimizer

Small = Callable[..., ModelConfig]
Packed = Callable[..., Batch]

SIZES = [(1, 3), (3, 6), (6, 12), (1, 12)]
BLOCK = MTPConfig(depth=2, last="block", d_hidden=8, d_block=16)
VARIANTS: dict[str, dict[str, Any]] = {
    "prenorm": {},
    "literal-tied": {"wiring": "literal", "tie_embeddings": True},
    "block-head": {"mtp": BLOCK},
    "gqa": {"pattern": ["gqa"], "wiring": "literal"},
    "gdn-gdn-gqa": {"pattern": ["gdn", "gdn", "gqa"], "tie_embeddings": True},
    "softmax-shared-gate": {
        "moe": MoEConfig(num_experts=4, top_k=2, d_expert=16, d_shared=16, score="softmax", shared_gate=True)
    },
    "no-heads-no-shared": {
        "moe": MoEConfig(num_experts=4, top_k=1, d_expert=16, d_shared=0),
        "mtp": MTPConfig(enabled=False),
    },
}


def trained(config: ModelConfig, seed: int = 1) -> SuperblockModel:
    """A model none of whose tensors is as it was at the start: norms differ from each other and from 1, biases from 0."""
    model = build_model(config, seed=seed)
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, tensor in model.state_dict().items():
            spread = 0.01 if name.endswith("balance_bias") else 0.1
            tensor.add_(spread * torch.randn(tensor.shape, generator=generator))
    return model


def grow(parent: SuperblockModel, config: ModelConfig, method: str, seed: int = 5) -> SuperblockModel:
    model = build_model(config, seed=seed)
    transplant(plan_growth(parent.config, config, method), parent.state_dict(), model)
    return model


def exit_logits(model: SuperblockModel, ids_BT: Tensor) -> list[Tensor]:
    """Of every early exit, then of the model."""
    pack, x_BTD, found = PackInfo.dense(*ids_BT.shape), model.embedding(ids_BT), []
    for superblock, head in zip(model.superblocks, model.heads, strict=True):
        x_BTD, _ = superblock(x_BTD, pack)
        found.append(F.linear(head.norm(x_BTD), model.output_weight))
    return [*found[:-1], model(ids_BT).logits_BTV]


def objective(model: SuperblockModel, batch: Batch, supervision: Supervision | None) -> Tensor:
    output = model(batch.input_ids_BT, batch.pack, batch.labels_BT, supervision=supervision)
    return torch.stack([term.weight * term.total / max(1, term.count) for term in output.losses.values()]).sum()


@pytest.mark.parametrize("variant", VARIANTS)
@pytest.mark.parametrize(("before", "after"), SIZES)
@torch.no_grad()
def test_identity_keeps_all_logits(small: Small, packed: Packed, variant: str, before: int, after: int) -> None:
    parent = trained(small(num_superblocks=before, **VARIANTS[variant]))
    grown = grow(parent, small(num_superblocks=after, **VARIANTS[variant]), "identity")
    ids = packed([17], [17], seed=2).input_ids_BT
    old, new = exit_logits(parent, ids), exit_logits(grown, ids)
    assert len(new) == after
    for s, logits in enumerate(new):  # the parent's own output is read at every place from its last superblock on
        assert (logits - old[min(s, before - 1)]).abs().max() < 1e-5, f"exit {s + 1}"


@pytest.mark.parametrize("variant", ["prenorm", "literal-tied", "block-head"])
@pytest.mark.parametrize(("before", "after"), SIZES)
@torch.no_grad()
def test_identity_keeps_losses_and_scores(small: Small, packed: Packed, variant: str, before: int, after: int) -> None:
    parent = trained(small(num_superblocks=before, **VARIANTS[variant]))
    grown = grow(parent, small(num_superblocks=after, **VARIANTS[variant]), "identity")
    batch = packed([9, 15], [24])
    old = parent(batch.input_ids_BT, batch.pack, batch.labels_BT, score=True).scores
    new = grown(batch.input_ids_BT, batch.pack, batch.labels_BT, score=True).scores
    assert set(new) == set(old) | {f"exit/{s}" for s in range(1, after)}
    for name, score in new.items():
        same = old[name if name in old else "next_token"]
        torch.testing.assert_close(score.nll_BT, same.nll_BT, rtol=0, atol=1e-5)

    supervision = Supervision(begin=2, end=21, mtp_weight=0.3)
    old, new = (
        model(batch.input_ids_BT, batch.pack, batch.labels_BT, supervision=supervision).losses
        for model in (parent, grown)
    )
    assert set(old) == set(new) == {"next_token", "mtp/1", "mtp/2", "router"}
    for name in ("next_token", "mtp/1", "mtp/2"):
        assert new[name].count == old[name].count
        torch.testing.assert_close(new[name].total, old[name].total, rtol=1e-6, atol=1e-5)
    assert new["router"].total > old["router"].total  # more layers are balanced


@torch.no_grad()
def test_identity_is_exact_under_autocast(small: Small, packed: Packed) -> None:
    parent = trained(small(num_superblocks=1))
    grown = grow(parent, small(num_superblocks=3), "identity")
    ids = packed([17]).input_ids_BT
    with torch.autocast("cpu", torch.bfloat16):
        torch.testing.assert_close(grown(ids).logits_BTV, parent(ids).logits_BTV, rtol=0, atol=1e-5)


@pytest.mark.parametrize("variant", ["prenorm", "literal-tied", "softmax-shared-gate"])
@pytest.mark.parametrize("name", ["adamw", "muon"])
def test_new_superblocks_learn(small: Small, packed: Packed, variant: str, name: str) -> None:
    """Writers have gradient at once, everything else from the second step on."""
    config = small(num_superblocks=4, **VARIANTS[variant])
    grown = grow(trained(small(num_superblocks=2, **VARIANTS[variant])), config, "identity")
    optimizer = build_optimizer(grown, OptimConfig(name=name, learning_rate=1e-2))
    new = {n: p for n, p in grown.named_parameters() if n.startswith(("superblocks.2.", "superblocks.3."))}
    start = {name: parameter.detach().clone() for name, parameter in new.items()}
    for i in range(3):
        optimizer.zero_grad()
        objective(grown, packed([24], [11, 13], seed=i), None).backward()
        live = {name for name, parameter in new.items() if parameter.grad is not None and parameter.grad.any()}
        writers = {name for name in new if leaf_name(name) in WRITERS}
        balanced = {name for name in new if "router" in name or "moe.norm" in name}
        if i == 0:
            assert writers <= live <= writers | balanced
            # readers of their own: the gradients of two new superblocks are not those of one
            for name in (name for name in writers if name.startswith("superblocks.2.")):
                ours, theirs = new[name].grad, new[name.replace("blocks.2", "blocks.3")].grad
                assert ours is not None and theirs is not None and not torch.allclose(ours, theirs, rtol=0.1)
        else:
            assert live == set(new), set(new) - live
        assert all(p.grad is None or p.grad.isfinite().all() for p in grown.parameters())
        optimizer.step()
    assert all(not torch.equal(start[name], parameter) for name, parameter in new.items())


ORDERS = [
    ("identity", 2, 4, [0, 1, None, None]),
    ("stack", 1, 3, [0, 0, 0]),
    ("stack", 3, 6, [0, 1, 2, 0, 1, 2]),
    ("stack", 3, 5, [0, 1, 2, 0, 1]),
    ("interpolate", 1, 3, [0, 0, 0]),
    ("interpolate", 3, 6, [0, 0, 1, 1, 2, 2]),
    ("interpolate", 3, 5, [0, 0, 1, 1, 2]),
]


@pytest.mark.parametrize(("method", "before", "after", "order"), ORDERS)
def test_superblocks_are_what_the_table_says(
    small: Small, method: str, before: int, after: int, order: list[int | None]
) -> None:
    parent = trained(small(num_superblocks=before))
    config = small(num_superblocks=after)
    old, new = parent.state_dict(), grow(parent, config, method).state_dict()
    fresh = build_model(config, seed=5).state_dict()
    for name in (name for name in new if name.startswith("superblocks.")):
        _, i, rest = name.split(".", 2)
        source = order[int(i)]
        if source is not None:
            assert torch.equal(new[name], old[f"superblocks.{source}.{rest}"]), name
        elif leaf_name(name) in WRITERS:
            assert not new[name].any(), name
        else:
            assert torch.equal(new[name], fresh[name]), name
    for name in ("embedding.weight", "unembedding.weight", "norm.weight"):
        assert torch.equal(new[name], old[name])
    assert len({tensor.data_ptr() for tensor in [*old.values(), *new.values()]}) == len(old) + len(new)


@pytest.mark.parametrize("last", ["mlp", "block"])
@pytest.mark.parametrize(
    ("method", "before", "after", "exits"),
    [  # the parent's head whose norm each early exit reads with; -1 is the final norm
        ("identity", 3, 6, [0, 1, -1, -1, -1]),
        ("stack", 3, 6, [0, 1, -1, -1, -1]),
        ("interpolate", 3, 6, [0, 0, 1, 1, -1]),
        ("identity", 1, 3, [-1, -1]),
    ],
)
def test_heads(small: Small, last: str, method: str, before: int, after: int, exits: list[int]) -> None:
    mtp = MTPConfig(depth=2, last=last, d_hidden=8, d_block=16)
    parent, config = trained(small(num_superblocks=before, mtp=mtp)), small(num_superblocks=after, mtp=mtp)
    grown = grow(parent, config, method)
    old, new = parent.state_dict(), grown.state_dict()
    fresh = build_model(config, seed=5).state_dict()
    nearest = before - 1 if last == "mlp" else before - 2
    for i, s in enumerate(exits):
        assert torch.equal(new[f"heads.{i}.norm.weight"], old["norm.weight" if s < 0 else f"heads.{s}.norm.weight"])
        depths = s if s >= 0 else nearest
        for name in (name for name in new if name.startswith(f"heads.{i}.mtp.")):
            expected = fresh[name] if depths < 0 else old[name.replace(f"heads.{i}.", f"heads.{depths}.")]
            assert torch.equal(new[name], expected), name
    for rest in parent.heads[before - 1].state_dict():
        assert torch.equal(new[f"heads.{after - 1}.{rest}"], old[f"heads.{before - 1}.{rest}"])


@torch.no_grad()
def test_a_stacked_model_contains_its_parent(small: Small, packed: Packed) -> None:
    parent = trained(small(num_superblocks=3))
    grown = grow(parent, small(num_superblocks=7), "stack")
    ids = packed([17]).input_ids_BT
    old, new = exit_logits(parent, ids), exit_logits(grown, ids)
    for s in range(3):
        torch.testing.assert_close(new[s], old[s], rtol=0, atol=1e-5)
    assert (new[-1] - old[-1]).abs().max() > 1e-2


def test_none_is_a_model_from_scratch(small: Small) -> None:
    config = small(num_superblocks=3)
    grown = build_model(config, seed=5)
    transplant(plan_growth(small(num_superblocks=1), config, "none"), {}, grown)
    scratch = build_model(config, seed=5).state_dict()
    assert all(torch.equal(value, scratch[name]) for name, value in grown.state_dict().items())


@pytest.mark.parametrize("method", ["identity", "stack", "interpolate"])
def test_growth_composes(small: Small, packed: Packed, method: str) -> None:
    """1 -> 3 -> 12 without training between is 1 -> 12."""
    parent = trained(small(num_superblocks=1))
    through = grow(grow(parent, small(num_superblocks=3), method), small(num_superblocks=12), method)
    direct = grow(parent, small(num_superblocks=12), method).state_dict()
    assert all(torch.equal(value, direct[name]) for name, value in through.state_dict().items())
    if method == "identity":
        ids = packed([17]).input_ids_BT
        torch.testing.assert_close(through(ids).logits_BTV, parent(ids).logits_BTV, rtol=0, atol=1e-5)


def test_fresh_weights_depend_on_the_seed_alone(small: Small) -> None:
    config = small(num_superblocks=3)
    plan = plan_growth(small(num_superblocks=2), config, "identity")
    one, two = (trained(small(num_superblocks=2), seed=s) for s in (1, 2))
    a, b, other = (grow(p, config, "identity", seed).state_dict() for p, seed in ((one, 5), (two, 5), (one, 6)))
    random = {name for name, origin in plan.origins.items() if origin.kind == "fresh"}
    random -= {name for name in random if not a[name].is_floating_point() or a[name].unique().numel() == 1}
    assert random and all(torch.equal(a[name], b[name]) and not torch.equal(a[name], other[name]) for name in random)
    assert all(torch.equal(a[name], other[name]) for name in a.keys() - random)


def test_state_of_another_dtype_or_order(small: Small) -> None:
    parent, config = trained(small(num_superblocks=1)), small(num_superblocks=3)
    state = {name: value.double() for name, value in reversed(parent.state_dict().items())}
    grown = build_model(config, seed=5)
    transplant(plan_growth(parent.config, config, "stack"), state, grown)
    expected = grow(parent, config, "stack").state_dict()
    assert all(torch.equal(value, expected[name]) for name, value in grown.state_dict().items())


@settings(max_examples=40, deadline=None)
@given(before=st.integers(1, 7), more=st.integers(1, 9), method=st.sampled_from(METHODS), last=st.booleans())
def test_plans(before: int, more: int, method: str, last: bool) -> None:
    """Every tensor has one origin of its own shape, nothing trained is lost, and superblocks keep their order."""
    make: dict[str, Any] = {"d_model": 32, "vocab_size": 64, "mtp": MTPConfig(last="block" if last else "mlp")}
    after = before + more
    plan = plan_growth(ModelConfig(num_superblocks=before, **make), ModelConfig(num_superblocks=after, **make), method)
    assert plan.origins.keys() == plan.shapes.keys()
    for name, origin in plan.origins.items():
        assert (origin.source is None) == (origin.kind != "copied")
        if origin.source is not None:
            assert plan.shapes[name] == plan.parent_shapes[origin.source]
    used = {origin.source for origin in plan.origins.values()} - {None}
    assert used == (set() if method == "none" else set(plan.parent_shapes))
    sources = [plan.origins[f"superblocks.{i}.layers.0.norm.weight"].source for i in range(after)]
    numbers = [int(source.split(".")[1]) for source in sources if source]
    if method in ("identity", "stack"):
        assert numbers[:before] == list(range(before))
    if method == "stack":
        assert all(b == (a + 1) % before for a, b in pairwise(numbers))
    if method == "interpolate":
        assert numbers == sorted(numbers)
        repeats = [numbers.count(s) for s in range(before)]
        assert max(repeats) - min(repeats) <= 1


@settings(max_examples=12, deadline=None)
@given(
    before=st.integers(1, 4), more=st.integers(1, 4), literal=st.booleans(), tied=st.booleans(),
    pattern=st.lists(st.sampled_from(["gdn", "gqa"]), min_size=1, max_size=3), seed=st.integers(0, 99),
)  # fmt: skip
@torch.no_grad()
def test_identity_property(before: int, more: int, literal: bool, tied: bool, pattern: list[str], seed: int) -> None:
    def make(superblocks: int) -> ModelConfig:
        return ModelConfig(
            d_model=16, vocab_size=64, num_superblocks=superblocks, pattern=pattern, tie_embeddings=tied,
            wiring="literal" if literal else "prenorm",
            gdn=DeltaNetConfig(num_key_heads=1, num_value_heads=2, key_dim=8, value_dim=8, chunk_size=8),
            gqa=AttentionConfig(num_heads=2, num_kv_heads=1, head_dim=8),
            moe=MoEConfig(num_experts=3, top_k=2, d_expert=8, d_shared=8), mtp=MTPConfig(d_hidden=8),
        )  # fmt: skip

    parent = trained(make(before), seed)
    grown = grow(parent, make(before + more), "identity", seed)
    ids = torch.randint(0, 64, (1, 11), generator=torch.Generator().manual_seed(seed))
    old, new = exit_logits(parent, ids), exit_logits(grown, ids)
    assert all((logits - old[min(s, before - 1)]).abs().max() < 1e-5 for s, logits in enumerate(new))


def _keys(config: Any, prefix: str = "") -> list[str]:
    found = []
    for field in fields(config):
        value, key = getattr(config, field.name), prefix + field.name
        found += _keys(value, f"{key}.") if is_dataclass(value) else [key]
    return found


def test_every_key_is_refused_or_may_differ(small: Small) -> None:
    assert set(_keys(ModelConfig())) >= MAY_DIFFER
    for key in _keys(ModelConfig()):
        config = small(num_superblocks=3)
        *sections, name = key.split(".")
        owner: Any = config
        for section in sections:
            owner = getattr(owner, section)
        value = getattr(owner, name)
        setattr(owner, name, not value if isinstance(value, bool) else 7 if value is None else value * 2)
        if key in MAY_DIFFER:
            plan_growth(small(num_superblocks=2), config, "identity")
        else:
            with pytest.raises(ConfigError, match=rf"^model\.{key}=.*: the parent has .*; only model.num_superblocks"):
                plan_growth(small(num_superblocks=2), config, "identity")


def test_refusals(small: Small) -> None:
    two, three = small(num_superblocks=2), small(num_superblocks=3)
    with pytest.raises(
        ConfigError, match=r"^growth method 'twice': must be one of identity, stack, interpolate, none$"
    ):
        plan_growth(two, three, "twice")
    with pytest.raises(ConfigError, match=r"^model.num_superblocks=2: must be above the parent's 3$"):
        plan_growth(three, two, "stack")
    with pytest.raises(ConfigError, match=r"^model.num_superblocks=2: must be above the parent's 2$"):
        plan_growth(two, two, "identity")
    with pytest.raises(ConfigError, match=r"^model.family=gpt2: only the family superblock can grow$"):
        plan_growth(small(family="gpt2"), small(family="gpt2", num_superblocks=3), "identity")


def test_tensors_of_another_model_are_refused(small: Small) -> None:
    config = small(num_superblocks=3)
    plan = plan_growth(small(num_superblocks=2), config, "identity")
    state, model = trained(small(num_superblocks=2)).state_dict(), build_model(config, seed=5)
    before = {name: value.clone() for name, value in model.state_dict().items()}
    with pytest.raises(ValueError, match=r"^the parent's state lacks norm.weight$"):
        transplant(plan, {name: value for name, value in state.items() if name != "norm.weight"}, model)
    with pytest.raises(ValueError, match=r"has, beyond the plan's, heads.2.* and \d+ more$"):
        transplant(plan, trained(small(num_superblocks=3)).state_dict(), model)
    with pytest.raises(ValueError, match=r"^the parent's state has norm.weight of shape \[31\], the plan \[32\]$"):
        transplant(plan, state | {"norm.weight": torch.ones(31)}, model)
    with pytest.raises(ValueError, match=r"^the grown model lacks "):
        transplant(plan, state, build_model(small(num_superblocks=2), seed=0))
    with pytest.raises(ValueError, match=r"^the grown model has no storage for embedding.weight$"):
        transplant(plan, state, build_model(config, seed=5, device="meta"))
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())


def test_a_plan_can_be_read(small: Small) -> None:
    lines = str(plan_growth(small(num_superblocks=2), small(num_superblocks=4), "identity")).splitlines()
    assert lines[0] == "2 -> 4 superblocks by identity"
    described = {line.split()[0]: " ".join(line.split()[1:]) for line in lines[1:-1]}
    assert described["embedding"] == "copy of embedding (1)"
    assert described["superblocks.1"] == "copy of superblocks.1 (27)"
    assert described["superblocks.2"] == "fresh (21), zero (6)"
    assert described["heads.1.norm"] == "copy of norm (1)"
    assert described["heads.3.mtp"] == "copy of heads.1.mtp (8)"
    assert lines[-1].endswith("values fresh")


def test_a_sharded_model_grows_into_its_parts(small: Small) -> None:
    moe = MoEConfig(num_experts=4, top_k=2, d_expert=16, d_shared=16)
    parent, config = trained(small(num_superblocks=1, moe=moe)), small(num_superblocks=3, moe=moe)
    whole = grow(parent, config, "identity").state_dict()
    dist.init_process_group("fake", store=FakeStore(), rank=4, world_size=7)
    try:
        model, mesh = build_model(config, seed=5), init_device_mesh("cpu", (7,))
        for unit in [*model.superblocks, *model.heads, model]:
            fully_shard(unit, mesh=mesh)
        transplant(plan_growth(parent.config, config, "identity"), parent.state_dict(), model)
        for name, parameter in model.named_parameters():
            parts = whole[name].chunk(7)
            expected = parts[4] if len(parts) > 4 else whole[name][:0]
            assert torch.equal(parameter.to_local(), expected), name  # type: ignore[operator]
    finally:
        dist.destroy_process_group()
