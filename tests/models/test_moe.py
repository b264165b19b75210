"""Routing, balance, and what a MoE layer reports."""

import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from superblock.config.model import ModelConfig, MoEConfig
from superblock.kernels.experts import native
from superblock.models.batch import Batch
from superblock.models.language_model import build_model
from superblock.models.moe import STATS, MoE

D, E, K = 16, 8, 2


def layer(seed: int = 0, **changes: Any) -> MoE:
    moe = MoE(D, MoEConfig(**({"num_experts": E, "top_k": K, "d_expert": 8, "d_shared": 8} | changes)), norm_eps=1e-6)
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in moe.parameters():
            parameter.normal_(0, 0.3, generator=generator)
    return moe


def tokens(count: int = 64, seed: int = 1) -> torch.Tensor:
    return torch.randn(2, count // 2, D, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("score", ["sigmoid", "softmax"])
def test_output_is_the_written_sum(score: str) -> None:
    moe, x = layer(score=score, route_scale=2.5, shared_gate=True), tokens(8)
    h = moe.norm(x).flatten(0, 1)  # type: ignore[misc]

    def expert(h_D: torch.Tensor, gate_up: torch.Tensor, down: torch.Tensor) -> torch.Tensor:
        gate, up = (gate_up @ h_D).chunk(2)
        return down @ (torch.nn.functional.silu(gate) * up)

    logits = h @ moe.router.weight.T
    scores = logits.sigmoid() if score == "sigmoid" else logits.softmax(-1)
    expected = []
    for h_D, s in zip(h, scores, strict=True):
        best = s.argsort(descending=True)[:K].tolist()
        routed = sum(s[e] / s[best].sum() * 2.5 * expert(h_D, moe.gate_up[e], moe.down[e]) for e in best)
        shared = expert(h_D, moe.shared_gate_up, moe.shared_down)  # type: ignore[arg-type]
        expected.append(routed + torch.sigmoid(h_D @ moe.shared_gate) * shared)  # type: ignore[operator]
    torch.testing.assert_close(moe(x)[0].flatten(0, 1), torch.stack(expected), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("score", ["sigmoid", "softmax"])
def test_balancing_loss_is_1_when_balanced_and_above_when_not(score: str) -> None:
    moe = layer(score=score, aux_loss=1.0)
    moe.router.weight.data.zero_()
    even = moe(tokens())[1].loss
    torch.testing.assert_close(even, torch.ones(()))
    # with small logits the loss grows with the correlation of load and probability
    moe.router.weight.data.normal_(0, 1.0, generator=torch.Generator().manual_seed(0))
    assert moe(tokens())[1].loss > 1.01


def test_z_loss_is_the_mean_squared_log_partition() -> None:
    x = tokens()
    with_z, without = layer(score="softmax", z_loss=0.5, aux_loss=0.0), layer(score="softmax", aux_loss=0.0)
    logits = with_z.norm(x) @ with_z.router.weight.T  # type: ignore[misc]
    torch.testing.assert_close(with_z(x)[1].loss, 0.5 * logits.logsumexp(-1).square().mean())
    assert without(x)[1].loss == 0


def test_tiny_sigmoid_scores_do_not_hide_imbalance() -> None:
    """Scores of 1e-30 for every expert still give probabilities, so that the loss cannot be escaped downwards."""
    moe = layer(aux_loss=1.0)
    logits = torch.full((64, E), -60.0)
    logits[:, 0] += 5
    counts = torch.tensor([64.0, 64.0] + [0.0] * (E - 2))
    loss = moe._loss(logits, logits.sigmoid(), counts)
    assert loss > 3


def test_bias_evens_out_a_skewed_load_and_stays_bounded() -> None:
    moe = layer(aux_loss=0.0)
    x = tokens(512)
    with torch.no_grad():
        moe.norm.weight.fill_(1)  # type: ignore[union-attr]
        x = x + moe.router.weight[0] / moe.router.weight[0].norm() * 2  # most tokens like expert 0
        loads = []
        for _ in range(300):
            counts = moe(x)[1].counts_E
            loads.append((counts.max() / counts.mean()).item())
            moe.balance(counts, 0.005)
    assert loads[0] > 2
    assert max(loads[-20:]) < 1.3
    assert moe.balance_bias.abs().max() < 1
    assert abs(moe.balance_bias.mean().item()) < 1e-5


@settings(max_examples=40, deadline=None)
@given(st.lists(st.integers(0, 1000), min_size=E, max_size=E), st.floats(1e-4, 0.1))
def test_a_balance_step(counts: list[int], rate: float) -> None:
    """Busy experts go down relative to idle ones, the mean stays 0, no bias moves by more than twice the rate."""
    moe, counts_E = layer(), torch.tensor(counts, dtype=torch.float32)
    moe.balance(counts_E, rate)
    bias = moe.balance_bias
    assert bias.abs().max() <= 2 * rate * (1 + 1e-6)
    assert abs(bias.sum().item()) < 1e-6
    assert bias[counts_E.argmax()] <= bias[counts_E.argmin()]
    if counts_E.max() == counts_E.min():
        assert (bias == 0).all()


def test_bias_moves_the_choice_but_not_the_weights() -> None:
    moe, x = layer(d_shared=0), tokens(8)
    before = moe(x)[0]
    moe.balance_bias += 5.0  # the same for all: nothing changes
    torch.testing.assert_close(moe(x)[0], before)
    moe.balance_bias[3] += 100.0
    index, weight, _, scores = moe.route(moe.norm(x).flatten(0, 1))  # type: ignore[misc]
    assert (index == 3).any(-1).all()
    torch.testing.assert_close(weight, scores.gather(1, index) / scores.gather(1, index).sum(-1, keepdim=True))


def test_counts_and_stats() -> None:
    moe, x = layer(), tokens()
    _, routing = moe(x)
    index, weight, logits, _ = moe.route(moe.norm(x).flatten(0, 1))  # type: ignore[misc]
    assert torch.equal(routing.counts_E, torch.bincount(index.flatten(), minlength=E).float())
    assert not routing.counts_E.requires_grad and not routing.stats.requires_grad
    stats = dict(zip(STATS, routing.stats.tolist(), strict=True))
    assert stats["router_logit_rms"] == pytest.approx(logits.square().mean().sqrt().item(), rel=1e-5)
    assert stats["gate_top1_mean"] == pytest.approx(weight.amax(-1).mean().item(), rel=1e-5)
    entropy = -(weight * weight.log()).sum(-1).mean() / math.log(K)
    assert stats["gate_entropy"] == pytest.approx(entropy.item(), rel=1e-5)
    assert stats["shared_routed_ratio"] > 0
    assert dict(zip(STATS, layer(d_shared=0)(x)[1].stats, strict=True))["shared_routed_ratio"] == 0


def test_router_computes_in_fp32_under_autocast() -> None:
    moe, x = layer(), tokens()
    with torch.autocast("cpu", torch.bfloat16):
        rounded = moe(x)[1]
    exact = moe(x)[1]
    assert torch.equal(rounded.counts_E, exact.counts_E)
    assert rounded.loss == exact.loss


@pytest.mark.parametrize("score", ["sigmoid", "softmax"])
def test_a_whole_model_trains_alike_with_either_kernel(
    small: Callable[..., ModelConfig], packed: Callable[..., Batch], score: str
) -> None:
    if reason := native.LIBRARY.why_not():
        pytest.skip(reason)
    batch, losses = packed([11, 13], [24]), {}
    for backend in ("native", "sorted"):
        moe = MoEConfig(num_experts=4, top_k=2, d_expert=32, d_shared=32, score=score, aux_loss=0.01, backend=backend)
        model = build_model(small(moe=moe), seed=0)
        optimizer = torch.optim.SGD(model.parameters(), lr=0.3)
        losses[backend] = []
        for _ in range(4):
            terms = model(batch.input_ids_BT, batch.pack, batch.labels_BT).losses
            total = torch.stack([t.weight * t.total / max(1, t.count) for t in terms.values()]).sum()
            optimizer.zero_grad()
            total.backward()
            optimizer.step()
            losses[backend].append(total.item())
    assert losses["native"] == pytest.approx(losses["sorted"], rel=1e-5)
    assert losses["native"][-1] < losses["native"][0] - 0.05
