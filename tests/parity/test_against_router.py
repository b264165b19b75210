"""Routing against transformers' DeepSeek-V3 and Qwen, and the balancing loss against its Mixtral."""

import pytest
import torch
from torch import Tensor

transformers = pytest.importorskip("transformers")

from transformers import DeepseekV3Config  # noqa: E402
from transformers.models.deepseek_v3.modeling_deepseek_v3 import DeepseekV3TopkRouter  # noqa: E402
from transformers.models.mixtral.modeling_mixtral import load_balancing_loss_func  # noqa: E402
from transformers.models.qwen2_moe.modeling_qwen2_moe import Qwen2MoeConfig, Qwen2MoeTopKRouter  # noqa: E402

from superblock.config.model import MoEConfig  # noqa: E402
from superblock.models.moe import MoE  # noqa: E402

N, D, E, K = 200, 64, 16, 4


def layer(**changes: object) -> MoE:
    moe = MoE(D, MoEConfig(num_experts=E, top_k=K, d_expert=16, d_shared=0, **changes), norm_eps=None)  # type: ignore[arg-type]
    with torch.no_grad():
        for parameter in moe.parameters():
            parameter.normal_(0, 0.2, generator=torch.Generator().manual_seed(1))
    return moe


def dense(index_Nk: Tensor, weight_Nk: Tensor) -> Tensor:
    """Gates as a matrix: the order of the chosen is nobody's business."""
    return torch.zeros(N, E).scatter(1, index_Nk, weight_Nk)


def hidden() -> Tensor:
    return torch.randn(N, D, generator=torch.Generator().manual_seed(2))


def test_sigmoid_router_with_selection_bias() -> None:
    config = DeepseekV3Config(hidden_size=D, n_routed_experts=E, num_experts_per_tok=K, n_group=1, topk_group=1)
    theirs, ours = DeepseekV3TopkRouter(config), layer(route_scale=config.routed_scaling_factor)
    bias = 0.2 * torch.randn(E, generator=torch.Generator().manual_seed(3))
    with torch.no_grad():
        theirs.weight.copy_(ours.router.weight)
        theirs.e_score_correction_bias.copy_(bias)
        ours.balance_bias.copy_(bias)
        _, weight, index = theirs(hidden())
        our_index, our_weight, _, _ = ours.route(hidden())
        unbiased, *_ = layer().route(hidden())
    torch.testing.assert_close(dense(our_index, our_weight), dense(index, weight), rtol=1e-6, atol=1e-7)
    assert not torch.equal(our_index.sort().values, unbiased.sort().values), "the bias must change the choice"


def test_softmax_router() -> None:
    config = Qwen2MoeConfig(hidden_size=D, num_experts=E, num_experts_per_tok=K, norm_topk_prob=True)
    theirs, ours = Qwen2MoeTopKRouter(config), layer(score="softmax")
    with torch.no_grad():
        theirs.weight.copy_(ours.router.weight)
        _, weight, index = theirs(hidden())
        our_index, our_weight, _, _ = ours.route(hidden())
    torch.testing.assert_close(dense(our_index, our_weight), dense(index, weight), rtol=1e-6, atol=1e-7)


def test_balancing_loss_is_a_kth_of_theirs() -> None:
    ours = layer(score="softmax", aux_loss=1.0)
    _, routing = ours(hidden()[None])
    logits = ours.route(hidden())[2]
    theirs = load_balancing_loss_func((logits,), num_experts=E, top_k=K)
    torch.testing.assert_close(routing.loss * K, theirs, rtol=1e-6, atol=0)
    ours_grad, theirs_grad = (torch.autograd.grad(v, ours.router.weight)[0] for v in (routing.loss, theirs))
    torch.testing.assert_close(ours_grad * K, theirs_grad, rtol=1e-4, atol=1e-6)
