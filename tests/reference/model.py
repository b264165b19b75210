"""The whole model in NumPy float64, to be read beside the seed: one document at a time, one loop per token where that is clearer.

Nothing is shared with the library but the names of the weights. Documents never see each other, so a packed batch is
the same as calling `forward` on each document.

Legend: T tokens of a document, D width, V vocabulary, S superblocks, E experts, F hidden width of an expert, K, V head
widths, W taps of the convolution.
"""

from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from superblock.config.model import AttentionConfig, DeltaNetConfig, ModelConfig, MoEConfig

Array = NDArray[np.float64]
Weights = dict[str, Array]


@dataclass
class Prediction:
    """Logits for one document of T tokens."""

    logits_TV: Array
    """Of the next token, from the end of the model."""
    exits: list[Array] = field(default_factory=list)
    """Of the next token, from the exit of each superblock but the last: [T, V]."""
    ahead: list[list[Array]] = field(default_factory=list)
    """`ahead[s][k - 1]`: of the token 1 + k places ahead, from the head of superblock s (from 0): [T - k, V]."""


def forward(config: ModelConfig, weights: Weights, ids_T: NDArray[np.int64]) -> Prediction:
    """Every prediction the model makes about one document."""
    embedding_VD = weights["embedding.weight"]
    unembedding_VD = embedding_VD if config.tie_embeddings else weights["unembedding.weight"]
    x_TD = embedding_VD[ids_T]
    prediction = Prediction(np.empty(0))
    for s in range(config.num_superblocks):
        for j, mixer in enumerate(config.pattern):
            layer = below(weights, f"superblocks.{s}.layers.{j}.")
            mix = gated_deltanet if mixer == "gdn" else attention
            section = config.gdn if mixer == "gdn" else config.gqa
            normed_TD = rms_norm(x_TD, layer["norm.weight"], config.norm_eps)
            x_TD = x_TD + mix(normed_TD, below(layer, "mixer."), section, config.norm_eps)  # type: ignore[operator]
            x_TD = x_TD + mixture_of_experts(x_TD, below(layer, "moe."), config.moe, config.norm_eps)
        last = s == config.num_superblocks - 1
        exit_TD, *hidden = prediction_head(x_TD, embedding_VD[ids_T], below(weights, f"heads.{s}."), config, last)
        if not last:
            prediction.exits.append(exit_TD @ unembedding_VD.T)
        prediction.ahead.append([h_TD @ unembedding_VD.T for h_TD in hidden])
    prediction.logits_TV = rms_norm(x_TD, weights["norm.weight"], config.norm_eps) @ unembedding_VD.T
    return prediction


def rms_norm(x_D: Array, weight_D: Array, eps: float) -> Array:
    """weight * x / sqrt(mean(x^2) + eps)."""
    return weight_D * x_D / np.sqrt((x_D**2).mean(-1, keepdims=True) + eps)


def gated_deltanet(x_TD: Array, w: Weights, c: DeltaNetConfig, eps: float) -> Array:
    """Gated DeltaNet, token by token (arXiv 2412.06464, equation 10)."""
    T, keys, values = len(x_TD), c.num_key_heads * c.key_dim, c.num_value_heads * c.value_dim
    qkv_TC, z_TC = np.split(x_TD @ w["qkvz.weight"].T, [2 * keys + values], axis=1)
    b_TH, a_TH = np.split(x_TD @ w["ba.weight"].T, 2, axis=1)
    q, k, v = np.split(convolution(qkv_TC, w["conv"]), [keys, 2 * keys], axis=1)
    group = c.num_value_heads // c.num_key_heads  # value heads that share a key head
    q_THK = unit(q.reshape(T, c.num_key_heads, c.key_dim)).repeat(group, axis=1) / np.sqrt(c.key_dim)
    k_THK = unit(k.reshape(T, c.num_key_heads, c.key_dim)).repeat(group, axis=1)
    v_THV = v.reshape(T, c.num_value_heads, c.value_dim)
    beta_TH = sigmoid(b_TH) * (2 if c.negative_eigenvalues else 1)
    decay_TH = np.exp(-np.exp(w["A_log"]) * np.logaddexp(0, a_TH + w["dt_bias"]))
    state_HKV = np.zeros((c.num_value_heads, c.key_dim, c.value_dim))
    o_THV = np.empty_like(v_THV)
    for t in range(T):
        for h in range(c.num_value_heads):
            state_HKV[h] *= decay_TH[t, h]
            error_V = v_THV[t, h] - k_THK[t, h] @ state_HKV[h]
            state_HKV[h] += beta_TH[t, h] * np.outer(k_THK[t, h], error_V)
            o_THV[t, h] = q_THK[t, h] @ state_HKV[h]
    gated_THV = rms_norm(o_THV, w["norm.weight"], eps) * silu(z_TC.reshape(o_THV.shape))
    return gated_THV.reshape(T, values) @ w["out.weight"].T


def convolution(x_TC: Array, weight_CW: Array) -> Array:
    """Every channel is a weighted sum of its last W values, then SiLU; before the document there are zeros."""
    T, W = len(x_TC), weight_CW.shape[1]
    padded = np.concatenate([np.zeros((W - 1, x_TC.shape[1])), x_TC])
    return silu(np.stack([(padded[t : t + W] * weight_CW.T).sum(0) for t in range(T)]))


