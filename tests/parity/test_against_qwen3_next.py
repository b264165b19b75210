"""Whole layers, cached decoding and multi-token depths against transformers' Qwen3-Next, with its weights."""

import pytest
import torch
from torch import Tensor, nn

transformers = pytest.importorskip("transformers")

from transformers import Qwen3NextConfig  # noqa: E402
from transformers.cache_utils import DynamicCache  # noqa: E402
from transformers.modeling_layers import MtpLayer  # noqa: E402
from transformers.models.qwen3_next import modeling_qwen3_next as peer  # noqa: E402

from superblock.config.model import AttentionConfig, DeltaNetConfig, ModelConfig, MoEConfig, MTPConfig  # noqa: E402
from superblock.kernels.packing import PackInfo  # noqa: E402
from superblock.models.convert import layer_from_qwen3_next  # noqa: E402
from superblock.models.language_model import build_model  # noqa: E402
from superblock.models.mtp import BlockDepth  # noqa: E402
from superblock.models.superblock import Layer  # noqa: E402

D, T = 64, 70
ROUNDING = 1e-5
"""Of fp32 through both layers: 5e-6 is what either side is away from the other; a row in a wrong place is away by 1."""
CONFIG = ModelConfig(
    d_model=D,
    vocab_size=64,
    gdn=DeltaNetConfig(num_key_heads=2, num_value_heads=4, key_dim=16, value_dim=24, negative_eigenvalues=False),
    gqa=AttentionConfig(num_heads=4, num_kv_heads=2, head_dim=32, rope_theta=1e4),
    moe=MoEConfig(num_experts=8, top_k=3, d_expert=32, d_shared=48, score="softmax", shared_gate=True),
    mtp=MTPConfig(last="block", d_block=96),
)


def peer_config(**changes: object) -> Qwen3NextConfig:
    config = Qwen3NextConfig(
        vocab_size=64, hidden_size=D, intermediate_size=96, num_hidden_layers=2,
        num_attention_heads=4, num_key_value_heads=2, head_dim=32,
        linear_key_head_dim=16, linear_value_head_dim=24, linear_num_key_heads=2, linear_num_value_heads=4,
        moe_intermediate_size=32, shared_expert_intermediate_size=48, num_experts=8, num_experts_per_tok=3,
        layer_types=["linear_attention", "full_attention"], tie_word_embeddings=False,
        rope_parameters={"rope_type": "default", "rope_theta": 1e4, "partial_rotary_factor": 0.25},
        **changes,
    )  # fmt: skip
    config._attn_implementation = "eager"
    return config


