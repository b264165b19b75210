"""A text's scores in slices: by how much of a document the model could see, and by where the document comes from.

Only sums are kept, per piece of a document and stretch of context, so that totals are exact, any number of processes
adds up to the same, and intervals can draw pieces anew. Legend: B sequences, T tokens, U pieces, P stretches, K sums,
V vocabulary.
"""

from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torchmetrics import Metric

from superblock.data.token_file import TokenFile
from superblock.models.batch import Batch, TokenScores

SUMS = ("nll", "tokens", "bytes", "top1", "top5")
"""What is added up: nats, scored tokens, bytes of text they stand for, targets among the 1 and 5 most likely tokens."""
FIRST_STRETCH = 4
PIECES = 4096
"""About as many pieces a text is cut into at most, beside the borders of its documents."""


@dataclass(frozen=True)
class Layout:
    """How a split is cut."""

    begins_U: NDArray[np.int64]
    """First token of each piece: every document begins one, and long ones are cut."""
    group_U: NDArray[np.int32]
    """Group of each piece's document, see `TokenFile.groups`."""
    ends_P: NDArray[np.int64]
    """Longest context of each stretch, rising: 4, 8, 16 and so on up to the length of a sequence."""

    @classmethod
    def of(cls, part: TokenFile, sequence_length: int, trained_length: int | None = None) -> "Layout":
        """That of a split read in sequences of `sequence_length` tokens; one stretch ends at `trained_length`."""
        sequences = -(-len(part) // sequence_length)
        length = sequence_length * -(-sequences // PIECES)
        begins_U = np.union1d(part.doc_starts, np.arange(0, len(part), length))
        document_U = np.searchsorted(part.doc_starts, begins_U, side="right") - 1
        trained = trained_length or sequence_length
        ends_P = np.union1d(stretches(trained), stretches(max(sequence_length, trained), trained)).astype(np.int64)
        return cls(begins_U.astype(np.int64), np.asarray(part.groups)[document_U], ends_P)


def stretches(sequence_length: int, first: int = FIRST_STRETCH) -> NDArray[np.int64]:
    """[P] ends of stretches that double from `first` on, the last at `sequence_length`."""
    ends = [first]
    while ends[-1] < sequence_length:
        ends.append(2 * ends[-1])
    return np.array([*ends[:-1], sequence_length], np.int64)


def stretch_names(ends_P: NDArray[np.int64]) -> list[str]:
    """`1-4`, `5-8`, `9-16` and so on."""
    ends = ends_P.tolist()
    return [f"{begin + 1}-{end}" for begin, end in zip([0, *ends[:-1]], ends, strict=True)]


class SlicedScores(Metric):
    """Sums [U, P, K] over a split that is read in order, see `SUMS`.

    A token's context is what the model sees of its document in this sequence: 1 is the mark that begins the document, or
    the first token of a sequence that begins within one.
    """

    full_state_update = False
    sums: Tensor
    begins: Tensor
    ends: Tensor
    token_bytes: Tensor

    def __init__(self, layout: Layout, token_bytes_V: NDArray[np.int64], **kwargs: Any) -> None:
        super().__init__(**kwargs)
        U, P = len(layout.begins_U), len(layout.ends_P)
        self.layout = layout
        self.add_state("sums", torch.zeros(U, P, len(SUMS), dtype=torch.float64), dist_reduce_fx="sum")
        for name, table in (("begins", layout.begins_U), ("ends", layout.ends_P), ("token_bytes", token_bytes_V)):
            self.register_buffer(name, torch.from_numpy(np.array(table)), persistent=False)

    def update(self, scores: TokenScores, batch: Batch, first_sequence: int) -> None:
        """Adds a batch of consecutive sequences.

        Args:
            scores: of the next token; rank -1 is not scored.
            batch: what was scored.
            first_sequence: number of its first sequence in the split.
        """
        B, T = scores.rank_BT.shape
        sequence_B1 = first_sequence + torch.arange(B, device=self.sums.device)[:, None]
        target_BT = sequence_B1 * T + torch.arange(1, T + 1, device=self.sums.device)
        scored_BT = scores.rank_BT >= 0
        target_N, rank_N = target_BT[scored_BT], scores.rank_BT[scored_BT]
        piece_N = torch.searchsorted(self.begins, target_N, right=True) - 1
        stretch_N = torch.searchsorted(self.ends, batch.pack.position_ids_BT[scored_BT] + 1)
        columns = (
            scores.nll_BT[scored_BT].double(),
            torch.ones_like(rank_N),
            self.token_bytes[batch.labels_BT[scored_BT]],
            rank_N < 1,
            rank_N < 5,
        )
        values_NK = torch.stack([column.double() for column in columns], dim=1)
        place_N = piece_N * self.sums.shape[1] + stretch_N
        self.sums.view(-1, len(SUMS)).index_add_(0, place_N, values_NK)

    def compute(self) -> NDArray[np.float64]:
        """[U, P, K] of every process."""
        found: NDArray[np.float64] = self.sums.cpu().numpy()
        return found
