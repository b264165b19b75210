"""Text leaves in whole characters and never shows a stop string."""

from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import Tokenizer

from superblock.generation.text import TextStream, TokenBytes


def pieces(tokenizer: Tokenizer, tokens: list[int], stop: tuple[str, ...] = ()) -> list[str]:
    stream = TextStream(TokenBytes(tokenizer), stop)
    return [*(stream.add(t) for t in tokens), stream.end()]


def byte_tokens(tokenizer: Tokenizer, data: bytes) -> list[int]:
    token_bytes = TokenBytes(tokenizer)
    one = {token_bytes[i]: i for i in range(tokenizer.get_vocab_size()) if len(token_bytes[i]) == 1}
    return [one[bytes([b])] for b in data]


@given(text=st.text(max_size=40))
@settings(max_examples=100, deadline=None)
def test_pieces_join_to_the_text(tokenizer: Tokenizer, text: str) -> None:
    text = text.encode("utf-8", "ignore").decode()
    assert "".join(pieces(tokenizer, tokenizer.encode(text).ids)) == text
    assert "".join(pieces(tokenizer, byte_tokens(tokenizer, text.encode()))) == text


def test_a_character_in_several_tokens_comes_once_it_is_whole(tokenizer: Tokenizer) -> None:
    assert pieces(tokenizer, byte_tokens(tokenizer, "a🎉é".encode())) == ["a", "", "", "", "🎉", "", "é", ""]


def test_an_unfinished_character_is_not_shown(tokenizer: Tokenizer) -> None:
    assert "".join(pieces(tokenizer, byte_tokens(tokenizer, "ok🎉".encode()[:-1]))) == "ok"


def test_bytes_that_are_no_character_are_marked(tokenizer: Tokenizer) -> None:
    assert "".join(pieces(tokenizer, byte_tokens(tokenizer, b"a\xffb"))) == "a\N{REPLACEMENT CHARACTER}b"


def test_text_ends_before_a_stop_string_across_tokens(tokenizer: Tokenizer) -> None:
    tokens = byte_tokens(tokenizer, b"one\n\ntwo")
    assert pieces(tokenizer, tokens, ("\n\n",)) == ["o", "n", "e", "", "", "", "", "", ""]


def test_a_beginning_that_does_not_become_a_stop_string_is_shown(tokenizer: Tokenizer) -> None:
    tokens = byte_tokens(tokenizer, b"a##b#")
    assert pieces(tokenizer, tokens, ("###",)) == ["a", "", "", "##b", "", "#"]


def test_the_first_of_several_stop_strings_counts(tokenizer: Tokenizer) -> None:
    tokens = tokenizer.encode("def f(x):\n    return x\n").ids
    assert "".join(pieces(tokenizer, tokens, ("return", "(x"))) == "def f"
    assert "".join(pieces(tokenizer, tokens, ("",))) == "def f(x):\n    return x\n"


@given(text=st.text(alphabet="ab\n", max_size=30), stop=st.text(alphabet="ab\n", min_size=1, max_size=4))
@settings(max_examples=150, deadline=None)
def test_stopping_equals_cutting_the_whole_text(tokenizer: Tokenizer, text: str, stop: str) -> None:
    assert "".join(pieces(tokenizer, byte_tokens(tokenizer, text.encode()), (stop,))) == text.split(stop)[0]
