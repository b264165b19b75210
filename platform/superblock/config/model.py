"""The architecture: every number that decides shapes, and every choice between variants of the same superblock."""

from collections.abc import Iterator
from dataclasses import dataclass

from superblock.config.fields import knob, section

MIXERS = ("gdn", "gqa")
STAGE_DEPTHS = (1, 3, 6, 12)
"""Superblocks of MVP-1 to -4: the depths at which one may want to cut a deeper model off."""


@dataclass
class DeltaNetConfig:
    """Gated DeltaNet (arXiv 2412.06464), seed layer 2."""

    num_key_heads: int = knob(4, "query and key heads", minimum=1)
    num_value_heads: int = knob(4, "value heads; a multiple of num_key_heads", minimum=1)
    key_dim: int = knob(64, "width of a query or key head", minimum=1, maximum=256)
    value_dim: int = knob(64, "width of a value head", minimum=1, maximum=256)
    conv_width: int = knob(4, "taps of the causal depthwise convolution on q, k and v", minimum=1, maximum=16)
    negative_eigenvalues: bool = knob(True, "write strength in (0, 2) instead of (0, 1), which allows state tracking")
    chunk_size: int = knob(0, "tokens per chunk of the parallel form; 0: the kernel's own", minimum=0, maximum=128)
    backend: str = knob("auto", "kernel of the delta rule", choices=("auto", "native", "chunked", "recurrent", "fla"))

    def problems(self) -> Iterator[tuple[str, str]]:
        if self.num_value_heads % self.num_key_heads:
            yield "num_value_heads", f"must be a multiple of num_key_heads={self.num_key_heads}"
        if self.chunk_size & (self.chunk_size - 1) or 0 < self.chunk_size < 8:
            yield "chunk_size", "must be 0 or a power of two from 8"


@dataclass
class AttentionConfig:
    """Grouped-query attention with normed queries and keys, partial rotary positions and an output gate, seed layer 5."""

    num_heads: int = knob(4, "query heads", minimum=1)
    num_kv_heads: int = knob(2, "key and value heads; divides num_heads", minimum=1)
    head_dim: int = knob(64, "width of a head", minimum=1, maximum=256)
    rope_fraction: float = knob(
        0.25, "share of a head that is rotated; 0 is no position encoding", minimum=0, maximum=1
    )
    rope_theta: float = knob(10000.0, "base of the rotary frequencies", above=1)
    output_gate: bool = knob(True, "multiply the output by sigmoid of a projection of the input")
    window: int | None = knob(None, "tokens a query sees, itself included; null is all before it", minimum=1)
    backend: str = knob("auto", "kernel of attention", choices=("auto", "native", "sdpa", "xformers", "eager"))

    def problems(self) -> Iterator[tuple[str, str]]:
        if self.num_heads % self.num_kv_heads:
            yield "num_kv_heads", f"must divide num_heads={self.num_heads}"
        if round(self.rope_fraction * self.head_dim) % 2:
            yield "rope_fraction", f"must rotate an even number of the {self.head_dim} dimensions of a head"


@dataclass
class MoEConfig:
    """Mixture of SwiGLU experts with a shared expert, seed layers 3 and 6."""

    num_experts: int = knob(8, "routed experts", minimum=1)
    top_k: int = knob(2, "routed experts a token goes to", minimum=1)
    d_expert: int = knob(128, "hidden width of a routed expert; a multiple of 8", minimum=8)
    d_shared: int = knob(128, "hidden width of the shared expert; 0 is none", minimum=0)
    score: str = knob(
        "sigmoid",
        "router score: sigmoid with a balancing bias (DeepSeek-V3) or softmax (Qwen3-Next)",
        choices=("sigmoid", "softmax"),
    )
    route_scale: float = knob(1.0, "factor on the routed experts' sum", above=0)
    shared_gate: bool = knob(False, "multiply the shared expert by a learned sigmoid gate (Qwen3-Next)")
    balance_rate: float = knob(1e-3, "step of the selection bias after each optimizer step; 0 turns it off", minimum=0)
    aux_loss: float = knob(1e-4, "weight of the load-balancing loss", minimum=0)
    z_loss: float = knob(0.0, "weight of the squared log-sum-exp of the router logits (softmax only)", minimum=0)
    backend: str = knob("auto", "kernel of the experts", choices=("auto", "native", "sorted", "grouped", "loop"))

    def problems(self) -> Iterator[tuple[str, str]]:
        if self.top_k > self.num_experts:
            yield "top_k", f"must be at most num_experts={self.num_experts}"
        if self.d_expert % 8 or self.d_shared % 8:
            yield ("d_expert" if self.d_expert % 8 else "d_shared"), "must be a multiple of 8"
        if self.z_loss and self.score != "softmax":
            yield "z_loss", "has an effect only with score=softmax"