def attention(x_TD: Array, w: Weights, c: AttentionConfig, eps: float) -> Array:
    """Grouped-query attention with normed, partly rotated queries and keys and an output gate."""
    T, H, G, K = len(x_TD), c.num_heads, c.num_kv_heads, c.head_dim
    heads_THK = (x_TD @ w["qkvg.weight"].T).reshape(T, len(w["qkvg.weight"]) // K, K)
    q, k, v, gate = np.split(heads_THK, [H, H + G, H + 2 * G], axis=1)
    q = rotate(rms_norm(q, w["query_norm"], eps), c)
    k = rotate(rms_norm(k, w["key_norm"], eps), c).repeat(H // G, axis=1)
    v = v.repeat(H // G, axis=1)
    o_THK = np.empty_like(q)
    for t in range(T):
        first = 0 if c.window is None else max(0, t + 1 - c.window)
        for h in range(H):
            seen_K = softmax(k[first : t + 1, h] @ q[t, h] / np.sqrt(K))
            o_THK[t, h] = seen_K @ v[first : t + 1, h]
    if c.output_gate:
        o_THK *= sigmoid(gate)
    return o_THK.reshape(T, H * K) @ w["out.weight"].T


def rotate(x_THK: Array, c: AttentionConfig) -> Array:
    """Turns dimensions i and i + R/2 of each head, as a plane, by position * theta^(-2i/R); R is a share of the head."""
    R = round(c.rope_fraction * c.head_dim)
    y_THK = x_THK.copy()
    for i in range(R // 2):
        angle_T1 = np.arange(len(x_THK))[:, None] * c.rope_theta ** (-2 * i / R)
        plane = (x_THK[..., i] + 1j * x_THK[..., i + R // 2]) * np.exp(1j * angle_T1)
        y_THK[..., i], y_THK[..., i + R // 2] = plane.real, plane.imag
    return y_THK


def mixture_of_experts(x_TD: Array, w: Weights, c: MoEConfig, eps: float) -> Array:
    """Each token goes to its k best experts, weighted by their normalised scores, and to the shared expert."""
    if "norm.weight" in w:  # absent in the seed's literal wiring
        x_TD = rms_norm(x_TD, w["norm.weight"], eps)
    logits_TE = x_TD @ w["router.weight"].T
    scores_TE = sigmoid(logits_TE) if c.score == "sigmoid" else softmax(logits_TE)
    y_TD = np.zeros_like(x_TD)
    for t, x_D in enumerate(x_TD):
        chosen = np.argsort(-(scores_TE[t] + w["balance_bias"]))[: c.top_k]
        for e in chosen:
            share = c.route_scale * scores_TE[t, e] / scores_TE[t, chosen].sum()
            y_TD[t] += share * swiglu(x_D, w["gate_up"][e], w["down"][e])
    if "shared_gate_up" in w:
        shared_TD = swiglu(x_TD, w["shared_gate_up"], w["shared_down"])
        if "shared_gate" in w:
            shared_TD *= sigmoid(x_TD @ w["shared_gate"])[:, None]
        y_TD += shared_TD
    return y_TD


def prediction_head(x_TD: Array, embedded_TD: Array, w: Weights, config: ModelConfig, last: bool) -> list[Array]:
    """Hidden states of the exit and of each depth; depth k ends k tokens earlier, where the document does."""
    hidden = [rms_norm(x_TD, w["norm.weight"], config.norm_eps)]
    depths = config.mtp.depth if config.mtp.enabled else 0
    for k in range(1, depths + 1):
        mtp = below(w, f"mtp.{k - 1}.")
        h_TD, e_TD = hidden[-1][:-1], embedded_TD[k:]
        merged = np.concatenate(
            [
                rms_norm(e_TD, mtp["embedding_norm.weight"], config.norm_eps),
                rms_norm(h_TD, mtp["hidden_norm.weight"], config.norm_eps),
            ],
            axis=1,
        )
        if last and config.mtp.last == "block":
            hidden.append(transformer_block(merged @ mtp["merge.weight"].T, mtp, config))
        else:
            hidden.append(h_TD + silu(merged @ mtp["w1.weight"].T) @ mtp["w2.weight"].T)
    return hidden


def transformer_block(x_TD: Array, w: Weights, config: ModelConfig) -> Array:
    """A pre-norm block of attention and SwiGLU with a norm at its end."""
    eps = config.norm_eps
    normed_TD = rms_norm(x_TD, w["attention_norm.weight"], eps)
    x_TD = x_TD + attention(normed_TD, below(w, "attention."), config.gqa, eps)
    x_TD = x_TD + swiglu(rms_norm(x_TD, w["mlp_norm.weight"], eps), w["gate_up.weight"], w["down.weight"])
    return rms_norm(x_TD, w["norm.weight"], eps)


def swiglu(x_D: Array, gate_up_FD: Array, down_DF: Array) -> Array:
    """down(silu(gate x) * up x), with the gate's rows before those of up."""
    gate, up = np.split(x_D @ gate_up_FD.T, 2, axis=-1)
    return (silu(gate) * up) @ down_DF.T


def unit(x_K: Array) -> Array:
    return x_K / np.sqrt((x_K**2).sum(-1, keepdims=True) + 1e-6)


def sigmoid(x: Array) -> Array:
    return 1 / (1 + np.exp(-x))


def silu(x: Array) -> Array:
    return x * sigmoid(x)


def softmax(x_V: Array) -> Array:
    e_V = np.exp(x_V - x_V.max(-1, keepdims=True))
    return e_V / e_V.sum(-1, keepdims=True)


def log_softmax(x_V: Array) -> Array:
    shifted = x_V - x_V.max(-1, keepdims=True)
    return shifted - np.log(np.exp(shifted).sum(-1, keepdims=True))


def below(weights: Weights, prefix: str) -> Weights:
    """The weights whose names begin with `prefix`, without it."""
    return {name.removeprefix(prefix): w for name, w in weights.items() if name.startswith(prefix)}
