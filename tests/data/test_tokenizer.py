"""Byte-level BPE: exact for every text, the same for the same text, and safe from texts that contain its mark."""

import time
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import Tokenizer

from superblock.data import tokenizer as bpe
from superblock.data.tokenizer import END_OF_TEXT, SLICE, slices

# little text, so that fewer tokens than wanted are learned
TEXTS = ["def f(x):\n    return x + 1\n" * 20, "the cat sat on the mat\n" * 30, "größer 日本 🙂\n" * 10]


@pytest.fixture(scope="module")
def tokenizer() -> Tokenizer:
    return bpe.train(TEXTS, 320)


@given(st.text(st.characters(exclude_categories=["Cs"])))
@settings(max_examples=200)
def test_round_trip_is_exact(tokenizer: Tokenizer, text: str) -> None:
    ids = tokenizer.encode(text, add_special_tokens=False).ids
    assert tokenizer.decode(ids, skip_special_tokens=False) == text
    assert bpe.token_bytes(tokenizer)[ids].sum() == len(text.encode())


def test_vocabulary_holds_all_bytes_and_the_mark(tokenizer: Tokenizer) -> None:
    assert tokenizer.get_vocab_size() <= 320 and bpe.end_of_text(tokenizer) == tokenizer.token_to_id(END_OF_TEXT)
    sizes = bpe.token_bytes(tokenizer)
    assert (sizes == 1).sum() == 256 and (sizes == 0).sum() == 1 and sizes.max() > 3


@pytest.mark.parametrize("saved", [False, True])
def test_the_mark_in_a_text_is_ordinary_text(tokenizer: Tokenizer, tmp_path: Path, saved: bool) -> None:
    if saved:
        tokenizer.save(str(tmp_path / "tokenizer.json"))
        tokenizer = bpe.load(tmp_path / "tokenizer.json")
    text = f"before {END_OF_TEXT} after"
    ids = tokenizer.encode(text, add_special_tokens=False).ids
    assert bpe.end_of_text(tokenizer) not in ids and tokenizer.decode(ids, skip_special_tokens=False) == text


def test_same_text_same_tokenizer(tokenizer: Tokenizer) -> None:
    assert bpe.train(TEXTS, 320).to_str() == tokenizer.to_str() != bpe.train(TEXTS[:1], 320).to_str()


def test_learning_stops_after_enough_text(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(bpe, "TRAINING_BYTES", 10)
    assert bpe.train(TEXTS, 320).to_str() == bpe.train(TEXTS[:1], 320).to_str()


@given(st.lists(st.tuples(st.sampled_from("ab\n🙂"), st.integers(1, SLICE)), max_size=6))
@settings(max_examples=50)
def test_slices_join_to_the_text(runs: list[tuple[str, int]]) -> None:
    text = "".join(sign * count for sign, count in runs)
    parts = list(slices(text))
    assert "".join(parts) == text and all(0 < len(part) <= SLICE for part in parts)


def test_a_text_without_spaces_does_not_take_for_ever(tokenizer: Tokenizer) -> None:
    began = time.perf_counter()
    parts = list(slices("ab" * 1_000_000))
    assert sum(len(e.ids) for e in tokenizer.encode_batch_fast(parts, add_special_tokens=False)) > 0
    assert time.perf_counter() - began < 20