def awake(module: nn.Module, seed: int = 0) -> nn.Module:
    """Every weight of a peer's module away from its special initial value."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, parameter in module.named_parameters():
            if name.endswith("A_log"):
                parameter.uniform_(0, 16, generator=generator).log_()  # as transformers does, but the same every time
            else:
                std = 0.3 if parameter.ndim < 2 else 1.5 * parameter.shape[-1] ** -0.5
                parameter.normal_(0, std, generator=generator)
    return module.eval()


def inputs(seed: int = 1) -> Tensor:
    return torch.randn(2, T, D, generator=torch.Generator().manual_seed(seed))


def error(actual: Tensor, expected: Tensor) -> float:
    """Norm of the difference over that of the value."""
    return float((actual - expected).detach().norm() / expected.detach().norm())


def causal(tokens: int) -> Tensor:
    return torch.full((tokens, tokens), torch.finfo(torch.float32).min).triu(1)[None, None]


@pytest.mark.parametrize("index", [0, 1], ids=["linear", "full"])
def test_layer_and_its_gradients(index: int) -> None:
    theirs = awake(peer.Qwen3NextDecoderLayer(peer_config(), index))
    ours = Layer(CONFIG, CONFIG.pattern[index])
    state = layer_from_qwen3_next(theirs.state_dict(), CONFIG.gdn, CONFIG.gqa)
    ours.load_state_dict(state | {"moe.balance_bias": torch.zeros(8)})
    x = inputs().requires_grad_()
    positions = torch.arange(T)[None]
    rotary = peer.Qwen3NextRotaryEmbedding(peer_config())(x, positions)
    mask = causal(T) if index else None
    expected = theirs(x, position_embeddings=rotary, attention_mask=mask, position_ids=positions)
    actual, _ = ours(x, PackInfo.dense(2, T))
    assert error(actual, expected) < ROUNDING

    (theirs_dx,) = torch.autograd.grad(expected.square().sum(), x, retain_graph=True)
    (ours_dx,) = torch.autograd.grad(actual.square().sum(), x, retain_graph=True)
    assert error(ours_dx, theirs_dx) < 1e-5
    expected.square().sum().backward()
    actual.square().sum().backward()
    gradients = {name: p.grad for name, p in theirs.named_parameters()}
    # gradients travel through the same rearrangement as weights, but the offset of norms is a weight's matter
    moved = layer_from_qwen3_next(gradients, CONFIG.gdn, CONFIG.gqa)
    for name, parameter in ours.named_parameters():
        offset = 1 if name in ("norm.weight", "moe.norm.weight", "mixer.query_norm", "mixer.key_norm") else 0
        assert error(parameter.grad, moved[name] - offset) < 2e-5, name


@pytest.fixture(scope="module")
def models() -> tuple[nn.Module, nn.Module]:
    """One superblock and the two-layer model of transformers with the same weights."""
    theirs = awake(peer.Qwen3NextForCausalLM(peer_config()))
    ours = build_model(CONFIG, seed=0).eval()
    state = {"embedding.weight": theirs.model.embed_tokens.weight, "unembedding.weight": theirs.lm_head.weight}
    state["norm.weight"] = 1 + theirs.model.norm.weight
    for j, layer in enumerate(theirs.model.layers):
        moved = layer_from_qwen3_next(layer.state_dict(), CONFIG.gdn, CONFIG.gqa)
        state |= {f"superblocks.0.layers.{j}.{name}": value for name, value in moved.items()}
    missing, unexpected = ours.load_state_dict({k: v.detach() for k, v in state.items()}, strict=False)
    assert unexpected == []
    assert all(name.startswith("heads.") or name.endswith("balance_bias") for name in missing)
    return ours, theirs


def test_logits_of_the_whole_model(models: tuple[nn.Module, nn.Module]) -> None:
    ours, theirs = models
    ids = torch.randint(0, 64, (2, T), generator=torch.Generator().manual_seed(2))
    with torch.no_grad():
        assert error(ours(ids).logits_BTV, theirs(ids).logits) < ROUNDING


def test_cached_decoding(models: tuple[nn.Module, nn.Module]) -> None:
    from superblock.models.cache import Cache

    ours, theirs = models
    ids = torch.randint(0, 64, (2, 40), generator=torch.Generator().manual_seed(3))
    our_cache, their_cache = Cache(), DynamicCache(config=theirs.config)
    with torch.no_grad():
        for begin, end in [(0, 20), (20, 21), (21, 22), (22, 30), (30, 31), (31, 40)]:
            expected = theirs(ids[:, begin:end], past_key_values=their_cache, use_cache=True).logits
            actual = ours(ids[:, begin:end], cache=our_cache).logits_BTV
            assert error(actual, expected) < ROUNDING


def test_left_padding_is_a_document_of_its_own(models: tuple[nn.Module, nn.Module]) -> None:
    """Where transformers masks padding, a batch here has a document boundary; the result of the rest is the same."""
    ours, theirs = models
    ids = torch.randint(0, 64, (1, 30), generator=torch.Generator().manual_seed(4))
    mask = torch.ones_like(ids)
    mask[:, :7] = 0
    with torch.no_grad():
        expected = theirs(ids, attention_mask=mask).logits[:, 7:]
        actual = ours(ids, PackInfo.from_doc_ids(mask)).logits_BTV[:, 7:]
    assert error(actual, expected) < ROUNDING


def test_block_depth() -> None:
    """DeepSeek-V3's multi-token depth around a dense full-attention layer."""
    config = peer_config(mlp_only_layers=[0, 1])
    theirs = awake(MtpLayer(config, peer.Qwen3NextDecoderLayer, peer.Qwen3NextRMSNorm, layer_idx=1))
    ours = BlockDepth(CONFIG)
    block = {name.removeprefix("mtp_block."): p for name, p in theirs.state_dict().items() if "mtp_block" in name}
    layer = layer_from_qwen3_next(block, CONFIG.gdn, CONFIG.gqa, sparse=False)
    ours.load_state_dict({
        "embedding_norm.weight": 1 + theirs.enorm.weight,
        "hidden_norm.weight": 1 + theirs.hnorm.weight,
        "merge.weight": theirs.eh_proj.weight,
        "attention_norm.weight": layer.pop("norm.weight"),
        **{name.replace("mixer.", "attention."): value for name, value in layer.items()},
        "mlp_norm.weight": 1 + block["post_attention_layernorm.weight"],
        "gate_up.weight": torch.cat([block["mlp.gate_proj.weight"], block["mlp.up_proj.weight"]]),
        "down.weight": block["mlp.down_proj.weight"],
        "norm.weight": 1 + theirs.post_norm.weight,
    })  # fmt: skip
    h, e, positions = inputs(5), inputs(6), torch.arange(T)[None]
    rotary = peer.Qwen3NextRotaryEmbedding(config)(h, positions)
    with torch.no_grad():
        expected = theirs(e, h, rotary, causal(T), positions, None)
        assert error(ours(h, e, PackInfo.dense(2, T)), expected) < ROUNDING


def test_a_superblock_has_the_seeds_order(models: tuple[nn.Module, nn.Module]) -> None:
    ours, theirs = models
    kinds = [type(layer.mixer).__name__ for layer in ours.superblocks[0].layers]
    assert kinds == ["GatedDeltaNet", "GroupedQueryAttention"]
    assert [layer.block_type for layer in theirs.model.layers] == ["linear_attention", "full_attention"]
