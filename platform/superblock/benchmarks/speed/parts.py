"""Single layers and operations, forward and backward, beside the peer's with the same weights and inputs.

Legend: B sequences, T tokens, D width, V vocabulary, G key heads, H value heads, K, V head widths, C channels, W taps.
"""

from collections.abc import Callable, Sequence
from functools import cached_property
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from superblock.benchmarks.speed.cases import Case, model_config
from superblock.benchmarks.speed.work import Work, autocast, difference, has_peer, peer_config, peer_module, variants_of
from superblock.benchmarks.timing import Call
from superblock.config.benchmark import BenchmarkConfig
from superblock.kernels.cross_entropy import linear_cross_entropy
from superblock.kernels.delta_rule import causal_conv, gated_delta_rule
from superblock.kernels.packing import PackInfo
from superblock.models.convert import layer_from_qwen3_next
from superblock.models.norm import rms_norm
from superblock.models.superblock import Layer

Operation = Callable[..., Tensor]

CHECKED = 256
"""Tokens on which mixtures of experts are compared: among many thousands a tie would be decided by rounding."""


def forward_backward(operation: Operation, inputs: Sequence[Tensor], bf16: bool) -> Call:
    """The operation and its gradients for all inputs and parameters that want one."""
    with torch.no_grad(), autocast(bf16):
        dy = torch.full_like(operation(*inputs), 1e-3)

    def call() -> None:
        with autocast(bf16):
            y = operation(*inputs)
        y.backward(dy)
        for tensor in inputs:
            tensor.grad = None

    return call


def compare(ours: Operation, theirs: Operation, inputs: Sequence[Tensor]) -> float:
    """The largest relative difference of outputs and of gradients for the inputs."""
    found = []
    for operation in (ours, theirs):
        copies = [t.detach().clone().requires_grad_(t.requires_grad) for t in inputs]
        y = operation(*copies)
        seed = torch.randn(y.shape, generator=torch.Generator().manual_seed(0))
        y.backward(seed)
        found.append([y, *(t.grad for t in copies if t.requires_grad)])
    names = ["the output", *(f"the gradient of input {i}" for i in range(len(found[0]) - 1))]
    return max(difference(a, e, name) for a, e, name in zip(*found, names, strict=True))


def part(
    config: BenchmarkConfig,
    inputs: Callable[[bool], Sequence[Tensor]],
    ours: Operation,
    theirs: Operation,
    *,
    checked: Callable[[Sequence[Tensor]], Sequence[Tensor]] = lambda inputs: inputs,
) -> Work:
    """The work of an operation.

    Args:
        inputs: made for each variant, in bf16 or not.
        checked: the part of them on which results are compared.
    """
    variants = variants_of(
        config,
        lambda bf16: forward_backward(ours, inputs(bf16), bf16),
        lambda bf16, style: forward_backward(theirs, inputs(bf16), bf16),
    )
    return Work(variants, (lambda: compare(ours, theirs, checked(inputs(False)))) if has_peer() else None)


def delta_rule(config: BenchmarkConfig, case: Case) -> Work:
    """`part/delta-rule-<K>`: as many value heads as the scale has, of width K."""
    B, T, H, K = case.batch, case.tokens, config.scale.value_heads, case.head_dim

    def inputs(bf16: bool) -> list[Tensor]:
        generator = torch.Generator().manual_seed(config.seed)
        draw = lambda *shape: torch.randn(B, T, *shape, generator=generator)  # noqa: E731
        qkv = [draw(H, K).to(torch.bfloat16 if bf16 else torch.float32) for _ in range(3)]
        return [t.requires_grad_() for t in (*qkv, -0.1 * F.softplus(draw(H)), draw(H).sigmoid())]

    def theirs(q: Tensor, k: Tensor, v: Tensor, g: Tensor, beta: Tensor) -> Tensor:
        o_BTHK = peer_module().torch_chunk_gated_delta_rule(q, k, v, g=g, beta=beta, use_qk_l2norm_in_kernel=True)[0]
        return o_BTHK

    return part(config, inputs, lambda *qkvgb: gated_delta_rule(*qkvgb)[0], theirs)


class Layers:
    """One layer of each kind on both sides, with the peer's weights where there is a peer."""

    def __init__(self, config: BenchmarkConfig, case: Case, mixer: str) -> None:
        self.config, self.case, self.mixer = config, case, mixer
        self.model = model_config(config.scale, 1, case.tokens)
        self.pack = PackInfo.dense(case.batch, case.tokens)

    @cached_property
    def theirs(self) -> Any:
        peer, c = peer_module(), peer_config(self.model)
        layer = peer.Qwen3NextDecoderLayer(c, 0 if self.mixer == "gdn" else 1).train()
        generator = torch.Generator().manual_seed(self.config.seed)
        with torch.no_grad():
            for name, parameter in layer.named_parameters():
                if parameter.ndim > 1:
                    parameter.normal_(0, 0.02, generator=generator)
                elif not name.endswith("A_log"):
                    parameter.normal_(0, 0.1, generator=generator)
        return layer

    @cached_property
    def ours(self) -> Layer:
        layer = Layer(self.model, self.mixer).train()
        if has_peer():
            state = layer_from_qwen3_next(self.theirs.state_dict(), self.model.gdn, self.model.gqa)
            layer.load_state_dict(state | {"moe.balance_bias": torch.zeros(self.model.moe.num_experts)})
            return layer
        with torch.no_grad():
            for name, parameter in layer.named_parameters():
                parameter.zero_() if name.endswith("A_log") else parameter.normal_(0, 0.02)
        return layer

    def inputs(self, bf16: bool) -> list[Tensor]:
        """The residual stream, which stays fp32 under autocast."""
        generator = torch.Generator().manual_seed(self.config.seed)
        return [
            torch.randn(self.case.batch, self.case.tokens, self.model.d_model, generator=generator).requires_grad_()
        ]

    @cached_property
    def positions(self) -> tuple[Tensor, Tensor]:
        """Sines and cosines, which the peer computes once for all layers."""
        peer = peer_module()
        position_T = torch.arange(self.case.tokens)[None]
        angles: tuple[Tensor, Tensor] = peer.Qwen3NextRotaryEmbedding(peer_config(self.model))(
            torch.zeros(1), position_T
        )
        return angles


