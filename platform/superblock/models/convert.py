"""Weights of transformers' Qwen3-Next layers in the parameter layout of this package.

A superblock of pattern `[gdn, gqa]` is one of its linear-attention layers followed by one of its full-attention layers.
Legend: D width, G key or kv heads, H value or query heads, K, V head widths.
"""

from collections.abc import Mapping

import torch
from torch import Tensor

from superblock.config.model import AttentionConfig, DeltaNetConfig


def layer_from_qwen3_next(
    theirs: Mapping[str, Tensor], gdn: DeltaNetConfig, gqa: AttentionConfig, *, sparse: bool = True
) -> dict[str, Tensor]:
    """State of a `models.superblock.Layer` from that of a `Qwen3NextDecoderLayer`.

    Args:
        theirs: its state dict.
        gdn: sizes, where the layer has linear attention.
        gqa: sizes, where it has full attention.
        sparse: the feed-forward part is a mixture of experts; otherwise it is left out.

    Returns:
        Every entry but the balancing bias, which that model does not have.
    """
    ours = {"norm.weight": 1 + theirs["input_layernorm.weight"]}
    mixer = _gdn(theirs, gdn) if "linear_attn.A_log" in theirs else _gqa(theirs, gqa)
    ours |= {f"mixer.{name}": value for name, value in mixer.items()}
    return ours | ({f"moe.{name}": value for name, value in _moe(theirs).items()} if sparse else {})


def _gdn(theirs: Mapping[str, Tensor], c: DeltaNetConfig) -> dict[str, Tensor]:
    """Their projections interleave q, k, v and z by key head; ours hold all heads of one kind together."""
    G, shared = c.num_key_heads, c.num_value_heads // c.num_key_heads
    per_head = [c.key_dim, c.key_dim, shared * c.value_dim, shared * c.value_dim]
    qkvz = theirs["linear_attn.in_proj_qkvz.weight"].unflatten(0, (G, sum(per_head))).split(per_head, dim=1)
    ba = theirs["linear_attn.in_proj_ba.weight"].unflatten(0, (G, 2 * shared)).chunk(2, dim=1)
    return {
        "qkvz.weight": torch.cat([part.flatten(0, 1) for part in qkvz]),
        "ba.weight": torch.cat([part.flatten(0, 1) for part in ba]),
        "conv": theirs["linear_attn.conv1d.weight"].squeeze(1),
        "A_log": theirs["linear_attn.A_log"],
        "dt_bias": theirs["linear_attn.dt_bias"],
        "norm.weight": theirs["linear_attn.norm.weight"],
        "out.weight": theirs["linear_attn.out_proj.weight"],
    }


def _gqa(theirs: Mapping[str, Tensor], c: AttentionConfig) -> dict[str, Tensor]:
    """Their query projection interleaves query and gate by head; their norms store an offset from 1."""
    q, gate = theirs["self_attn.q_proj.weight"].unflatten(0, (c.num_heads, 2 * c.head_dim)).chunk(2, dim=1)
    k, v = theirs["self_attn.k_proj.weight"], theirs["self_attn.v_proj.weight"]
    return {
        "qkvg.weight": torch.cat([q.flatten(0, 1), k, v, gate.flatten(0, 1)]),
        "query_norm": 1 + theirs["self_attn.q_norm.weight"],
        "key_norm": 1 + theirs["self_attn.k_norm.weight"],
        "out.weight": theirs["self_attn.o_proj.weight"],
    }


def _moe(theirs: Mapping[str, Tensor]) -> dict[str, Tensor]:
    shared = "mlp.shared_expert."
    return {
        "norm.weight": 1 + theirs["post_attention_layernorm.weight"],
        "router.weight": theirs["mlp.gate.weight"],
        "gate_up": theirs["mlp.experts.gate_up_proj"],
        "down": theirs["mlp.experts.down_proj"],
        "shared_gate_up": torch.cat([theirs[f"{shared}gate_proj.weight"], theirs[f"{shared}up_proj.weight"]]),
        "shared_down": theirs[f"{shared}down_proj.weight"],
        "shared_gate": theirs["mlp.shared_expert_gate.weight"][0],
    }
