"""The reference points against slow dictionaries and against the xz program's format."""

import json
import lzma
import math
from collections import Counter, defaultdict
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from superblock.data import reference_points as module
from superblock.data.corpus import Corpus
from superblock.data.reference_points import ngram_bits, reference_points, xz

MARK = 0


def slow_bits(train: list[int], test: list[int], V: int) -> tuple[float, float]:
    """Witten-Bell with dictionaries, written from the formula."""

    def events(stream: list[int]) -> list[tuple[int, ...]]:
        found = []
        for i in range(1, len(stream)):
            last = stream[i - 1]
            before = stream[i - 2] if i > 1 and last != MARK else MARK
            found.append((before, last, stream[i]))
        return found

    follow: dict[tuple[int, ...], Counter[int]] = defaultdict(Counter)
    for u, v, w in events(train):
        for context in ((), (v,), (u, v)):
            follow[context][w] += 1

    def probability(context: tuple[int, ...], w: int) -> float:
        lower = probability(context[1:], w) if context else 1 / V
        if context not in follow:
            return lower
        counts = follow[context]
        return (counts[w] + len(counts) * lower) / (counts.total() + len(counts))

    scored = events(test)
    return (
        -sum(math.log2(probability((), w)) for _, _, w in scored),
        -sum(math.log2(probability((u, v), w)) for u, v, w in scored),
    )


@given(st.lists(st.integers(0, 5), min_size=2, max_size=80), st.lists(st.integers(0, 6), min_size=2, max_size=40))
@settings(max_examples=150, deadline=None)
def test_against_dictionaries(train: list[int], test: list[int]) -> None:
    assert ngram_bits(np.array(train), np.array(test), MARK, 7) == pytest.approx(slow_bits(train, test, 7))


def test_against_dictionaries_on_a_corpus(corpus: Corpus) -> None:
    train, test = corpus.train.tokens.tolist(), corpus.test.tokens.tolist()
    V = corpus.test.vocab_size
    swap = lambda stream: [MARK if t == corpus.end_of_text else t + 1 if t < corpus.end_of_text else t for t in stream]  # noqa: E731
    points = reference_points(corpus, "test")
    slow = slow_bits(swap(train), swap(test), V)
    assert [points["unigram"], points["trigram"]] == pytest.approx([bits / corpus.test.num_bytes for bits in slow])
    assert points["trigram"] < points["unigram"] < 8


def test_probabilities_sum_to_one() -> None:
    draw = np.random.default_rng(1)
    train = draw.integers(0, 6, 400)
    total = sum(
        2 ** -(ngram_bits(train, np.array([2, 3, w]), MARK, 6)[1] - ngram_bits(train, np.array([2, 3]), MARK, 6)[1])
        for w in range(6)
    )
    assert total == pytest.approx(1)


def test_large_vocabularies_do_not_overflow() -> None:
    V = 1_000_000
    stream = np.array([0, V - 1, V - 2, V - 1, V - 2, V - 1, 5], np.uint32)
    assert ngram_bits(stream, stream, MARK, V) == pytest.approx(slow_bits(stream.tolist(), stream.tolist(), V))


def test_xz_is_what_the_program_needs(tmp_path: Path, corpus: Corpus) -> None:
    data = corpus.text_path("test").read_bytes()
    plain = len(lzma.compress(data, preset=9 | lzma.PRESET_EXTREME))
    assert xz(corpus.text_path("test")) == pytest.approx(8 * plain / len(data), rel=0.002)


def test_xz_reads_no_more_than_its_limit(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "MOST_BYTES", 5000)
    (tmp_path / "a.txt").write_bytes(np.random.default_rng(0).bytes(5000) + b"0" * 100_000)
    assert 7.9 < xz(tmp_path / "a.txt") < 8.3


def test_points_are_kept(corpus: Corpus, monkeypatch: pytest.MonkeyPatch) -> None:
    path = corpus.folder / "reference_points.val.json"
    path.unlink(missing_ok=True)
    first = corpus.reference_points("val")
    assert json.loads(path.read_text()) == first and set(first) == {"unigram", "trigram", "xz"}
    monkeypatch.setattr(module, "ngram_bits", None)
    assert reference_points(corpus, "val") == first
    monkeypatch.undo()
    path.write_text("{")
    assert reference_points(corpus, "val") == first
