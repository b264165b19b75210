"""What the prediction heads learn in each step: a pure function of the step, so that a resumed run repeats it.

At small width a head on every token would double the cost of a step, because the unembedding dominates. Three choices
keep it small: heads are trained on a random contiguous slice of each sequence (`mtp.token_fraction`), only one
superblock's exit has its turn in a step (the rotation of LayerSkip, arXiv 2404.16710), and the multi-token loss begins
after `mtp.start` of the training, because small models learn the next token first (arXiv 2505.22757).
"""

import random

from superblock.config.model import ModelConfig
from superblock.models.batch import Supervision

LAST_PHASE = 2 / 3
"""Share of training after which `mtp.final_weight` replaces `mtp.weight` (DeepSeek-V3 lowers it late, too)."""


def supervision_at(
    config: ModelConfig, step: int, total_steps: int, *, sequence_length: int, seed: int
) -> Supervision | None:
    """The heads' share of one step, or `None` where they have none.

    Args:
        config: the model; `config.mtp` holds weights, start and token fraction.
        step: optimizer steps done before this one.
        total_steps: steps of the whole run.
        sequence_length: tokens per sequence.
        seed: the run's seed; the slice is the same on every process.
    """
    mtp = config.mtp
    progress = step / total_steps
    if not mtp.enabled or progress < mtp.start:
        return None
    length = min(sequence_length, max(mtp.depth + 2, round(mtp.token_fraction * sequence_length)))
    begin = random.Random(f"heads {seed} {step}").randint(0, sequence_length - length)
    exits = config.num_superblocks - 1
    exit_superblock = step % exits if exits else None
    return Supervision(
        begin=begin,
        end=begin + length,
        mtp_weight=mtp.weight if progress < LAST_PHASE else mtp.final_weight,
        exit_superblock=exit_superblock,
        exit_weight=0.0 if exit_superblock is None else mtp.exit_weight * (exit_superblock + 1) / exits,
    )
