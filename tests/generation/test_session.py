"""Cached decoding against the full forward pass, and what a session promises about its texts."""

from collections.abc import Callable
from itertools import pairwise
from pathlib import Path

import pytest
import torch
from tokenizers import Tokenizer
from torch import Tensor

from superblock.config.fields import ConfigError, restore
from superblock.config.model import ModelConfig
from superblock.generation.session import Session, load
from superblock.models.cache import Cache
from superblock.models.language_model import SuperblockModel
from superblock.training.manifest import CheckpointError


@pytest.fixture
def session(model: SuperblockModel, tokenizer: Tokenizer) -> Session:
    return Session(model.eval(), tokenizer)


def texts(session: Session, prompt: str = "def f", samples: int = 1, **settings: object) -> list[str]:
    parts = [""] * samples
    for piece in session.stream(prompt, samples=samples, **{"max_tokens": 40, **settings}):  # type: ignore[arg-type]
        parts[piece.sample] += piece.text
    return parts


def recorded(session: Session, monkeypatch: pytest.MonkeyPatch) -> list[tuple[Tensor, Tensor]]:
    """Every call of the model: ids and logits."""
    calls: list[tuple[Tensor, Tensor]] = []
    inner = session._logits

    def record(ids_BT: Tensor, cache: Cache) -> Tensor:
        logits_BV = inner(ids_BT, cache)
        calls.append((ids_BT, logits_BV))
        return logits_BV

    monkeypatch.setattr(session, "_logits", record)
    return calls


@pytest.mark.parametrize("temperature", [0.0, 1.0])
def test_cached_decoding_equals_the_full_forward(
    session: Session, monkeypatch: pytest.MonkeyPatch, temperature: float
) -> None:
    """Beyond the trained length and the attention window, with three texts at once."""
    calls = recorded(session, monkeypatch)
    texts(session, "import os\n\nclass", samples=3, temperature=temperature, max_tokens=50)
    prompt_1T, after = calls[0][0], [ids_BT for ids_BT, _ in calls[1:]]
    whole_BT = torch.cat([prompt_1T.expand(3, -1), *after], dim=1)
    with torch.no_grad():
        full_BTV = session.model(whole_BT).logits_BTV
    first = prompt_1T.shape[1] - 1
    for t, (_, logits_BV) in enumerate(calls):
        expected_BV = full_BTV[:, first + t]
        assert (logits_BV - expected_BV).norm() / expected_BV.norm() < 1e-5
        assert torch.equal(logits_BV.argmax(-1).expand(3), expected_BV.argmax(-1))


def test_greedy_takes_the_most_likely_token_each_time(session: Session, monkeypatch: pytest.MonkeyPatch) -> None:
    calls = recorded(session, monkeypatch)
    texts(session, "", temperature=0.0, max_tokens=12)
    known = session.tokenizer.get_vocab_size()
    for (_, logits_BV), (next_BT, _) in pairwise(calls):
        assert next_BT.item() == logits_BV[0, :known].argmax().item()


def test_the_first_token_begins_with_the_prompts_last(session: Session, monkeypatch: pytest.MonkeyPatch) -> None:
    """The text must read as the prompt does, wherever the prompt cuts a token."""
    for prompt in ("def ", "    retu", "東", "größe na"):
        calls = recorded(session, monkeypatch)
        texts(session, prompt, max_tokens=3, temperature=0.0)
        ids, begun = session._encode(prompt)
        token = int(calls[1][0])
        assert session.token_bytes[token].startswith(begun)
        assert b"".join(session.token_bytes[i] for i in ids[1:]) + begun == prompt.encode()


def test_tokens_outside_the_tokenizer_are_never_chosen(session: Session, monkeypatch: pytest.MonkeyPatch) -> None:
    calls = recorded(session, monkeypatch)
    texts(session, samples=8, temperature=100.0, top_p=1.0)
    assert max(int(ids_BT.max()) for ids_BT, _ in calls) < session.tokenizer.get_vocab_size()


def test_a_seed_repeats_and_another_differs(session: Session) -> None:
    assert texts(session, seed=3) == texts(session, seed=3)
    assert texts(session, seed=3) != texts(session, seed=4)


def test_samples_differ_and_are_those_of_their_own_seeds(session: Session) -> None:
    three = texts(session, samples=3, seed=5)
    assert len(set(three)) == 3
    assert three == [texts(session, seed=5 + i)[0] for i in range(3)]


def test_greedy_samples_are_equal(session: Session) -> None:
    assert len(set(texts(session, samples=3, temperature=0.0))) == 1


def test_top_k_of_one_is_greedy(session: Session) -> None:
    assert texts(session, top_k=1, temperature=1.0) == texts(session, temperature=0.0)


def test_every_sample_ends_once(session: Session) -> None:
    pieces = list(session.stream("a", max_tokens=9, samples=3, temperature=2.0))
    assert sorted(piece.sample for piece in pieces if piece.done) == [0, 1, 2]
    assert max(piece.tokens for piece in pieces) <= 9


def test_a_stop_string_ends_the_text_before_it(session: Session) -> None:
    [whole] = texts(session, seed=9)
    for length in (1, 2, 5):
        stop = whole[10 : 10 + length]
        [cut] = texts(session, seed=9, stop=stop)
        assert cut == whole[: whole.index(stop)]


def test_the_end_of_a_document_ends_the_text(session: Session, monkeypatch: pytest.MonkeyPatch) -> None:
    logits = iter(range(100))
    inner = session._logits

    def end_at_third(ids_BT: Tensor, cache: Cache) -> Tensor:
        logits_BV = inner(ids_BT, cache)
        if next(logits) == 2:
            logits_BV[:, session.end_of_text] = 1e9
        return logits_BV

    monkeypatch.setattr(session, "_logits", end_at_third)
    pieces = list(session.stream("a", max_tokens=50, temperature=0.0))
    assert [piece.done for piece in pieces] == [False, False, True]
    assert "endoftext" not in "".join(piece.text for piece in pieces)


def test_no_piece_holds_half_a_character(session: Session) -> None:
    for piece in session.stream("größe 東", max_tokens=60, samples=4, temperature=3.0, top_p=1.0):
        assert piece.text == piece.text.encode().decode()


def test_a_prompt_that_looks_like_the_end_of_a_document_is_text(session: Session) -> None:
    ids, _ = session._encode("<|endoftext|>x")
    assert ids.count(session.end_of_text) == 1


def test_complete_is_the_stream_in_one(session: Session) -> None:
    assert session.complete("def f", 40, 6) == texts(session, seed=6)[0]


def test_the_models_mode_is_left_as_it_was(session: Session) -> None:
    session.model.train()
    session.complete("def", 3, 1)
    assert session.model.training
    session.model.eval()
    session.complete("def", 3, 1)
    assert not session.model.training


def test_a_loaded_session_writes_the_same_text(session: Session, make_run: Callable[..., Path]) -> None:
    folder = make_run("run-a")
    expected = session.complete("def f", 30, 2)
    assert load().complete("def f", 30, 2) == expected
    assert load(str(folder / "checkpoints" / "step-0000007")).complete("def f", 30, 2) == expected


def test_a_configuration_from_another_version_is_named() -> None:
    assert restore(ModelConfig, {"gqa": {"window": 5}}, "model").gqa.window == 5
    with pytest.raises(ConfigError, match=r"model\.gqa\.colour=3"):
        restore(ModelConfig, {"gqa": {"colour": 3}}, "model")
    assert issubclass(CheckpointError, ConfigError)
