"""What the prediction heads learn in each step: a pure function of the step, so that a resumed run repeats it.

At small width a head on every token would double the cost of a step, because the unembedding dominates. Three choices
keep it small: heads are trained on a random contiguous slice of each sequence (`mtp.token_fraction`), only one
superblock's exit has its turn in a step (the rotation of LayerSkip, arXiv 2404.16710), and the multi-token loss begins
after `mtp.start` of the training, because small models learn the next token first (arXiv 2505.22757). Exits predict
the next token, so they may begin at another time (`mtp.exit_start`), and more of them may learn (`mtp.exits`).
"""

import random
from itertools import pairwise

from superblock.config.model import ModelConfig
from superblock.models.batch import Supervision

LAST_PHASE = 2 / 3
"""Share of training after which `mtp.final_weight` replaces `mtp.weight` (DeepSeek-V3 lowers it late, too)."""


def supervision_at(
    config: ModelConfig, step: int, total_steps: int, *, sequence_length: int, seed: int
) -> Supervision | None:
    """The heads' share of one step, or `None` where they have none.

    Args:
        config: the model; `config.mtp` holds weights, starts and token fraction.
        step: optimizer steps done before this one.
        total_steps: steps of the whole run.
        sequence_length: tokens per sequence.
        seed: the run's seed; the slice is the same on every process.
    """
    mtp = config.mtp
    progress = step / total_steps
    depths = mtp.enabled and progress >= mtp.start
    turns = config.exit_turns() if progress >= mtp.exits_begin else []
    if not depths and not turns:
        return None
    length = min(sequence_length, max(mtp.depth + 2, round(mtp.token_fraction * sequence_length)))
    begin = random.Random(f"heads {seed} {step}").randint(0, sequence_length - length)
    weight = mtp.weight if progress < LAST_PHASE else mtp.final_weight
    turn = turns[step % len(turns)] if turns else ()
    return Supervision(
        begin=begin,
        end=begin + length,
        mtp_weight=weight if depths else 0.0,
        exits=tuple((s, mtp.exit_weight * config.exit_share(s)) for s in turn),
        exit_depths=depths and mtp.exit_mtp,
    )


def phases(config: ModelConfig) -> list[tuple[float, float]]:
    """The stretches of a training, as (begin, end) in 0 to 1, within which every step costs the same."""
    starts = {0.0, 1.0}
    if config.mtp.enabled:
        starts.add(config.mtp.start)
    if config.exit_turns():
        starts.add(config.mtp.exits_begin)
    return list(pairwise(sorted(starts)))
