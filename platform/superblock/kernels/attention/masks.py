"""Which keys a query may see. Legend: B sequences, T queries, S keys."""

import torch
from torch import Tensor

from superblock.kernels.packing import PackInfo


def visible(
    T: int, S: int, *, pack: PackInfo | None, window: int | None, query_start: int, device: torch.device
) -> Tensor | None:
    """Boolean mask [B or 1, 1, T, S], True where query i (absolute index query_start + i) sees key j; None: it sees all.

    A query sees keys j <= i of its own document, and of those only the last `window`, itself included.
    """
    if T == 1 and query_start + 1 == S and (window is None or window >= S):
        return None
    query_T1 = torch.arange(query_start, query_start + T, device=device)[:, None]
    key_S = torch.arange(S, device=device)
    mask_TS = key_S <= query_T1
    if window is not None:
        mask_TS &= key_S > query_T1 - window
    if pack is None or pack.whole_rows:
        return mask_TS[None, None]
    assert S == T, "packed documents need as many keys as queries"
    doc_BT = pack.doc_ids_BT
    return (mask_TS & (doc_BT[:, :, None] == doc_BT[:, None, :]))[:, None]
