"""Parameters, FLOPs and bytes of a model in closed form: pure Python, so that a plan of 235B parameters needs no torch.

Every number follows from `ModelConfig` alone, and a test compares the parameters with the built model, row by row.
FLOPs count a multiply and an add as two; norms, activations and other element-wise work are left out. Legend: D width,
V vocabulary, S superblocks, E experts, F hidden width of an expert, W taps of the convolution.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import pairwise

from superblock.config.model import AttentionConfig, DeltaNetConfig, ModelConfig, MoEConfig

TRAINING_FACTOR = 3
"""Forward once, and twice that for the gradients of activations and weights."""
TRAINING_BYTES = 16
"""Per parameter: fp32 weight, gradient and AdamW's two moments; bf16 weight and gradient with an fp32 copy cost the same."""

MIXER_NAMES = {"gdn": "Gated DeltaNet", "gqa": "Grouped Query Attention"}


@dataclass(frozen=True)
class Row:
    """`copies` equal components of a model."""

    name: str
    where: str
    """Regular expression that matches the start of this component's parameter names and of no other's."""
    parameters: int
    """Of one copy."""
    active: int
    """Parameters of one copy that a token passes on its way to the next one; 0 for the heads and a pure look-up table."""
    flops: int
    """Forward FLOPs per token of one copy, without what depends on the context length."""
    context_flops: int = 0
    """Forward FLOPs per token of one copy and token of visible context."""
    window: int | None = None
    """Longest visible context of attention; None is unbounded."""
    copies: int = 1
    layer: int | None = None
    """Number within the superblock, from 1, as in the seed; None outside of superblocks."""
    head: bool = False
    """Belongs to the prediction heads, which next-token prediction does not need."""

    @property
    def total(self) -> int:
        return self.parameters * self.copies

    def flops_at(self, context: float) -> float:
        """Forward FLOPs per token of all copies, for a token that sees `context` tokens, itself included."""
        seen = context if self.window is None else min(context, self.window)
        return self.copies * (self.flops + self.context_flops * seen)


@dataclass(frozen=True)
class Counts:
    """What a model is made of and what it costs."""

    config: ModelConfig
    rows: tuple[Row, ...]

    @property
    def total(self) -> int:
        """Parameters, each counted once."""
        return sum(row.total for row in self.rows)

    @property
    def active(self) -> int:
        """Parameters a token meets in the superblocks and the output: of the experts its own, of the heads only their norm.

        The input table counts only where it is also the output's.
        """
        return sum(row.active * row.copies for row in self.rows)

    def flops_per_token(self, context: float) -> float:
        """Forward FLOPs of next-token prediction for a token that sees `context` tokens, itself included."""
        return sum(row.flops_at(context) for row in self.rows if not row.head)

    def head_flops_per_token(self, context: float, *, depths: bool = True, exits: bool = True) -> float:
        """FLOPs that the prediction heads add to the forward pass of a training token on average.

        The last superblock's head and the early exits whose turn it is see `mtp.token_fraction` of the tokens.

        Args:
            depths: the multi-token loss has begun.
            exits: the exits have begun.
        """
        c = self.config
        if not c.mtp.enabled:
            return 0.0
        unembed, flops = 2 * c.d_model * c.vocab_size, 0.0
        if depths:
            last = next(row for row in reversed(self.rows) if row.head and row.parameters and row.flops)
            flops += last.flops_at(context) / last.copies + c.mtp.depth * unembed
        if exits:
            further = c.mtp.depth if c.mtp.exit_mtp and depths else 0
            learning = max(map(len, c.exit_turns()), default=0)  # turns are of one length
            flops += learning * (further * 2 * _mtp_mlp(c)[1] + (1 + further) * unembed)
        return c.mtp.token_fraction * flops

    def training_flops_per_token(self, sequence_length: int | None = None, *, heads: bool = True) -> float:
        """FLOPs of forward and backward per token of one-document sequences; packed documents see less context."""
        context = mean_context(sequence_length or self.config.max_sequence_length, self.config.gqa.window)
        forward = self.flops_per_token(context) + (self.head_flops_per_token(context) if heads else 0.0)
        return TRAINING_FACTOR * forward

    def mean_training_flops_per_token(self, sequence_length: int | None = None) -> float:
        """FLOPs of forward and backward per token, averaged over a whole training: heads cost nothing before they begin."""
        mtp = self.config.mtp
        context = mean_context(sequence_length or self.config.max_sequence_length, self.config.gqa.window)
        heads, bounds = 0.0, sorted({0.0, mtp.start, mtp.exits_begin, 1.0})
        for begin, end in pairwise(bounds):
            now = self.head_flops_per_token(context, depths=begin >= mtp.start, exits=begin >= mtp.exits_begin)
            heads += (end - begin) * now
        return TRAINING_FACTOR * (self.flops_per_token(context) + heads)

    def weight_bytes(self, bytes_per_parameter: int = 2) -> int:
        """Bytes of the weights: 2 per parameter in bf16, 4 in fp32."""
        return self.total * bytes_per_parameter

    def training_bytes(self) -> int:
        """Bytes of weights, gradients and AdamW's moments, without activations."""
        return self.total * TRAINING_BYTES

    def kv_bytes_per_token(self, bytes_per_element: int = 2) -> int:
        """Bytes of keys and values that decoding keeps per token of context."""
        c = self.config
        return _layers(c, "gqa") * 2 * c.gqa.num_kv_heads * c.gqa.head_dim * bytes_per_element

    def recurrent_state_bytes(self) -> int:
        """Bytes of the fp32 delta-rule states of one sequence, whatever its length."""
        gdn = self.config.gdn
        return _layers(self.config, "gdn") * gdn.num_value_heads * gdn.key_dim * gdn.value_dim * 4

    def conv_state_bytes(self, bytes_per_element: int = 2) -> int:
        """Bytes of the convolutions' last inputs of one sequence."""
        gdn = self.config.gdn
        return _layers(self.config, "gdn") * (gdn.conv_width - 1) * _conv_channels(gdn) * bytes_per_element