@dataclass
class MTPConfig:
    """Multi-token-prediction head of each superblock, seed layer 8, and the exits that share it (model: `MTPHead`)."""

    enabled: bool = knob(True, "train the heads")
    depth: int = knob(1, "tokens predicted beyond the next one", minimum=1, maximum=8)
    last: str = knob(
        "mlp", "head of the last superblock: mlp, or a transformer block as in DeepSeek-V3", choices=("mlp", "block")
    )
    d_hidden: int = knob(64, "hidden width of an mlp head", minimum=8)
    d_block: int = knob(256, "hidden width of the feed-forward part of a block head", minimum=8)
    weight: float = knob(0.3, "weight of the multi-token loss in the first two thirds of training", minimum=0)
    final_weight: float = knob(0.1, "weight of the multi-token loss in the last third", minimum=0)
    exit_weight: float = knob(0.1, "weight of an early exit's loss, see exit_shape; 0 trains no exit", minimum=0)
    exits: str = knob(
        "rotate",
        "exits that learn in a step: rotate (one, each in its turn), stages (one, in turn those after 1, 3 and 6 "
        "superblocks, where stages end), or all",
        choices=("rotate", "stages", "all"),
    )
    exit_shape: str = knob(
        "linear",
        "an exit's share of exit_weight: linear (its superblock's number over that of the last early exit) or equal (all of it)",
        choices=("linear", "equal"),
    )
    exit_start: float | None = knob(
        None, "share of training after which the exits begin; null is that of the heads, start", minimum=0, maximum=1
    )
    exit_mtp: bool = knob(True, "train the multi-token depths of the exits too, once the multi-token loss has begun")
    start: float = knob(0.33, "share of training after which the multi-token loss begins", minimum=0, maximum=1)
    token_fraction: float = knob(0.25, "share of each sequence on which the heads are trained", above=0, maximum=1)
    detach_trunk: bool = knob(False, "train only the heads, not the trunk, with the multi-token loss")

    @property
    def exits_begin(self) -> float:
        """Share of training after which the exits begin."""
        return self.start if self.exit_start is None else self.exit_start


@dataclass
class ModelConfig:
    """A whole model. Defaults are MVP-1 at tiny scale."""

    family: str = knob("superblock", "model family: superblock, or a name that your own file has registered")
    file: str | None = knob(None, "Python file that registers a family of your own")
    d_model: int = knob(256, "width of the residual stream; a multiple of 8", minimum=8)
    vocab_size: int = knob(4096, "rows of the embedding table; a multiple of 64", minimum=64)
    num_superblocks: int = knob(1, "superblocks", minimum=1)
    max_sequence_length: int = knob(256, "longest training sequence, in tokens", minimum=2)
    pattern: list[str] = knob(
        lambda: ["gdn", "gqa"], "mixers of a superblock in order, each followed by a MoE layer", choices=MIXERS
    )
    wiring: str = knob(
        "prenorm",
        "prenorm: every MoE layer has its own norm; literal: the seed's three norms only",
        choices=("prenorm", "literal"),
    )
    tie_embeddings: bool = knob(False, "one table for embedding and unembedding")
    embedding_dropout: float = knob(
        0.0, "dropout after the embedding; the seed's 0.1 pays only when data repeats", minimum=0, maximum=0.9
    )
    norm_eps: float = knob(1e-6, "epsilon of RMSNorm", above=0)
    init_std: float | None = knob(
        None, "standard deviation of the initial weights; null is min(0.02, d_model^-0.5)", above=0
    )
    cross_entropy_chunk: int = knob(1024, "tokens whose logits exist at the same time", minimum=1)
    final_z_loss: float = knob(0.0, "weight of the squared log-sum-exp of the output logits", minimum=0)
    expect_params: float | None = knob(
        None, "refuse to build unless the parameter count is within 0.5 % of this", above=0
    )
    gdn: DeltaNetConfig = section(DeltaNetConfig, "Gated DeltaNet")
    gqa: AttentionConfig = section(AttentionConfig, "grouped-query attention")
    moe: MoEConfig = section(MoEConfig, "mixture of experts")
    mtp: MTPConfig = section(MTPConfig, "multi-token prediction")

    def exit_turns(self) -> list[tuple[int, ...]]:
        """The superblocks (from 0) whose exits learn together, one turn after the other; empty if no exit ever does."""
        early = range(self.num_superblocks - 1)
        if not self.mtp.enabled or not self.mtp.exit_weight or not early:
            return []
        if self.mtp.exits == "all":
            return [tuple(early)]
        return [(s,) for s in early if self.mtp.exits == "rotate" or s + 1 in STAGE_DEPTHS]

    def trained_exits(self) -> list[int]:
        """Superblocks, from 1 and without the last, whose exits learn at some time of a training."""
        turns = self.exit_turns() if self.mtp.exits_begin < 1 else []
        return sorted({s + 1 for turn in turns for s in turn})

    def exit_share(self, superblock: int) -> float:
        """What part of `mtp.exit_weight` the exit of a superblock (from 0, not the last) has."""
        return (superblock + 1) / (self.num_superblocks - 1) if self.mtp.exit_shape == "linear" else 1.0

    def problems(self) -> Iterator[tuple[str, str]]:
        if self.d_model % 8:
            yield "d_model", "must be a multiple of 8"
        if self.vocab_size % 64:
            yield "vocab_size", "must be a multiple of 64"
        if not self.pattern:
            yield "pattern", f"must name at least one mixer of {', '.join(MIXERS)}"
        if self.max_sequence_length <= self.mtp.depth + 1:
            yield "max_sequence_length", f"must be longer than mtp.depth + 1 = {self.mtp.depth + 1}"
