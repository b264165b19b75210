"""The models that are compared: our superblock with two mixers and two mixtures of experts each, and little else.

All arms have the same width, two heads of the same width, so that the projections of a mixer have the same size, and the
same experts. So the numbers of parameters are nearly equal: Gated DeltaNet adds its convolution and gates, 1.5 %. In MQAR alone
its heads are half as wide, so that its state is outgrown: DeltaNet then has 16 % fewer parameters than attention.
Experts are few and half of them run for a token; multi-token heads are off. Weights are fp32, and so is all arithmetic.
Experts are not balanced: with two tokens in the vocabulary nothing could be, and a selection that is moved in every step goes on
changing what a token computes (parity, seed 2: 0.80 with balancing; without, all trained lengths are right after 200 steps).
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
HEADS = 2
ROW = 64
"""A vocabulary is a multiple of it."""


def model_config(task: Task, arm: str) -> ModelConfig:
    """The model of an arm for a task."""
    K, state = task.head_dim, task.state_dim or task.head_dim
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
            num_key_heads=HEADS, num_value_heads=HEADS, key_dim=state, value_dim=state,
            negative_eigenvalues=arm not in WITHOUT_NEGATIVE,
        ),
        gqa=AttentionConfig(
            num_heads=HEADS, num_kv_heads=HEADS, head_dim=K, rope_fraction=task.rope_fraction, rope_theta=task.rope_theta
        ),
        moe=MoEConfig(num_experts=4, top_k=2, d_expert=32, d_shared=32, balance_rate=0.0, aux_loss=0.0),
        mtp=MTPConfig(enabled=False),
    )  # fmt: skip
