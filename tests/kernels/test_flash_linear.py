"""How the gated delta rule is handed to flash-linear-attention, with a stand-in of its signature that runs the recurrence."""

from itertools import pairwise

import pytest
import torch
from torch import Tensor

from superblock.kernels.delta_rule import flash_linear
from superblock.kernels.delta_rule.reference import recurrent
from superblock.kernels.packing import PackInfo


def stand_in(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    g: Tensor,
    beta: Tensor,
    *,
    initial_state: Tensor | None,
    output_final_state: bool,
    use_qk_l2norm_in_kernel: bool,
    cu_seqlens: Tensor | None = None,
    chunk_indices: Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    """As documented there: with `cu_seqlens` one row of N documents and a state for each, outputs in the dtype of `q`."""
    assert output_final_state and use_qk_l2norm_in_kernel
    assert q.shape[2] == v.shape[2]
    inputs = (q, k, v, g, beta)
    if cu_seqlens is None:
        o, state = recurrent(*inputs, initial_state=initial_state)
        return o.to(q.dtype), state
    assert len(q) == 1 and cu_seqlens.dtype == torch.int64
    assert initial_state is None or len(initial_state) == len(cu_seqlens) - 1
    parts, chunks = [], []
    for n, (begin, end) in enumerate(pairwise(cu_seqlens.tolist())):
        chunks += [[n, i] for i in range(-(-(end - begin) // flash_linear.CHUNK))]
        first = None if initial_state is None else initial_state[n : n + 1]
        parts.append(recurrent(*(x[:, begin:end] for x in inputs), initial_state=first))
    assert chunk_indices is not None and chunk_indices.dtype == torch.int64
    assert chunk_indices.tolist() == chunks  # else the library counts them, and waits for the device
    return torch.cat([o for o, _ in parts], dim=1).to(q.dtype), torch.cat([state for _, state in parts])


@pytest.mark.parametrize("packed", [False, True])
@pytest.mark.parametrize("continued", [False, True])
def test_equals_the_recurrence(packed: bool, continued: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(flash_linear, "_kernel", lambda: stand_in)
    generator = torch.Generator().manual_seed(0)
    shapes = ((2, 130, 2, 8), (2, 130, 2, 8), (2, 130, 4, 16), (2, 130, 4), (2, 130, 4), (2, 4, 8, 16))
    q, k, v, g, beta, state = (torch.randn(s, generator=generator) for s in shapes)
    inputs = (q, k, v, -g.abs(), beta.sigmoid())
    pack = None
    if packed:  # boundaries of their own in each row; documents must not run over its end
        ids = torch.tensor([[0] * 7 + [1] * 123, [5] * 64 + [6] * 1 + [7] * 65])
        pack = PackInfo.from_doc_ids(ids)
    first = state if continued else None
    for ours, want in zip(
        flash_linear.triton_rule(*inputs, pack=pack, initial_state=first),
        recurrent(*inputs, pack=pack, initial_state=first),
        strict=True,
    ):
        torch.testing.assert_close(ours, want)


def test_says_why_it_cannot_run() -> None:
    assert flash_linear.why_not(torch.zeros(1, 1, 1, 16)) == "it has no kernels for cpu"
