"""A model's decoding step as one call of C++ (`kernels.decode`): when it serves, and what it is handed.

What depends on the parameters is kept between steps, and looked at again before each: where they lie, and which modules
hold them. So weights that were trained on, moved or replaced in the meantime are the ones that are used.

Legend: B sequences, D width, V vocabulary, W taps, G kv heads, K head width.
"""

from itertools import chain
from typing import Any
from weakref import WeakKeyDictionary

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from superblock.config.model import ModelConfig
from superblock.kernels import decode
from superblock.kernels.precision import compute_dtype
from superblock.models.attention import GroupedQueryAttention
from superblock.models.batch import ModelOutput
from superblock.models.cache import Cache, DeltaState, KeyValueState
from superblock.models.gated_deltanet import GatedDeltaNet
from superblock.models.moe import MoE
from superblock.models.norm import RMSNorm
from superblock.models.superblock import Layer, Superblock

MAX_BATCH = 16
"""From here on torch's matrix products win."""
_PARTS = (Superblock, Layer, GatedDeltaNet, GroupedQueryAttention, MoE, RMSNorm, nn.Linear, nn.Embedding, nn.ModuleList)
_BACKENDS = ("auto", "native")


def decode_natively(model: nn.Module, ids_BT: Tensor, cache: Cache) -> ModelOutput | None:
    """The output of `SuperblockModel` for one token per sequence, without router statistics; the cache goes on with it.

    None where PyTorch has to serve: several tokens or many sequences, gradients, dropout, another device or dtype, hooks,
    modules of another kind, sizes without C++ code, backends that were chosen by name, no compiler. Under autocast to
    bf16 keys and values are kept in bf16, as PyTorch keeps them there; all else is computed in fp32, and logits are fp32.
    """
    if ids_BT.shape[1] != 1 or not 0 < len(ids_BT) <= MAX_BATCH or ids_BT.device.type != "cpu":
        return None
    if torch.is_grad_enabled() or torch.compiler.is_compiling():
        return None
    if torch.is_autocast_enabled("cpu") and torch.get_autocast_dtype("cpu") != torch.bfloat16:
        return None
    if next(model.parameters()).dtype != torch.float32:  # told from one, before all are gathered anew for every token
        return None
    trunk = _TRUNKS.get(model)
    if trunk is None or not trunk.is_current():
        trunk = _TRUNKS[model] = _Trunk(model)
    c = trunk.config
    if any(backend not in _BACKENDS for backend in (c.gdn.backend, c.gqa.backend, c.moe.backend)):
        return None
    if trunk.decoder is None or (model.training and c.embedding_dropout):
        return None
    return trunk.step(ids_BT[:, 0], cache)


class _Trunk:
    """Everything below a model that decoding reads; the heads are not."""

    def __init__(self, model: nn.Module) -> None:
        m: Any = model
        self.config: ModelConfig = m.config
        self.embedding: nn.Embedding = m.embedding
        layers = {(s, j): layer for s, block in enumerate(m.superblocks) for j, layer in enumerate(block.layers)}
        self._new_states = {key: layer.mixer.new_state for key, layer in layers.items()}
        parts = [m.embedding, m.norm, *m.superblocks.modules()] + ([m.unembedding] if m.unembedding is not None else [])
        self._hooks = [hooks for part in [model, *parts] for hooks in (part._forward_hooks, part._forward_pre_hooks)]
        self._children = [part._modules for part in [model, *parts]]
        self._children_before = [dict(children) for children in self._children]
        self._theta = m.config.gqa.rope_theta
        self._owned = [owned for part in parts for owned in (part._parameters, part._buffers) if owned]
        self._identities_before = self._identities()
        self._tensors = [t for owned in self._owned for t in owned.values() if t is not None]
        self._addresses_before: list[int] = []
        self.decoder: decode.Decoder | None = None
        if any(self._hooks) or any(type(part) not in _PARTS for part in parts) or not self._fits():
            return
        self._addresses_before = self._addresses()
        self.decoder = decode.Decoder(
            sizes(self.config),
            [(_mixer(layer), _experts(layer.moe)) for layer in layers.values()],
            *(m.norm.weight, m.output_weight, self.config.gqa.rope_theta),
        )

    def is_current(self) -> bool:
        """Nothing was moved, replaced or hooked since."""
        if self.decoder is None or any(self._hooks):
            return False
        return (
            self.decoder.sizes == sizes(self.config)
            and self._theta == self.config.gqa.rope_theta
            and self._children == self._children_before
            and self._identities() == self._identities_before
            and self._addresses() == self._addresses_before
        )

    # hundreds of tensors before every token, so both without a Python loop

    def _identities(self) -> list[int]:
        return list(map(id, chain.from_iterable(map(dict.values, self._owned))))

    def _addresses(self) -> list[int]:
        return list(map(Tensor.data_ptr, self._tensors))

    def _fits(self) -> bool:
        return (
            all(type(t) in (Tensor, nn.Parameter) and t.device.type == "cpu" for t in self._tensors)
            and all(t.dtype == torch.float32 and t.is_contiguous() for t in self._tensors)
            and decode.why_not(sizes(self.config)) is None
        )

    def step(self, ids_B: Tensor, cache: Cache) -> ModelOutput | None:
        """See `decode_natively`."""
        assert self.decoder is not None
        for key, new_state in self._new_states.items():
            if key not in cache.states:
                cache.states[key] = new_state()
        states = [cache.states[key] for key in self._new_states]
        if not all(map(_usable, states)):
            return None
        x_BD = F.embedding(ids_B, self.embedding.weight)  # fp32 under autocast too
        before = [self._before(state, x_BD) for state in states]
        logits_BV, after, counts_LE = self.decoder.step(x_BD, before, cache.length)
        new = iter(after)
        for state in states:
            if isinstance(state, DeltaState):
                state.conv_BWC, state.recurrent_BHKV = next(new)
            else:
                state.length += 1
        cache.length += 1
        return ModelOutput(logits_BTV=logits_BV[:, None], expert_counts_LE=counts_LE)

    def _before(self, state: DeltaState | KeyValueState, x_BD: Tensor) -> decode.DeltaState | decode.KeyValues:
        """A layer's state as the step reads it: zeros at the start of a sequence, and room for another key."""
        if isinstance(state, KeyValueState):
            keys, values = state.keys_BSGK, state.values_BSGK
            if keys is None or values is None or keys.shape[1] <= state.length:
                a = self.config.gqa
                dtype = compute_dtype(x_BD) if keys is None else keys.dtype
                like_BTGK = x_BD.new_empty(len(x_BD), 1, a.num_kv_heads, a.head_dim, dtype=dtype)
                keys, values = state.make_room(like_BTGK)
            return decode.KeyValues(keys, values, state.length)
        if state.conv_BWC is None or state.recurrent_BHKV is None:
            B, c = len(x_BD), self.config.gdn
            channels = 2 * c.num_key_heads * c.key_dim + c.num_value_heads * c.value_dim
            matrix_BHKV = x_BD.new_zeros(B, c.num_value_heads, c.key_dim, c.value_dim)
            return decode.DeltaState(x_BD.new_zeros(B, c.conv_width - 1, channels), matrix_BHKV)
        return decode.DeltaState(state.conv_BWC.float(), state.recurrent_BHKV)