@dataclass(frozen=True)
class NamedLayer:
    """One of the layers as the seed counts them."""

    name: str
    superblock: int | None
    """From 1; None outside of superblocks."""
    parameters: int


def count(config: ModelConfig) -> Counts:
    """Counts parameters and FLOPs of every component, in the order of the forward pass."""
    return Counts(config, tuple(_rows(config)))


def mean_context(sequence_length: int, window: int | None = None) -> float:
    """Tokens that a token of a causal sequence sees on average, itself included."""
    w = min(window or sequence_length, sequence_length)
    return (w * (w + 1) / 2 + (sequence_length - w) * w) / sequence_length


def named_layers(config: ModelConfig) -> list[NamedLayer]:
    """The layers as the seed counts them: 2 + S x 8 + 3 for its own pattern, 101 with 12 superblocks.

    Rotary positions have no parameters and act inside attention; sampling has none. Together the layers hold all parameters.
    """
    rows = list(_rows(config))
    layers = [
        NamedLayer("Embedding Layer", None, rows[0].parameters),
        NamedLayer("Positional Encoding (rotary, inside attention)", None, 0),
    ]
    for s in range(1, config.num_superblocks + 1):
        for layer in range(1, layers_per_superblock(config) + 1):
            kinds = [row for row in rows if row.layer == layer]  # two where the last superblock has another head
            row = kinds[-1 if s == config.num_superblocks else 0]
            layers.append(NamedLayer(row.name, s, row.parameters))
    layers.append(NamedLayer("Final RMSNorm", None, config.d_model))
    layers.append(NamedLayer("Output Layer (unembedding)", None, 0 if config.tie_embeddings else rows[-1].parameters))
    layers.append(NamedLayer("Softmax/Sampling", None, 0))
    return layers


def layers_per_superblock(config: ModelConfig) -> int:
    """Norm, mixer and MoE for each mixer of the pattern, a norm and, if enabled, the head: 8 for the seed's pattern."""
    return 3 * len(config.pattern) + (2 if config.mtp.enabled else 1)


def _rows(c: ModelConfig) -> Iterator[Row]:
    D, V, S = c.d_model, c.vocab_size, c.num_superblocks
    tied = V * D if c.tie_embeddings else 0
    yield Row("Embedding", r"embedding\.", V * D, tied, 2 * tied)
    for j, mixer in enumerate(c.pattern):
        place = rf"superblocks\.\d+\.layers\.{j}\."
        first = 3 * j + 1
        yield Row("RMSNorm", place + r"norm\.", D, D, 0, copies=S, layer=first)
        parameters, flops = _gdn(D, c.gdn) if mixer == "gdn" else _gqa(D, c.gqa)
        per_context = _attention_flops(c.gqa) if mixer == "gqa" else 0
        yield Row(
            MIXER_NAMES[mixer], place + r"mixer\.", parameters, parameters, flops, per_context, c.gqa.window,
            copies=S, layer=first + 1,
        )  # fmt: skip
        total, active, flops = _moe(D, c.moe, own_norm=c.wiring == "prenorm")
        yield Row("MoE FFN", place + r"moe\.", total, active, flops, copies=S, layer=first + 2)
    yield from _head_rows(c, 3 * len(c.pattern) + 1)
    yield Row("Final RMSNorm", r"norm\.", D, D, 0)
    if not tied:
        yield Row("Unembedding", r"unembedding\.", V * D, V * D, 2 * V * D)


