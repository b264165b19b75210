"""Where documents begin and end in a batch.

Everything that depends on document boundaries (attention, convolution, recurrent state, multi-token shift, loss) takes
one `PackInfo`. Questions whose answer is a number of Python (how many documents, which lengths) are asked of `host`,
because reading them from a GPU would wait for all work queued there.
Legend: B sequences, T tokens per sequence, N documents in the batch.
"""

from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class PackInfo:
    """Document boundaries of a batch [B, T].

    A sequence may begin in the middle of a document; what lies before it is out of sight, so it counts as a document.
    """

    doc_ids_BT: Tensor
    """int32; equal within a document, different between neighbours of a row."""
    position_ids_BT: Tensor
    """int64; 0 at the first visible token of each document, or `start` for a continued sequence."""
    cu_seqlens: Tensor
    """int32 [N + 1]; cumulative lengths of the documents of the flattened batch."""
    max_len: int
    """Tokens of the longest document."""
    whole_rows: bool
    """Every row is one document, so that plain causal masks are right."""
    source: "PackInfo | None" = None
    """What this was copied from to another device."""

    @property
    def host(self) -> "PackInfo":
        """The same boundaries in the processor's memory, if they were ever there; else these."""
        return self if self.source is None else self.source

    @classmethod
    def from_doc_ids(cls, doc_ids_BT: Tensor) -> "PackInfo":
        """From ids that change at each document boundary of a row."""
        B, T = doc_ids_BT.shape
        first_BT = torch.ones_like(doc_ids_BT, dtype=torch.bool)
        first_BT[:, 1:] = doc_ids_BT[:, 1:] != doc_ids_BT[:, :-1]
        index_BT = torch.arange(T, device=doc_ids_BT.device).expand(B, T)
        start_BT = torch.where(first_BT, index_BT, 0).cummax(dim=1).values
        starts = first_BT.flatten().nonzero().flatten()
        cu = torch.cat([starts, starts.new_tensor([B * T])]).to(torch.int32)
        longest = int((cu[1:] - cu[:-1]).max())
        return cls(doc_ids_BT.to(torch.int32), index_BT - start_BT, cu, longest, len(starts) == B)

    @classmethod
    def dense(cls, B: int, T: int, *, start: int = 0, device: torch.device | str = "cpu") -> "PackInfo":
        """One document per row, continuing at position `start`."""
        positions_BT = torch.arange(start, start + T, device=device).expand(B, T)
        cu = torch.arange(0, (B + 1) * T, T, dtype=torch.int32, device=device)
        return cls(torch.zeros(B, T, dtype=torch.int32, device=device), positions_BT, cu, T, True)

    def slice(self, begin: int, end: int) -> "PackInfo":
        """The boundaries of columns `begin` to `end`; documents cut on the left restart at position 0."""
        if self.whole_rows and begin == 0:
            return PackInfo.dense(len(self.doc_ids_BT), end, device=self.doc_ids_BT.device)
        return PackInfo.from_doc_ids(self.host.doc_ids_BT[:, begin:end]).to(self.doc_ids_BT.device)

    def chunk(self, parts: int) -> "list[PackInfo]":
        """The boundaries of equal parts of the rows."""
        device = self.doc_ids_BT.device
        return [PackInfo.from_doc_ids(rows).to(device) for rows in self.host.doc_ids_BT.chunk(parts)]

    def to(self, device: torch.device | str) -> "PackInfo":
        """The same boundaries on another device."""
        if self.doc_ids_BT.device == torch.device(device):
            return self
        doc_ids_BT, position_ids_BT = move(self.doc_ids_BT, device), move(self.position_ids_BT, device)
        source = self if self.doc_ids_BT.device.type == "cpu" else self.source
        return PackInfo(
            doc_ids_BT, position_ids_BT, move(self.cu_seqlens, device), self.max_len, self.whole_rows, source
        )


def move(t: Tensor, device: torch.device | str) -> Tensor:
    """A copy on a device that is queued there without waiting, which a GPU does from pinned memory only."""
    pinned = t.pin_memory() if torch.device(device).type == "cuda" and t.device.type == "cpu" else t
    return pinned.to(device, non_blocking=True)
