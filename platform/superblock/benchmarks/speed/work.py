"""What a case consists of once it can be run, and the two models that share a case.

Legend: B sequences, T tokens, D width, V vocabulary.
"""

import importlib.util
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import cached_property, partial
from typing import Any

import torch
from torch import Tensor, nn

from superblock.benchmarks.speed.cases import Case, model_config
from superblock.benchmarks.timing import Call
from superblock.config.benchmark import BenchmarkConfig
from superblock.config.model import ModelConfig
from superblock.models.convert import layer_from_qwen3_next
from superblock.models.language_model import build_model

OURS, PEER = "superblock", "transformers"
TOLERANCE = 1e-4
"""Largest difference of two fp32 results of the same function, relative to their norm; 2e-6 is usual, since orders of
summation differ. A tie of a router that rounding decides differently would be above it, which another seed tells."""


@dataclass(frozen=True)
class Variant:
    """One way to do the work of a case."""

    name: str
    make: Callable[[], Call]
    """Builds what it needs."""
    precision: str = "fp32"
    """Whose matrix products are its limit."""
    baseline: bool = False
    """The others' ratio is taken against the fastest of these."""


@dataclass(frozen=True)
class Work:
    """A case that can be run."""

    variants: tuple[Variant, ...]
    check: Callable[[], float] | None = None
    """Compares our result with the peer's and returns the largest relative difference; raises AssertionError."""


def has_peer() -> bool:
    """Whether transformers is installed, without importing it."""
    return importlib.util.find_spec("transformers") is not None


def variants_of(
    config: BenchmarkConfig, ours: Callable[[bool], Call], theirs: Callable[[bool, str], Call], *, styles: bool = False
) -> tuple[Variant, ...]:
    """Our precisions and the peer's.

    Args:
        ours: makes a call; the argument says whether it runs under bf16 autocast.
        theirs: the same for the peer; the second argument is empty, `eager` or `compiled`.
        styles: the work knows `eager` and `compiled`; otherwise those variants are left out.
    """

    def each() -> Iterator[Variant]:
        for precision in config.speed.precisions:
            yield Variant(f"{OURS}-{precision}", partial(ours, precision == "bf16"), precision)
        for name in config.speed.peers if has_peer() else []:
            precision, _, style = name.partition("-")
            if styles or not style:
                make = partial(theirs, precision == "bf16", style)
                yield Variant(f"{PEER}-{name}", make, precision, baseline=True)

    return tuple(each())


def autocast(bf16: bool) -> torch.autocast:
    """bf16 matrix products, or nothing."""
    return torch.autocast("cpu", dtype=torch.bfloat16, enabled=bf16)


def difference(actual: Tensor, expected: Tensor, what: str) -> float:
    """Norm of the difference over that of the expected value.

    Raises:
        AssertionError: if it is above `TOLERANCE`, or not a number.
    """
    error = float((actual - expected).detach().double().norm() / expected.detach().double().norm())
    assert error <= TOLERANCE, f"{what} differs from the peer's by {error:.1e} of its norm"
    return error


def peer_module() -> Any:
    """transformers' file of Qwen3-Next, without its advice about kernels for other machines."""
    import transformers

    transformers.logging.set_verbosity_error()
    from transformers.models.qwen3_next import modeling_qwen3_next

    return modeling_qwen3_next


def peer_config(c: ModelConfig) -> Any:
    """A linear-attention and a full-attention layer per superblock, of the same dimensions."""
    from transformers import Qwen3NextConfig

    config = Qwen3NextConfig(
        vocab_size=c.vocab_size, hidden_size=c.d_model, intermediate_size=c.moe.d_expert,
        num_hidden_layers=2 * c.num_superblocks, layer_types=["linear_attention", "full_attention"] * c.num_superblocks,
        num_attention_heads=c.gqa.num_heads, num_key_value_heads=c.gqa.num_kv_heads, head_dim=c.gqa.head_dim,
        linear_num_key_heads=c.gdn.num_key_heads, linear_num_value_heads=c.gdn.num_value_heads,
        linear_key_head_dim=c.gdn.key_dim, linear_value_head_dim=c.gdn.value_dim,
        linear_conv_kernel_dim=c.gdn.conv_width, rms_norm_eps=c.norm_eps,
        moe_intermediate_size=c.moe.d_expert, shared_expert_intermediate_size=c.moe.d_shared,
        num_experts=c.moe.num_experts, num_experts_per_tok=c.moe.top_k, norm_topk_prob=True,
        max_position_embeddings=max(4096, c.max_sequence_length), tie_word_embeddings=False, output_router_logits=False,
        rope_parameters={"rope_type": "default", "rope_theta": c.gqa.rope_theta,
                         "partial_rotary_factor": c.gqa.rope_fraction},
    )  # fmt: skip
    config._attn_implementation = "sdpa"
    return config


class Pair:
    """Our model and the peer's, each built when it is first asked for; all variants of a side share their weights."""

    def __init__(self, config: BenchmarkConfig, case: Case) -> None:
        self.config = model_config(config.scale, case.superblocks, case.tokens + case.context + 1024)
        self.seed = config.seed

    @cached_property
    def ours(self) -> Any:
        return build_model(self.config, seed=self.seed)

    @cached_property
    def theirs(self) -> Any:
        peer = peer_module()
        torch.manual_seed(self.seed)
        model = peer.Qwen3NextForCausalLM(peer_config(self.config))
        generator = torch.Generator().manual_seed(self.seed)
        for name, parameter in model.named_parameters():
            if name.endswith("mlp.gate.weight"):  # zero as shipped, which sends every token to the same experts
                nn.init.normal_(parameter, std=0.02, generator=generator)
        return model

    def styled(self, style: str) -> Any:
        """The peer's model with its default experts, a loop over experts, or compiled; the same weights."""
        if not style:
            return self.theirs
        if style == "compiled":
            return torch.compile(self.theirs)
        return _with_eager_experts(self.theirs)

    def share_weights(self) -> None:
        """Gives ours the peer's weights."""
        theirs, c = self.theirs, self.config
        state = {"embedding.weight": theirs.model.embed_tokens.weight, "unembedding.weight": theirs.lm_head.weight}
        state["norm.weight"] = 1 + theirs.model.norm.weight
        for number, layer in enumerate(theirs.model.layers):
            s, j = divmod(number, len(c.pattern))
            moved = layer_from_qwen3_next(layer.state_dict(), c.gdn, c.gqa)
            state |= {f"superblocks.{s}.layers.{j}.{name}": value for name, value in moved.items()}
        left, unknown = self.ours.load_state_dict({k: v.detach() for k, v in state.items()}, strict=False)
        assert not unknown and all(n.startswith("heads.") or n.endswith("balance_bias") for n in left), (left, unknown)

    def tokens(self, B: int, T: int) -> Tensor:
        """Random tokens [B, T]."""
        return torch.randint(0, self.config.vocab_size, (B, T), generator=torch.Generator().manual_seed(self.seed))


def _with_eager_experts(model: Any) -> Any:
    """The same parameters in a second model whose configuration asks for the loop."""
    import copy

    config = copy.deepcopy(model.config)
    config._experts_implementation = "eager"
    other = type(model)(config)
    for (_, theirs), (name, _) in zip(model.named_parameters(), list(other.named_parameters()), strict=True):
        owner, _, leaf = name.rpartition(".")
        setattr(other.get_submodule(owner), leaf, theirs)
    return other
