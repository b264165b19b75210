"""The order of training: a permutation per epoch, a pure function of (seed, step), for any number of processes."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from superblock.data.corpus import Corpus
from superblock.data.documents import DataError
from superblock.data.loader import evaluation_loader, shuffled, training_loader, windows_of_step
from superblock.data.token_file import TokenFile
from superblock.models.batch import IGNORE, Batch

T = 16
GOLDEN = [802, 603, 825, 631, 433, 163, 635, 197]


class Memory(TokenFile):
    """Tokens in memory instead of a file: 0 is the end of text, the rest counts up."""

    def __init__(self, length: int, document: int = 11) -> None:
        super().__init__(Path(), "train")
        stream = np.arange(length) + 1
        stream[::document] = 0
        self.__dict__.update(tokens=stream, _meta={"num_tokens": length, "end_of_text": 0})


def train(tokens: TokenFile, **settings: Any) -> list[Batch]:
    chosen = {"sequence_length": T, "batch_size": 4, "seed": 1, "first_step": 0, "num_steps": 20} | settings
    loader = training_loader(tokens, **chosen)
    batches = list(loader)
    assert len(loader) == len(batches) == chosen["num_steps"]
    return batches


def equal(a: Batch, b: Batch) -> bool:
    return (
        torch.equal(a.input_ids_BT, b.input_ids_BT)
        and torch.equal(a.labels_BT, b.labels_BT)
        and torch.equal(a.pack.cu_seqlens, b.pack.cu_seqlens)
        and torch.equal(a.pack.position_ids_BT, b.pack.position_ids_BT)
    )


class TestOrder:
    @given(st.integers(1, 3000), st.integers(0, 2**62))
    @settings(max_examples=60, deadline=None)
    def test_is_a_permutation(self, size: int, key: int) -> None:
        order = shuffled(np.arange(size), size, key)
        assert np.array_equal(np.sort(order), np.arange(size))

    def test_looks_random(self) -> None:
        size = 4096
        order = shuffled(np.arange(size), size, 7)
        assert abs(np.corrcoef(np.arange(size), order)[0, 1]) < 0.05
        assert abs(np.corrcoef(order[:-1], order[1:])[0, 1]) < 0.05
        assert (shuffled(np.arange(size), size, 8) == order).sum() < 12
        halves = [np.mean(shuffled(np.arange(64), size, key)) for key in range(400)]
        assert abs(np.mean(halves) - size / 2) < 40 and 100 < np.std(halves) < 200  # 148 for draws without replacement

    def test_large_corpora_need_no_table(self) -> None:
        size = 10**12
        found = shuffled(np.array([0, 1, size - 1]), size, 3)
        assert len(set(found.tolist())) == 3 and found.min() >= 0 and found.max() < size

    @given(st.integers(1, 40), st.integers(1, 13), st.integers(0, 5))
    @settings(max_examples=60, deadline=None)
    def test_every_epoch_visits_each_window_once(self, num_windows: int, batch_size: int, seed: int) -> None:
        steps = -(-3 * num_windows // batch_size)
        order = np.concatenate(
            [windows_of_step(s, batch_size=batch_size, num_windows=num_windows, seed=seed) for s in range(steps)]
        )
        for epoch in range(3):
            part = order[epoch * num_windows : (epoch + 1) * num_windows]
            assert np.array_equal(np.sort(part), np.arange(num_windows))

    def test_epochs_and_seeds_differ(self) -> None:
        order = [windows_of_step(s, batch_size=500, num_windows=500, seed=seed) for seed in (1, 2) for s in (0, 1)]
        assert max((a == b).mean() for i, a in enumerate(order) for b in order[:i]) < 0.03

    def test_is_the_same_on_every_machine(self) -> None:
        """A golden order: a resumed run must not notice an upgrade."""
        assert windows_of_step(5, batch_size=8, num_windows=1000, seed=3).tolist() == GOLDEN


class TestTraining:
    def test_rows_are_whole_windows_with_labels_shifted_by_one(self) -> None:
        tokens = Memory(2000)
        for step, batch in enumerate(train(tokens)):
            windows = windows_of_step(step, batch_size=4, num_windows=1999 // T, seed=1)
            for row, window in enumerate(windows.tolist()):
                assert batch.input_ids_BT[row].tolist() == tokens.tokens[window * T : window * T + T].tolist()
                assert batch.labels_BT[row].tolist() == tokens.tokens[window * T + 1 : window * T + T + 1].tolist()
            assert batch.num_targets == 4 * T

    def test_one_epoch_covers_the_stream(self) -> None:
        tokens = Memory(32 * T + 1)
        labels = torch.cat([b.labels_BT for b in train(tokens, num_steps=8)]).flatten()
        assert sorted(labels.tolist()) == sorted(tokens.tokens[1:].tolist())

    def test_documents_begin_at_the_mark(self, corpus: Corpus) -> None:
        for batch in train(corpus.train):
            first_BT = batch.pack.position_ids_BT == 0
            expected_BT = batch.input_ids_BT == corpus.end_of_text
            expected_BT[:, 0] = True
            assert torch.equal(first_BT, expected_BT)
            assert batch.pack.cu_seqlens[-1] == batch.input_ids_BT.numel()
            assert batch.input_ids_BT.dtype == batch.labels_BT.dtype == torch.int64

    @pytest.mark.parametrize("world_size", [2, 4])
    def test_any_number_of_processes_sees_the_same_global_batches(self, corpus: Corpus, world_size: int) -> None:
        whole = train(corpus.train, num_steps=60)
        parts = [train(corpus.train, num_steps=60, rank=rank, world_size=world_size) for rank in range(world_size)]
        for step, batch in enumerate(whole):
            assert torch.equal(torch.cat([part[step].input_ids_BT for part in parts]), batch.input_ids_BT)
            assert torch.equal(torch.cat([part[step].labels_BT for part in parts]), batch.labels_BT)

    @pytest.mark.parametrize("first_step", [1, 13, 59])
    def test_resumed_equals_uninterrupted(self, corpus: Corpus, first_step: int) -> None:
        whole = train(corpus.train, num_steps=60)
        rest = train(corpus.train, first_step=first_step, num_steps=60 - first_step)
        assert all(equal(a, b) for a, b in zip(whole[first_step:], rest, strict=True))

    def test_workers_change_nothing(self, corpus: Corpus) -> None:
        plain, ahead = train(corpus.train, num_steps=6), train(corpus.train, num_steps=6, workers=2)
        assert all(equal(a, b) for a, b in zip(plain, ahead, strict=True))

    def test_a_split_shorter_than_a_batch_says_what_to_change(self) -> None:
        with pytest.raises(
            DataError, match=r"trainer\.batch_size=4: .*takes 65 tokens and the train split has 64; lower"
        ):
            train(Memory(64))
        assert len(train(Memory(65))) == 20

    def test_a_batch_that_does_not_divide_is_refused(self) -> None:
        with pytest.raises(DataError, match=r"trainer\.batch_size=4: must be a multiple of the 3 processes"):
            train(Memory(500), world_size=3)

    def test_steps_end_where_they_should(self, corpus: Corpus) -> None:
        steps = training_loader(
            corpus.train, sequence_length=T, batch_size=2, seed=1, first_step=0, num_steps=3
        ).dataset
        with pytest.raises(IndexError):
            steps[3]


class TestEvaluation:
    @given(st.integers(2, 700), st.integers(1, 9), st.integers(1, 4))
    @settings(max_examples=60, deadline=None)
    def test_every_token_is_scored_once_in_equal_steps(self, length: int, batch_size: int, world_size: int) -> None:
        tokens = Memory(length)
        loaders = [
            evaluation_loader(tokens, sequence_length=T, batch_size=batch_size, rank=rank, world_size=world_size)
            for rank in range(world_size)
        ]
        assert len({len(loader) for loader in loaders}) == 1
        batches = [batch for loader in loaders for batch in loader]
        assert len({batch.input_ids_BT.shape for batch in batches}) == 1
        labels = torch.cat([batch.labels_BT for batch in batches]).flatten()
        inputs = torch.cat([batch.input_ids_BT for batch in batches]).flatten()
        there = labels != IGNORE
        pairs = sorted(zip(inputs[there].tolist(), labels[there].tolist(), strict=True))
        assert pairs == sorted(zip(tokens.tokens[:-1].tolist(), tokens.tokens[1:].tolist(), strict=True))
        assert inputs.min() >= 0 and inputs.max() <= length

    def test_a_limit_takes_windows_from_all_over_the_split(self) -> None:
        tokens = Memory(100 * T + 1, document=10**6)
        batches = list(evaluation_loader(tokens, sequence_length=T, batch_size=4, limit=10))
        starts = torch.cat([b.labels_BT[:, 0] for b in batches])
        assert [int(s) // T for s in starts if s != IGNORE] == list(range(0, 100, 10))
        again = list(evaluation_loader(tokens, sequence_length=T, batch_size=4, limit=10))
        assert all(equal(a, b) for a, b in zip(batches, again, strict=True))
        whole = list(evaluation_loader(tokens, sequence_length=T, batch_size=4, limit=1000))
        assert sum(b.num_targets for b in whole) == 100 * T

    def test_one_token_cannot_be_scored(self) -> None:
        with pytest.raises(DataError, match="has 1 tokens"):
            evaluation_loader(Memory(1), sequence_length=T, batch_size=2)
