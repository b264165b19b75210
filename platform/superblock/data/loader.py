"""Packed batches whose order is a pure function of (seed, step), for any number of processes.

Window i of a token stream is tokens [i T, i T + T]: T inputs and, shifted by one, T labels. Each epoch visits every
window once in an order of its own. Legend: B sequences of a batch, T tokens of a sequence.
"""

from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch.utils.data import DataLoader, Dataset

from superblock.data.documents import DataError
from superblock.data.token_file import TokenFile
from superblock.kernels.packing import PackInfo
from superblock.models.batch import IGNORE, Batch

Index = NDArray[np.int64]


def shuffled(position: Index, size: int, key: int) -> Index:
    """Where a random permutation of `range(size)` sends each position, without a table.

    A Feistel network of 6 rounds on the next even power of two, walked until it falls below `size` (Black and Rogaway
    2002, cycle walking): no memory, no start-up, and the same on every machine and version.
    """
    half = max(1, ((size - 1).bit_length() + 1) // 2)
    mask = np.uint64((1 << half) - 1)
    value = position.astype(np.uint64)
    outside = np.ones(len(value), bool)
    while outside.any():
        left, right = value[outside] >> np.uint64(half), value[outside] & mask
        for number in range(6):
            left, right = right, left ^ (_mix(right, key, number) & mask)
        value[outside] = left << np.uint64(half) | right
        outside = value >= size
    return value.astype(np.int64)


def _mix(value: NDArray[np.uint64], key: int, number: int) -> NDArray[np.uint64]:
    """A hash of (value, key, round): the finaliser of SplitMix64 (Steele et al. 2014)."""
    z = value + np.uint64((key * 0x9E3779B97F4A7C15 + number * 0xD1B54A32D192ED03) % 2**64)
    z = (z ^ (z >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    z = (z ^ (z >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return z ^ (z >> np.uint64(31))


def windows_of_step(step: int, *, batch_size: int, num_windows: int, seed: int, skipped: int = 0) -> Index:
    """[B] the windows of one global batch; the only place that decides the order of training.

    Args:
        skipped: windows of that order which the ancestors of a grown model have read.
    """
    position = np.arange(step * batch_size, (step + 1) * batch_size, dtype=np.int64) + skipped
    epoch, place = position // num_windows, position % num_windows
    windows = np.empty_like(position)
    for number in np.unique(epoch).tolist():
        here = epoch == number
        windows[here] = shuffled(place[here], num_windows, seed * 0x1000003 + number)
    return windows


class Steps(Dataset[Batch]):
    """One batch per item, so that nothing has to be collated."""

    def __init__(self, length: int, make: Callable[[int], Batch]) -> None:
        self.length, self.make = length, make

    def __len__(self) -> int:
        return self.length

    def __getitem__(self, index: int) -> Batch:
        if not 0 <= index < self.length:
            raise IndexError(index)
        return self.make(index)


class TrainingBatch:
    """Makes the batch of a step for one rank; a class, so that worker processes can take it along."""

    def __init__(
        self, tokens: TokenFile, T: int, B: int, seed: int, first_step: int, skipped: int, rank: int, world_size: int
    ) -> None:
        self.tokens, self.T, self.B, self.seed = tokens, T, B, seed
        self.first_step, self.skipped = first_step, skipped
        self.num_windows = (len(tokens) - 1) // T
        self.mine = slice(rank * B // world_size, (rank + 1) * B // world_size)

    def __call__(self, index: int) -> Batch:
        step, size = self.first_step + index, self.num_windows
        windows = windows_of_step(step, batch_size=self.B, num_windows=size, seed=self.seed, skipped=self.skipped)
        index_BT = windows[self.mine, None] * self.T + np.arange(self.T + 1)
        tokens_BT = torch.from_numpy(self.tokens.tokens[index_BT].astype(np.int64))
        return packed(tokens_BT[:, :-1].contiguous(), tokens_BT[:, 1:].contiguous(), self.tokens.end_of_text)


class EvaluationBatch:
    """Makes the padded batch of an evaluation step for one rank."""

    def __init__(self, tokens: TokenFile, T: int, B: int, limit: int | None, rank: int, world_size: int) -> None:
        self.tokens, self.T, self.B, self.rank, self.world_size = tokens, T, B, rank, world_size
        total = -(-(len(tokens) - 1) // T)
        count = total if limit is None else min(limit, total)
        self.windows = np.arange(count, dtype=np.int64) * total // count  # a limited part is spread over the split

    def __call__(self, index: int) -> Batch:
        begin = (index * self.world_size + self.rank) * self.B
        windows = self.windows[begin : begin + self.B]
        index_BT = np.full((self.B, self.T + 1), len(self.tokens), np.int64)
        index_BT[: len(windows)] = windows[:, None] * self.T + np.arange(self.T + 1)
        there_BT = torch.from_numpy(index_BT < len(self.tokens))
        read = self.tokens.tokens[np.minimum(index_BT, len(self.tokens) - 1)].astype(np.int64)
        tokens_BT = torch.from_numpy(read).where(there_BT, self.tokens.end_of_text)
        labels_BT = tokens_BT[:, 1:].where(there_BT[:, 1:], IGNORE)
        return packed(tokens_BT[:, :-1].contiguous(), labels_BT.contiguous(), self.tokens.end_of_text)


def packed(input_ids_BT: torch.Tensor, labels_BT: torch.Tensor, end_of_text: int) -> Batch:
    """A batch in which a document begins at each end-of-text token."""
    doc_ids_BT = (input_ids_BT == end_of_text).cumsum(dim=1, dtype=torch.int32)
    return Batch(input_ids_BT, labels_BT, PackInfo.from_doc_ids(doc_ids_BT))


def training_loader(
    tokens: TokenFile,
    *,
    sequence_length: int,
    batch_size: int,
    seed: int,
    first_step: int,
    num_steps: int,
    skipped: int = 0,
    rank: int = 0,
    world_size: int = 1,
    workers: int = 0,
) -> DataLoader[Batch]:
    """The batches of steps `first_step` to `first_step + num_steps`; `len` is `num_steps`.

    Args:
        batch_size: sequences of the global batch; a rank takes its contiguous share.
        skipped: sequences before step 0, which the ancestors of a grown model have read.
        workers: processes that prepare batches ahead; they change no batch.

    Raises:
        DataError: if the split has fewer tokens than one batch, or the batch does not divide among the processes.
    """
    if batch_size % world_size:
        raise DataError(f"trainer.batch_size={batch_size}: must be a multiple of the {world_size} processes")
    needed = batch_size * sequence_length + 1
    if len(tokens) < needed:
        raise DataError(
            f"trainer.batch_size={batch_size}: a batch of {batch_size} x {sequence_length} takes {needed:,} tokens and the "
            f"{tokens.name} split has {len(tokens):,}; lower trainer.batch_size or data.sequence_length, or give more text"
        )
    make = TrainingBatch(tokens, sequence_length, batch_size, seed, first_step, skipped, rank, world_size)
    return _loader(Steps(num_steps, make), workers)


def evaluation_loader(
    tokens: TokenFile,
    *,
    sequence_length: int,
    batch_size: int,
    limit: int | None = None,
    rank: int = 0,
    world_size: int = 1,
    workers: int = 0,
) -> DataLoader[Batch]:
    """Every token of the split after the first as a label exactly once, over all ranks; the same number of steps on each.

    Args:
        batch_size: sequences of one rank's batch; fewer if the split is small.
        limit: sequences to take, spread evenly over the split; None takes all.

    Raises:
        DataError: if the split has fewer than two tokens.
    """
    if len(tokens) < 2:
        raise DataError(f"data.source: the {tokens.name} split has {len(tokens)} tokens; give more text")
    count = len(EvaluationBatch(tokens, sequence_length, 1, limit, 0, 1).windows)
    rows = min(batch_size, -(-count // world_size))
    make = EvaluationBatch(tokens, sequence_length, rows, limit, rank, world_size)
    return _loader(Steps(-(-count // (rows * world_size)), make), workers)


def _loader(steps: Steps, workers: int) -> DataLoader[Batch]:
    return DataLoader(
        steps, batch_size=None, num_workers=workers, collate_fn=_as_it_is, prefetch_factor=4 if workers else None
    )


def _as_it_is(batch: Any) -> Any:
    return batch
