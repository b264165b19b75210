"""The models that are compared: our superblock with two mixers and two mixtures of experts each, and little else.

All arms have the same width, two heads, the same experts, and mixers whose projections have the same size: where keys of
Gated DeltaNet are narrower than a head of attention, its values are as much wider. So the numbers of parameters are nearly
equal: Gated DeltaNet adds its convolution and gates (and wider outputs where keys are narrow), 1.5 to 6 %.
Experts are few and half of them run for a token; multi-token heads are off. Weights are fp32, and so is all arithmetic.
"""

from superblock.benchmarks.probes.task import ATTENTION, DELTANET, HYBRID, HYBRID_POSITIVE, POSITIVE, WIDTH, Task
from superblock.config.model import AttentionConfig, DeltaNetConfig, ModelConfig, MoEConfig, MTPConfig

PATTERNS = {
    ATTENTION: ["gqa", "gqa"],
    DELTANET: ["gdn", "gdn"],
    POSITIVE: ["gdn", "gdn"],
    HYBRID: ["gdn", "gqa"],
    HYBRID_POSITIVE: ["gdn", "gqa"],
}
WITHOUT_NEGATIVE = (POSITIVE, HYBRID_POSITIVE)
"""Arms whose write strength lies in (0, 1)."""
HEADS, HEAD = 2, 32
BALANCE_RATE, BALANCE_LOSS = 1e-3, 1e-4
ROW = 64
"""A vocabulary is a multiple of it."""


def model_config(task: Task, arm: str) -> ModelConfig:
    """The model of an arm for a task."""
    longest = max(level.tokens for level in task.levels)
    return ModelConfig(
        d_model=WIDTH,
        vocab_size=-(-task.vocabulary // ROW) * ROW,
        num_superblocks=1,
        max_sequence_length=longest,
        pattern=PATTERNS[arm],
        init_std=task.init_std,
        tie_embeddings=task.tied,
        gdn=DeltaNetConfig(
            num_key_heads=HEADS, num_value_heads=HEADS, key_dim=task.key_dim, value_dim=2 * HEAD - task.key_dim,
            negative_eigenvalues=arm not in WITHOUT_NEGATIVE,
        ),
        gqa=AttentionConfig(num_heads=HEADS, num_kv_heads=HEADS, head_dim=HEAD, rope_fraction=task.rope_fraction, rope_theta=task.rope_theta),
        moe=MoEConfig(
            num_experts=4, top_k=2, d_expert=32, d_shared=32,
            balance_rate=BALANCE_RATE if task.balanced else 0.0, aux_loss=BALANCE_LOSS if task.balanced else 0.0,
        ),
        mtp=MTPConfig(enabled=False),
    )  # fmt: skip
