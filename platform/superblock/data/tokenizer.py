"""A byte-level BPE: every text has tokens, and tokens give back exactly the text they came from."""

import os
from collections.abc import Iterable, Iterator
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

END_OF_TEXT = "<|endoftext|>"
SLICE = (
    1 << 16
)  # characters; a word cannot be longer than a slice, which bounds time and memory on a text without spaces
TRAINING_BYTES = 256_000_000  # more text changes few merges and takes minutes


def train(texts: Iterable[str], vocab_size: int) -> Tokenizer:
    """Learns `vocab_size` tokens, among them all 256 bytes and the end of text; a small corpus may yield fewer.

    The same texts give the same tokenizer. Sennrich et al. 2016 (arXiv:1508.07909), on bytes as in GPT-2.
    """
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "true")  # said explicitly, it does not warn when loaders fork later
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size,
        special_tokens=[END_OF_TEXT],
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
        show_progress=False,
    )
    tokenizer.train_from_iterator((piece for text in _sample(texts) for piece in slices(text)), trainer)
    return _plain(tokenizer)


def load(path: Path) -> Tokenizer:
    """A saved tokenizer, with the end-of-text mark in a text read as ordinary characters."""
    return _plain(Tokenizer.from_file(str(path)))


def _plain(tokenizer: Tokenizer) -> Tokenizer:
    # a text that contains the mark must not end there; the setting is not part of the saved file
    tokenizer.encode_special_tokens = True
    return tokenizer


def end_of_text(tokenizer: Tokenizer) -> int:
    """The id of the token that begins every document."""
    token = tokenizer.token_to_id(END_OF_TEXT)
    assert token is not None
    return int(token)


def _sample(texts: Iterable[str]) -> Iterator[str]:
    taken = 0
    for text in texts:
        if taken >= TRAINING_BYTES:
            return
        taken += len(text)
        yield text


def slices(text: str) -> Iterator[str]:
    """The parts of a text that are tokenized by themselves: at most `SLICE` characters, cut after a line where there is one."""
    begin = 0
    while len(text) - begin > SLICE:
        newline = text.rfind("\n", begin + SLICE // 2, begin + SLICE)
        end = newline + 1 if newline >= 0 else begin + SLICE
        yield text[begin:end]
        begin = end
    if begin < len(text):
        yield text[begin:]


def token_bytes(tokenizer: Tokenizer) -> NDArray[np.int64]:
    """[V] bytes of text that each token stands for; 0 for the end of text. They sum up to the bytes of the text."""
    sizes = np.zeros(tokenizer.get_vocab_size(), np.int64)
    for token, index in tokenizer.get_vocab().items():
        sizes[index] = 0 if token == END_OF_TEXT else len(token)  # byte-level BPE writes each byte as one character
    return sizes
