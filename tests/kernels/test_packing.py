"""Document boundaries."""

import torch

from superblock.kernels.packing import PackInfo


def test_boundaries_of_documents() -> None:
    pack = PackInfo.from_doc_ids(torch.tensor([[5, 5, 5, 6], [6, 2, 2, 2]]))
    assert pack.position_ids_BT.tolist() == [[0, 1, 2, 0], [0, 0, 1, 2]]
    assert pack.cu_seqlens.tolist() == [0, 3, 4, 5, 8]  # a row's end is a boundary even where ids continue
    assert pack.max_len == 3
    assert not pack.whole_rows


def test_whole_rows_continue_at_a_position() -> None:
    pack = PackInfo.dense(2, 3, start=7)
    assert pack.position_ids_BT.tolist() == [[7, 8, 9]] * 2
    assert pack.cu_seqlens.tolist() == [0, 3, 6]
    assert pack.whole_rows
    assert pack.max_len == 3


def test_slices_restart_at_zero() -> None:
    pack = PackInfo.from_doc_ids(torch.tensor([[0, 0, 0, 1, 1]]))
    assert pack.slice(1, 4).position_ids_BT.tolist() == [[0, 1, 0]]
    dense = PackInfo.dense(2, 6)
    assert dense.slice(0, 4).whole_rows
    assert dense.slice(2, 4).position_ids_BT.tolist() == [[0, 1], [0, 1]]
