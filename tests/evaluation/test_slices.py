"""Sums by context and package: exact, complete, and the same however the text is read."""

import math
from typing import Any

import numpy as np
import pytest
import torch

from superblock.config.data import DataConfig
from superblock.data.corpus import Corpus, prepare
from superblock.data.loader import evaluation_loader
from superblock.evaluation.language import LOOSE, beyond, bits, describe, merged, metrics
from superblock.evaluation.slices import SUMS, Layout, SlicedScores, stretch_names, stretches
from superblock.models.batch import IGNORE, TokenScores

T = 24


@pytest.fixture(scope="module")
def corpus(tmp_path_factory: pytest.TempPathFactory) -> Corpus:
    """120 documents in two folders and in none."""
    folder, rng = tmp_path_factory.mktemp("sliced"), np.random.default_rng(0)
    for number in range(120):
        place = folder / ("alpha", "beta", "")[number % 3]
        place.mkdir(exist_ok=True)
        words = rng.choice(["def", "return", "x", "größe", "(1)", "\n", "else:"], size=int(rng.integers(20, 120)))
        (place / f"{number}.txt").write_text(" ".join(words), "utf-8")
    data = DataConfig(
        source="text", path=str(folder), vocab_size=280, sequence_length=T, val_percent=15, test_percent=20,
        cache_dir=str(tmp_path_factory.mktemp("cache")),
    )  # fmt: skip
    return prepare(data, report=lambda text: None)


def made_up(labels_BT: torch.Tensor, generator: torch.Generator) -> TokenScores:
    there = labels_BT != IGNORE
    nll = torch.rand(labels_BT.shape, generator=generator) * there
    rank = torch.randint(0, 9, labels_BT.shape, generator=generator).where(there, -1)
    return TokenScores(nll, rank)


def read(
    corpus: Corpus, length: int, batch_size: int, trained: int | None = None
) -> tuple[Layout, np.ndarray, list[Any]]:
    """Sums, and every batch with its scores."""
    layout = Layout.of(corpus.test, length, trained)
    metric, first, seen = SlicedScores(layout, corpus.token_bytes), 0, []
    generator = torch.Generator().manual_seed(1)
    for batch in evaluation_loader(corpus.test, sequence_length=length, batch_size=batch_size):
        scores = made_up(batch.labels_BT, generator)
        metric.update(scores, batch, first)
        first += len(batch.input_ids_BT)
        seen.append((batch, scores))
    return layout, metric.compute(), seen


