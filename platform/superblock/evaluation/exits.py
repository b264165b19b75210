"""What every exit of a model is worth: how well it predicts, block by block of a text, and how fast it is read up to it.

Exits are named by the superblocks they use, from 1; the last number is the model itself. Legend: N blocks of text, E
exits, B sequences, T tokens.
"""

import time
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from superblock.evaluation.metrics import LossTotals
from superblock.evaluation.statistics import Interval, bootstrap_interval
from superblock.models.batch import Batch
from superblock.models.language_model import SuperblockModel
from superblock.models.truncation import refuse_exit, truncate

SECONDS = 1.0
"""After which no further round of a speed measurement begins."""
ROUNDS = 5


@dataclass(frozen=True)
class ExitScores:
    """Sums over the blocks of a text, from which means, differences and intervals follow. A block is one sequence."""

    exits: tuple[int, ...]
    """E numbers of superblocks."""
    nll_NE: NDArray[np.float64]
    """Nats, summed over the scored tokens of each block."""
    tokens_N: NDArray[np.int64]
    """Scored tokens of each block."""

    def nll_at(self, superblocks: int) -> NDArray[np.float64]:
        """[N] nats of one exit."""
        return self.nll_NE[:, self.exits.index(superblocks)]

    def totals(self, superblocks: int) -> LossTotals:
        """Sums over the whole text, which know perplexity and bits per byte."""
        return LossTotals(float(self.nll_at(superblocks).sum()), int(self.tokens_N.sum()))

    def excess(self, superblocks: int, other: "ExitScores", other_superblocks: int) -> Interval:
        """How much more an exit needs than another model for the same text, as a share: 0.01 is one per cent more.

        The interval is the bootstrap's over blocks, which both are scored on.

        Args:
            other: of the same text in the same sequences.

        Raises:
            ValueError: if it is of another text.
        """
        if not np.array_equal(self.tokens_N, other.tokens_N):
            raise ValueError(f"{len(self.tokens_N)} and {len(other.tokens_N)} blocks: both must be of the same text")
        blocks = np.stack([self.nll_at(superblocks), other.nll_at(other_superblocks)], axis=1)
        return bootstrap_interval(blocks, lambda means: means[:, 0] / means[:, 1] - 1)


def known_exits(model: nn.Module) -> tuple[int, ...]:
    """The exits that learnt, and the model's own end; of a family without exits, its end alone."""
    config: Any = model.config
    early = config.trained_exits() if isinstance(model, SuperblockModel) else []
    return (*early, config.num_superblocks)


@torch.no_grad()
def score_exits(model: nn.Module, batches: Iterable[Batch], exits: Sequence[int] | None = None) -> ExitScores:
    """Scores a text at several exits in one pass.

    Args:
        model: its mode is restored. For scores in bf16, call this under autocast.
        batches: of an evaluation loader; a sequence without scored tokens is left out.
        exits: numbers of superblocks; None takes `known_exits`.

    Raises:
        ConfigError: for an exit that the model does not have, or that never learnt.
    """
    chosen = tuple(known_exits(model) if exits is None else exits)
    S = known_exits(model)[-1]
    for s in chosen:
        refuse_exit(model.config, s)  # type: ignore[arg-type]
    device, training = next(model.parameters()).device, model.training
    sums, counts = [], []
    model.eval()
    try:
        for batch in batches:
            b = batch if device.type == "cpu" else batch.to(device)
            scores = model(b.input_ids_BT, b.pack, b.labels_BT, score=True).scores
            nll = [scores["next_token" if s == S else f"exit/{s}"].nll_BT.double().sum(dim=1) for s in chosen]
            sums.append(torch.stack(nll, dim=1).cpu())
            counts.append((scores["next_token"].rank_BT >= 0).sum(dim=1).cpu())
    finally:
        model.train(training)
    tokens_N = torch.cat(counts)
    return ExitScores(chosen, torch.cat(sums)[tokens_N > 0].numpy(), tokens_N[tokens_N > 0].numpy())


@torch.no_grad()
def exit_speeds(model: nn.Module, batch: Batch, exits: Sequence[int]) -> dict[int, float]:
    """Tokens per second that a text is read and scored at, up to each exit: the fastest of up to `ROUNDS` rounds.

    The depths take turns, so that what else the machine does falls on all of them.

    Args:
        model: its mode is restored; it must lie in one piece on one device.
        batch: on that device.
        exits: numbers of superblocks that `truncate` accepts.
    """
    training = model.training
    parts = {s: truncate(model, s) for s in exits}
    fastest = dict.fromkeys(exits, float("inf"))
    model.eval()
    try:
        for part in parts.values():
            part.eval()
        _seconds(parts[max(exits)], batch)  # kernels choose their forms in the first call
        began = time.perf_counter()
        for _ in range(ROUNDS):
            for s, part in parts.items():
                fastest[s] = min(fastest[s], _seconds(part, batch))
            if time.perf_counter() - began > SECONDS:
                break
    finally:
        model.train(training)
    return {s: batch.input_ids_BT.numel() / seconds for s, seconds in fastest.items()}


def _seconds(model: nn.Module, batch: Batch) -> float:
    """Of one forward pass to the loss, whose logits exist chunk by chunk, unlike those of a whole batch."""
    start = time.perf_counter()
    loss: Tensor = model(batch.input_ids_BT, batch.pack, batch.labels_BT).losses["next_token"].total
    loss.item()  # waits for a GPU
    return time.perf_counter() - start
