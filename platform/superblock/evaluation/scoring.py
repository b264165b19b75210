"""A split read and scored in order, as the test of a run reads it; whoever adds up the scores does the rest."""

from collections.abc import Iterator
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from superblock.config.run import RunConfig
from superblock.data.loader import evaluation_loader
from superblock.data.token_file import TokenFile
from superblock.models.batch import Batch, TokenScores

SPLITS = {"validation": "val", "test": "test"}
"""What users call a split, and what the corpus does."""
HALF = {"bf16": torch.bfloat16, "fp16": torch.float16}


@dataclass(frozen=True)
class Scored:
    """Consecutive sequences of a split and how well their tokens were predicted."""

    batch: Batch
    scores: TokenScores
    first_sequence: int


def scored(
    model: nn.Module, device: torch.device, part: TokenFile, config: RunConfig, *, sequence_length: int | None = None
) -> Iterator[Scored]:
    """Every token of a split, with the sequences, batches and precision of the run's own test.

    Args:
        model: in evaluation mode, on `device`.
        config: the run's.
        sequence_length: of other sequences, with as many tokens per batch; None is the run's.
    """
    T, rows = config.data.sequence_length, config.evaluation.batch_size
    if sequence_length is not None:
        T, rows = sequence_length, max(1, rows * T // sequence_length)
    first = 0
    for batch in evaluation_loader(part, sequence_length=T, batch_size=rows):
        b = batch.to(device)
        with torch.no_grad(), precision(config.trainer.precision, device):
            scores = model(b.input_ids_BT, b.pack, b.labels_BT, score=True).scores["next_token"]
        yield Scored(b, scores, first)
        first += len(b.input_ids_BT)


def precision(name: str, device: torch.device) -> AbstractContextManager[Any]:
    """The autocast of `trainer.precision`."""
    return torch.autocast(device.type, HALF[name]) if name in HALF else nullcontext()