_TRUNKS: "WeakKeyDictionary[nn.Module, _Trunk]" = WeakKeyDictionary()


def sizes(config: ModelConfig) -> decode.Sizes:
    """The sizes of a configuration as `kernels.decode` has them."""
    d, a, m = config.gdn, config.gqa, config.moe
    return decode.Sizes(
        width=config.d_model,
        vocabulary=config.vocab_size,
        key_heads=d.num_key_heads,
        value_heads=d.num_value_heads,
        key_width=d.key_dim,
        value_width=d.value_dim,
        taps=d.conv_width,
        query_heads=a.num_heads,
        kv_heads=a.num_kv_heads,
        head_width=a.head_dim,
        rotated=round(a.rope_fraction * a.head_dim),
        window=a.window or 0,
        gated=a.output_gate,
        experts=m.num_experts,
        chosen=m.top_k,
        expert_width=m.d_expert,
        shared_width=m.d_shared,
        softmax=m.score == "softmax",
        epsilon=config.norm_eps,
        write_scale=2.0 if d.negative_eigenvalues else 1.0,
        route_scale=m.route_scale,
    )


def _mixer(layer: Layer) -> decode.Delta | decode.Attention:
    mixer, norm = layer.mixer, layer.norm.weight
    if isinstance(mixer, GroupedQueryAttention):
        return decode.Attention(norm, mixer.qkvg.weight, mixer.out.weight, mixer.query_norm, mixer.key_norm)
    return decode.Delta(
        *(norm, mixer.qkvz.weight, mixer.out.weight, mixer.ba.weight),
        *(mixer.conv, mixer.A_log, mixer.dt_bias, mixer.norm.weight),
    )


def _experts(moe: MoE) -> decode.Experts:
    norm = None if moe.norm is None else moe.norm.weight
    shared = (moe.shared_gate_up, moe.shared_down, moe.shared_gate)
    return decode.Experts(norm, moe.router.weight, moe.balance_bias, moe.gate_up, moe.down, *shared)


def _usable(state: object) -> bool:
    """Whether the step can read it: no gradient, fp32 matrices, fp32 or bf16 for the rest, and buffers in one piece."""
    if isinstance(state, DeltaState):
        return _plain(state.conv_BWC, decode.KEPT) and _plain(state.recurrent_BHKV)
    if isinstance(state, KeyValueState):
        keys, values = state.keys_BSGK, state.values_BSGK
        if keys is None or values is None:
            return keys is values
        fits = _plain(keys, decode.KEPT) and _plain(values, (keys.dtype,))
        return fits and keys.is_contiguous() and values.is_contiguous()
    return False


def _plain(t: Tensor | None, dtypes: tuple[torch.dtype, ...] = (torch.float32,)) -> bool:
    return t is None or (t.dtype in dtypes and not t.requires_grad)