def _head_rows(c: ModelConfig, layer: int) -> Iterator[Row]:
    S, K = c.num_superblocks, c.mtp.depth
    yield Row("RMSNorm", r"heads\.\d+\.norm\.", c.d_model, c.d_model, 0, copies=S, layer=layer, head=True)
    if not c.mtp.enabled:
        return
    blocks = 1 if c.mtp.last == "block" else 0
    if blocks < S:
        parameters, matrices = _mtp_mlp(c)
        where = rf"heads\.({'|'.join(str(s) for s in range(S - blocks))})\.mtp\."
        yield Row(
            "MTP Head (mlp)", where, K * parameters, 0, K * 2 * matrices, copies=S - blocks, layer=layer + 1, head=True
        )
    if blocks:
        parameters, matrices = _mtp_block(c)
        yield Row(
            "MTP Head (block)", rf"heads\.{S - 1}\.mtp\.", K * parameters, 0, K * 2 * matrices,
            K * _attention_flops(c.gqa), c.gqa.window, layer=layer + 1, head=True,
        )  # fmt: skip


def _layers(c: ModelConfig, mixer: str) -> int:
    return c.num_superblocks * c.pattern.count(mixer)


def _conv_channels(gdn: DeltaNetConfig) -> int:
    return 2 * gdn.num_key_heads * gdn.key_dim + gdn.num_value_heads * gdn.value_dim


def _attention_flops(gqa: AttentionConfig) -> int:
    """Of one token per token of context: a product with the key and one with the value, in every query head."""
    return 4 * gqa.num_heads * gqa.head_dim


def _gdn(D: int, gdn: DeltaNetConfig) -> tuple[int, int]:
    """Parameters, and FLOPs with the delta rule in its recurrent form: decay, read, write and output of a dk x dv state."""
    heads, values = gdn.num_value_heads, gdn.num_value_heads * gdn.value_dim
    projections = D * (_conv_channels(gdn) + values + 2 * heads) + values * D  # q k v, z, b a, output
    conv = gdn.conv_width * _conv_channels(gdn)
    delta_rule = (1 + 2 + 2 + 2) * heads * gdn.key_dim * gdn.value_dim
    return projections + conv + 2 * heads + gdn.value_dim, 2 * (projections + conv) + delta_rule


def _gqa(D: int, gqa: AttentionConfig) -> tuple[int, int]:
    """Parameters, and FLOPs of the projections."""
    queries, keys = gqa.num_heads * gqa.head_dim, gqa.num_kv_heads * gqa.head_dim
    projections = D * (queries * (3 if gqa.output_gate else 2) + 2 * keys)  # q, output, and the gate; k v
    return projections + 2 * gqa.head_dim, 2 * projections


def _moe(D: int, moe: MoEConfig, *, own_norm: bool) -> tuple[int, int, int]:
    """Parameters, those a token uses, and its FLOPs."""
    expert = 3 * D * moe.d_expert
    fixed = D * moe.num_experts + 3 * D * moe.d_shared + (D if moe.shared_gate and moe.d_shared else 0)
    norm = D if own_norm else 0
    active = fixed + moe.top_k * expert
    return norm + fixed + moe.num_experts * expert, norm + active, 2 * active


def _mtp_mlp(c: ModelConfig) -> tuple[int, int]:
    """Parameters and those in matrices of one depth: two norms, 2D -> r, r -> D."""
    matrices = 3 * c.d_model * c.mtp.d_hidden
    return 2 * c.d_model + matrices, matrices


def _mtp_block(c: ModelConfig) -> tuple[int, int]:
    """Parameters and those in matrices of one depth: two norms, 2D -> D, norm and attention, norm and SwiGLU, norm."""
    D = c.d_model
    attention, attention_flops = _gqa(D, c.gqa)
    feed_forward = 3 * D * c.mtp.d_block
    return 5 * D + 2 * D * D + attention + feed_forward, 2 * D * D + attention_flops // 2 + feed_forward
