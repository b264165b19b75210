"""Gated DeltaNet with separate projections and write strength up to 2 against transformers' OLMo-Hybrid."""

import pytest
import torch

transformers = pytest.importorskip("transformers")

from transformers.models.olmo_hybrid import modeling_olmo_hybrid as peer  # noqa: E402

from superblock.config.model import DeltaNetConfig  # noqa: E402
from superblock.kernels.packing import PackInfo  # noqa: E402
from superblock.models.gated_deltanet import GatedDeltaNet  # noqa: E402


@pytest.mark.parametrize("negative", [True, False])
def test_gated_deltanet(negative: bool) -> None:
    D, T = 64, 75
    config = peer.OlmoHybridConfig(
        hidden_size=D, num_hidden_layers=2, num_attention_heads=4, intermediate_size=64, vocab_size=64, pad_token_id=0,
        eos_token_id=0, linear_key_head_dim=12, linear_value_head_dim=24, linear_allow_neg_eigval=negative,
        layer_types=["linear_attention", "full_attention"],
    )  # fmt: skip
    torch.manual_seed(0)
    theirs = peer.OlmoHybridGatedDeltaNet(config, 0).eval()
    sizes = DeltaNetConfig(num_key_heads=4, num_value_heads=4, key_dim=12, value_dim=24, negative_eigenvalues=negative)
    ours = GatedDeltaNet(D, sizes, norm_eps=1e-5)
    w = theirs.state_dict()
    ours.load_state_dict({
        "qkvz.weight": torch.cat([w[f"{name}_proj.weight"] for name in "qkvg"]),
        "ba.weight": torch.cat([w["b_proj.weight"], w["a_proj.weight"]]),
        "conv": w["conv1d.weight"].squeeze(1),
        "A_log": w["A_log"],
        "dt_bias": w["dt_bias"],
        "norm.weight": w["o_norm.weight"],
        "out.weight": w["o_proj.weight"],
    })  # fmt: skip
    x = 3 * torch.randn(2, T, D)
    with torch.no_grad():
        expected, actual = theirs(x), ours(x, PackInfo.dense(2, T))
    assert (actual - expected).norm() / expected.norm() < 5e-6
