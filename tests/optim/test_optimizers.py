"""Muon against torch's, experts one by one, and the assignment of parameters to groups."""

import pytest
import torch
from torch import Tensor, nn

from superblock.config.optim import OptimConfig
from superblock.optim.build import build_optimizer, set_learning_rate
from superblock.optim.groups import group_parameters, kind_of
from superblock.optim.muon import MuonAdamW, orthogonalize


class Small(nn.Module):
    """One parameter of each kind that the model family has."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.embedding = nn.Embedding(16, 8)
        self.unembedding = nn.Linear(8, 16, bias=False)
        self.norm = nn.LayerNorm(8)
        self.mixer = nn.Module()
        self.mixer.in_proj = nn.Linear(8, 12)
        self.mixer.conv_weight = nn.Parameter(torch.randn(12, 4))
        self.mixer.A_log = nn.Parameter(torch.randn(3))
        self.moe = nn.Module()
        self.moe.gate_up = nn.Parameter(torch.randn(4, 6, 8))
        self.moe.shared_gate = nn.Linear(8, 1, bias=False)
        self.moe.router = nn.Linear(8, 4, bias=False)


def _give_gradients(model: nn.Module, seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    for parameter in model.parameters():
        parameter.grad = torch.randn(parameter.shape, generator=generator)


def test_every_parameter_has_its_group() -> None:
    model = Small()
    kinds = {name: kind_of(name, parameter) for name, parameter in model.named_parameters()}
    assert kinds == {
        "embedding.weight": "tables",
        "unembedding.weight": "tables",
        "norm.weight": "vectors",
        "norm.bias": "vectors",
        "mixer.in_proj.weight": "matrices",
        "mixer.in_proj.bias": "vectors",
        "mixer.conv_weight": "vectors",
        "mixer.A_log": "vectors",
        "moe.gate_up": "matrices",
        "moe.shared_gate.weight": "vectors",
        "moe.router.weight": "matrices",
    }
    assert sum(map(len, group_parameters(model).values())) == len(list(model.parameters()))


def test_tied_and_frozen_parameters_are_not_doubled() -> None:
    model = Small()
    model.unembedding.weight = model.embedding.weight
    model.norm.bias.requires_grad_(False)
    groups = group_parameters(model)
    assert len(groups["tables"]) == 1
    assert all(parameter is not model.norm.bias for parameter in groups["vectors"])


def test_four_dimensions_are_refused() -> None:
    with pytest.raises(ValueError, match=r"weird has shape \[2, 2, 2, 2\]"):
        kind_of("weird", nn.Parameter(torch.zeros(2, 2, 2, 2)))


@pytest.mark.parametrize("shape", [(24, 10), (10, 24), (16, 16)])
def test_against_torch_muon(shape: tuple[int, int]) -> None:
    torch.manual_seed(1)
    ours, theirs = (nn.Parameter(w.clone()) for w in [torch.randn(shape)] * 2)
    config = {"lr": 0.02, "weight_decay": 0.1, "momentum": 0.95}
    optimizer = MuonAdamW([{"params": [ours], "muon": True, **config}])
    peer = torch.optim.Muon([theirs], **config, nesterov=True, adjust_lr_fn="original")
    for _ in range(5):
        ours.grad = torch.randn(shape)
        theirs.grad = ours.grad.clone()
        optimizer.step()
        peer.step()
    assert torch.equal(ours, theirs)


def test_against_torch_adamw() -> None:
    ours, theirs = Small(), Small()
    peer = torch.optim.AdamW(theirs.parameters(), lr=1e-2, betas=(0.9, 0.95), weight_decay=0.1, fused=True)
    group = {"lr": 1e-2, "betas": (0.9, 0.95), "eps": 1e-8, "weight_decay": 0.1, "muon": False}
    optimizer = MuonAdamW([{"params": list(ours.parameters()), **group}])
    for step in range(4):
        _give_gradients(ours, step)
        _give_gradients(theirs, step)
        optimizer.step()
        peer.step()
    assert all(torch.equal(a, b) for a, b in zip(ours.parameters(), theirs.parameters(), strict=True))


@pytest.mark.parametrize("shape", [(5, 12, 20), (5, 20, 12)])
def test_experts_are_orthogonalised_one_by_one(shape: tuple[int, int, int]) -> None:
    torch.manual_seed(2)
    stack_EAB = torch.randn(shape) * torch.logspace(-3, 3, shape[0])[:, None, None]
    one_by_one = torch.stack([orthogonalize(matrix) for matrix in stack_EAB])
    torch.testing.assert_close(orthogonalize(stack_EAB), one_by_one, atol=0.02, rtol=0.02)
    values = torch.linalg.svdvals(orthogonalize(stack_EAB).float())
    assert values.min() > 0.5 and values.max() < 1.3


def test_a_zero_gradient_gives_a_zero_update() -> None:
    assert not orthogonalize(torch.zeros(3, 4, 6)).any()


@pytest.mark.parametrize("name", ["adamw", "muon"])
def test_rates_decay_and_training(name: str) -> None:
    model = Small()
    config = OptimConfig(name=name, learning_rate=1e-2, muon_learning_rate=0.05, table_rate=4.0, vector_rate=2.0)
    optimizer = build_optimizer(model, config)
    groups = {group["name"]: group for group in optimizer.param_groups}
    assert [groups[kind]["weight_decay"] for kind in ("matrices", "tables", "vectors")] == [0.1, 0.1, 0.0]
    matrices = 0.025 if name == "muon" else 5e-3
    assert set_learning_rate(optimizer, 0.5) == pytest.approx(matrices)
    assert [groups[kind]["lr"] for kind in ("matrices", "tables", "vectors")] == pytest.approx([matrices, 0.02, 0.01])
    assert groups["matrices"]["peak_lr"] == (0.05 if name == "muon" else 1e-2)

    before = {key: value.clone() for key, value in model.named_parameters()}
    _give_gradients(model, 0)
    optimizer.step()
    assert all(not torch.equal(before[key], value) for key, value in model.named_parameters())


@pytest.mark.parametrize("name", ["adamw", "muon"])
def test_a_parameter_without_gradient_stays(name: str) -> None:
    model = Small()
    optimizer = build_optimizer(model, OptimConfig(name=name))
    _give_gradients(model, 0)
    model.moe.gate_up.grad = model.norm.weight.grad = None
    before = (model.moe.gate_up.clone(), model.norm.weight.clone())
    optimizer.step()
    assert torch.equal(model.moe.gate_up, before[0]) and torch.equal(model.norm.weight, before[1])
    assert model.moe.gate_up not in optimizer.state


def test_muon_refuses_vectors() -> None:
    with pytest.raises(ValueError, match=r"shape \[3\]"):
        MuonAdamW([{"params": [nn.Parameter(torch.zeros(3))], "muon": True, "lr": 0.1}])


@pytest.mark.parametrize("name", ["adamw", "muon"])
def test_minimises_a_least_squares_problem(name: str) -> None:
    torch.manual_seed(3)
    target, x = torch.randn(8, 8), torch.randn(64, 8)
    model = nn.Linear(8, 8)
    optimizer = build_optimizer(
        model, OptimConfig(name=name, learning_rate=0.05, muon_learning_rate=0.05, weight_decay=0.0)
    )

    def loss() -> Tensor:
        optimizer.zero_grad()
        value = (model(x) - x @ target).pow(2).mean()
        value.backward()
        return value

    first = optimizer.step(loss).item()
    for _ in range(80):
        last = optimizer.step(loss).item()
    assert last < 0.1 * first
