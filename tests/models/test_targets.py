"""Shifts over document boundaries and which terms a supervision asks for."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from superblock.config.model import ModelConfig, MTPConfig
from superblock.kernels.packing import PackInfo
from superblock.models.batch import IGNORE, Supervision
from superblock.models.targets import ahead, scored_terms, trained_terms


@settings(max_examples=60, deadline=None)
@given(st.lists(st.integers(1, 6), min_size=1, max_size=6), st.integers(0, 8))
def test_ahead_stays_in_its_document(lengths: list[int], places: int) -> None:
    doc_ids = torch.repeat_interleave(torch.tensor(lengths))
    T = len(doc_ids)
    tokens = torch.arange(100, 100 + T)[None]
    shifted = ahead(tokens, PackInfo.from_doc_ids(doc_ids[None]), places, -1)[0].tolist()
    for t in range(T):
        inside = t + places < T and doc_ids[t + places] == doc_ids[t]
        assert shifted[t] == (tokens[0, t + places] if inside else -1)


def test_ahead_keeps_ignored_labels() -> None:
    labels = torch.tensor([[5, IGNORE, 7]])
    assert ahead(labels, PackInfo.dense(1, 3), 1, IGNORE).tolist() == [[IGNORE, 7, IGNORE]]


def test_terms() -> None:
    config = ModelConfig(num_superblocks=3, mtp=MTPConfig(depth=2))
    assert trained_terms(config, None) == []
    names = [term.name for term in trained_terms(config, Supervision(begin=0, end=8, mtp_weight=0.3))]
    assert names == ["mtp/1", "mtp/2"]
    with_exit = trained_terms(config, Supervision(begin=0, end=8, exits=((1, 0.2),)))
    assert [(t.name, t.superblock, t.depth, t.weight) for t in with_exit] == [
        ("exit/2", 1, 0, 0.2), ("exit/2/mtp/1", 1, 1, 0.1), ("exit/2/mtp/2", 1, 2, 0.1),
    ]  # fmt: skip
    both = Supervision(begin=0, end=8, mtp_weight=0.3, exits=((0, 0.1), (1, 0.2)), exit_depths=False)
    assert [term.name for term in trained_terms(config, both)] == ["mtp/1", "mtp/2", "exit/1", "exit/2"]
    assert [term.name for term in scored_terms(config)] == ["exit/1", "exit/2", "mtp/1", "mtp/2"]
    off = ModelConfig(num_superblocks=2, mtp=MTPConfig(enabled=False))
    assert [term.name for term in scored_terms(off)] == ["exit/1"]


def test_the_last_superblock_has_no_early_exit() -> None:
    with pytest.raises(AssertionError, match="no early exit"):
        trained_terms(ModelConfig(), Supervision(begin=0, end=8, exits=((0, 0.1),)))