def test_every_token_is_in_the_slice_that_counting_by_hand_puts_it(corpus: Corpus) -> None:
    layout, sums, seen = read(corpus, T, 5)
    part, token = corpus.test, 0
    by_hand: dict[tuple[str, str], list[float]] = {}
    document = np.searchsorted(part.doc_starts, np.arange(len(part)), side="right") - 1
    for batch, scores in seen:
        for row in range(len(batch.input_ids_BT)):
            for t in range(T):
                if batch.labels_BT[row, t] == IGNORE:
                    continue
                token += 1
                assert batch.labels_BT[row, t] == part.tokens[token]
                here = token - 1  # what is read there: its document reaches back to its mark or the sequence's begin
                context = here - max(part.doc_starts[document[here]], here // T * T) + 1
                stretch = next(
                    n for n, end in zip(stretch_names(layout.ends_P), layout.ends_P, strict=True) if context <= end
                )
                package = part.group_names[part.groups[document[token]]]
                rank = int(scores.rank_BT[row, t])
                values = [float(scores.nll_BT[row, t]), 1, corpus.token_bytes[part.tokens[token]], rank < 1, rank < 5]
                entry = by_hand.setdefault((package, stretch), [0.0] * len(SUMS))
                by_hand[package, stretch] = [a + float(b) for a, b in zip(entry, values, strict=True)]
    assert token == len(part) - 1
    for group in np.unique(layout.group_U):
        for p, stretch in enumerate(stretch_names(layout.ends_P)):
            expected = by_hand.get((part.group_names[group], stretch), [0.0] * len(SUMS))
            assert sums[layout.group_U == group, p].sum(axis=0).tolist() == pytest.approx(expected, rel=1e-12)


def test_what_is_written_adds_up(corpus: Corpus) -> None:
    layout, sums, _ = read(corpus, T, 7)
    found = describe(sums, layout, corpus.test, split="test", step=3, digest="d", trained_length=T)
    assert found["bytes"] == corpus.test.num_bytes == sum(one["bytes"] for one in found["packages"])
    assert found["tokens"] == len(corpus.test) - 1
    for slices in (found["packages"], found["positions"]):
        assert sum(one["tokens"] for one in slices) == found["tokens"]
        nats = sum(one["bits_per_byte"] * one["bytes"] for one in slices) * math.log(2)
        assert nats == pytest.approx(sums[..., 0].sum(), rel=1e-12)
        hits = sum(one["accuracy"] * one["tokens"] for one in slices)
        assert hits == pytest.approx(found["accuracy"] * found["tokens"], rel=1e-12)
        assert all(one["low"] <= one["bits_per_byte"] <= one["high"] for one in slices)
    assert {one["name"] for one in found["packages"]} == {"alpha", "beta", LOOSE}
    assert [one["name"] for one in found["positions"]] == ["1-4", "5-8", "9-16", "17-24"]
    low, high = found["intervals"]["bits_per_byte"]
    assert low < found["bits_per_byte"] < high

    results, curves = metrics(found)
    assert results["language/package/beta/accuracy"] == next(
        p["accuracy"] for p in found["packages"] if p["name"] == "beta"
    )
    assert {step: set(values) for step, values in curves.items()} == {
        end: {"language/position/bits_per_byte", "language/position/accuracy"} for end in (4, 8, 16, 24)
    }


def test_processes_and_batches_do_not_show(corpus: Corpus) -> None:
    """Two processes with every other part of each step add up to one that reads all."""
    layout, whole, _ = read(corpus, T, 6)
    loaders = [evaluation_loader(corpus.test, sequence_length=T, batch_size=3, rank=r, world_size=2) for r in range(2)]
    generator, parts = (
        torch.Generator().manual_seed(1),
        [SlicedScores(layout, corpus.token_bytes) for _ in range(2)],
    )
    for number, batches in enumerate(zip(*loaders, strict=True)):
        labels = torch.cat([batch.labels_BT for batch in batches])
        scores = made_up(labels, generator)
        for rank, batch in enumerate(batches):
            rows = slice(3 * rank, 3 * rank + 3)
            parts[rank].update(TokenScores(scores.nll_BT[rows], scores.rank_BT[rows]), batch, (2 * number + rank) * 3)
    together = parts[0].compute() + parts[1].compute()
    np.testing.assert_array_equal(together[..., 1:], whole[..., 1:])


def test_a_text_that_was_not_read_whole_is_refused(corpus: Corpus) -> None:
    layout, sums, _ = read(corpus, T, 7)
    sums[3] = 0
    with pytest.raises(ValueError, match="tokens were scored of the"):
        describe(sums, layout, corpus.test, split="test", step=1, digest="d", trained_length=T)


def test_contexts_beyond_training(corpus: Corpus) -> None:
    layout, sums, _ = read(corpus, 3 * T, 3, trained=T)
    assert stretch_names(layout.ends_P) == ["1-4", "5-8", "9-16", "17-24", "25-48", "49-72"]
    longer = beyond(sums, layout, T)
    assert [one["name"] for one in longer] == ["25-48", "49-72"]
    assert 0 < longer[0]["tokens"] < len(corpus.test) / 3


def test_one_folder_tells_nothing_apart(corpus: Corpus) -> None:
    layout, sums, _ = read(corpus, T, 7)
    alone = Layout(layout.begins_U, np.zeros_like(layout.group_U), layout.ends_P)
    found = describe(sums, alone, corpus.test, split="validation", step=1, digest="d", trained_length=T)
    assert found["packages"] == []
    assert "language_validation/bits_per_byte" in metrics(found)[0]


def test_stretches_and_blocks() -> None:
    assert stretches(128).tolist() == [4, 8, 16, 32, 64, 128]
    assert stretches(3).tolist() == [3]
    assert stretch_names(stretches(20)) == ["1-4", "5-8", "9-16", "17-20"]
    rows = np.random.default_rng(0).random((1000, len(SUMS)))
    assert merged(rows).shape == (256, len(SUMS))
    np.testing.assert_allclose(merged(rows).sum(axis=0), rows.sum(axis=0))
    assert bits(rows.sum(axis=0)[None])[0] == pytest.approx(rows[:, 0].sum() / rows[:, 2].sum() / math.log(2))