def gated_deltanet(config: BenchmarkConfig, case: Case) -> Work:
    """`part/gated-deltanet`: norm, projections, convolution, gates, delta rule, gated norm, projection, residual sum."""
    layers = Layers(config, case, "gdn")
    return part(
        config,
        layers.inputs,
        lambda x: layers.ours.mixer(x, layers.pack, norm=layers.ours.norm),
        lambda x: x + layers.theirs.linear_attn(layers.theirs.input_layernorm(x)),
    )


def attention(config: BenchmarkConfig, case: Case) -> Work:
    """`part/attention`: norm, projections, norms and rotation of queries and keys, attention, gate, projection, sum."""
    layers = Layers(config, case, "gqa")

    def theirs(x: Tensor) -> Tensor:
        y_BTD: Tensor = layers.theirs.self_attn(layers.theirs.input_layernorm(x), layers.positions, None)[0]
        return x + y_BTD

    return part(config, layers.inputs, lambda x: layers.ours.mixer(x, layers.pack, norm=layers.ours.norm), theirs)


def moe(config: BenchmarkConfig, case: Case) -> Work:
    """`part/moe`: norm, router, routed and shared experts, residual sum."""
    layers = Layers(config, case, "gqa")
    return part(
        config,
        layers.inputs,
        lambda x: layers.ours.moe(x, residual=True)[0],
        lambda x: x + layers.theirs.mlp(layers.theirs.post_attention_layernorm(x)),
        checked=lambda inputs: [inputs[0][:1, :CHECKED]],
    )


def convolution(config: BenchmarkConfig, case: Case) -> Work:
    """`part/convolution`: causal depthwise convolution and SiLU of queries, keys and values."""
    gdn = model_config(config.scale, 1, case.tokens).gdn
    C = 2 * gdn.num_key_heads * gdn.key_dim + gdn.num_value_heads * gdn.value_dim
    pack = PackInfo.dense(case.batch, case.tokens)

    def inputs(bf16: bool) -> list[Tensor]:
        generator = torch.Generator().manual_seed(config.seed)
        x_BTC = torch.randn(case.batch, case.tokens, C, generator=generator)
        w_CW = 0.5 * torch.randn(C, gdn.conv_width, generator=generator)
        dtype = torch.bfloat16 if bf16 else torch.float32
        return [x_BTC.to(dtype).requires_grad_(), w_CW.to(dtype).requires_grad_()]

    def theirs(x_BTC: Tensor, w_CW: Tensor) -> Tensor:
        y_BCT: Tensor = peer_module().causal_conv1d_fn(x_BTC.transpose(1, 2), w_CW, None, activation="silu")
        return y_BCT.transpose(1, 2)

    return part(config, inputs, lambda x, w: causal_conv(x, w, pack=pack)[0], theirs)


def norm(config: BenchmarkConfig, case: Case) -> Work:
    """`part/norm`: RMSNorm of the residual stream."""
    D, eps = config.scale.d_model, model_config(config.scale, 1, case.tokens).norm_eps

    def inputs(bf16: bool) -> list[Tensor]:
        generator = torch.Generator().manual_seed(config.seed)
        x_BTD = torch.randn(case.batch, case.tokens, D, generator=generator)
        return [x_BTD.requires_grad_(), (0.1 * torch.randn(D, generator=generator)).requires_grad_()]

    def theirs(x_BTD: Tensor, offset_D: Tensor) -> Tensor:
        layer = peer_module().Qwen3NextRMSNorm(D, eps=eps)
        y_BTD: Tensor = torch.func.functional_call(layer, {"weight": offset_D}, (x_BTD,))
        return y_BTD

    return part(config, inputs, lambda x, offset: rms_norm(x, 1 + offset, eps), theirs)


def cross_entropy(config: BenchmarkConfig, case: Case) -> Work:
    """`part/cross-entropy`: the unembedding and the mean loss."""
    c = model_config(config.scale, 1, case.tokens)
    N = case.tokens_per_call
    labels_N = torch.randint(0, c.vocab_size, (N,), generator=torch.Generator().manual_seed(config.seed))

    def inputs(bf16: bool) -> list[Tensor]:
        generator = torch.Generator().manual_seed(config.seed)
        h_ND = torch.randn(N, c.d_model, generator=generator)
        w_VD = 0.02 * torch.randn(c.vocab_size, c.d_model, generator=generator)
        return [h_ND.requires_grad_(), w_VD.requires_grad_()]

    def ours(h_ND: Tensor, w_VD: Tensor) -> Tensor:
        return linear_cross_entropy(h_ND, w_VD, labels_N, chunk=c.cross_entropy_chunk) / N

    def theirs(h_ND: Tensor, w_VD: Tensor) -> Tensor:
        return F.cross_entropy(F.linear(h_ND, w_VD).float(), labels_N)

    return part(config, inputs, ours, theirs)
