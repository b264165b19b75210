"""A needle in a haystack of source text: a number is said somewhere, and asked for at the end.

As RULER's single needle (arXiv 2404.06654, there in essays or noise, of thousands of tokens), on bytes of the embedded
corpus and at lengths that a model of this size can be trained on in minutes. Legend: B sequences, T bytes, N digits.
"""

from functools import cache, partial

import numpy as np

from superblock.benchmarks.probes.task import MIXERS, Examples, Ids, Level, Recipe, Task, unasked
from superblock.data.documents import Account
from superblock.data.embedded import EmbeddedSource

SAID, ASKED = b"\n# the number is ", b"\n# what was the number? "
DIGITS = 4
TEST_SHARE = 10
"""One document of so many is for the test alone."""
LIMIT = 1 << 20
"""Bytes of a document, at most."""


def needle(rng: np.random.Generator, B: int, *, T: int, test: bool) -> Examples:
    """Text with `SAID` and N digits at a random place, then `ASKED` and the digits, each of which is asked for."""
    text = haystack(test)
    ids_BT, labels_BT = np.empty((B, T), dtype=np.int64), unasked(B, T)
    said, asked = (np.frombuffer(words, dtype=np.uint8) for words in (SAID, ASKED))
    digits_BN = ord("0") + rng.integers(0, 10, (B, DIGITS))
    room = T - len(said) - len(asked) - 2 * DIGITS + 1  # the last digit is never read
    begin_B, depth_B = rng.integers(0, len(text) - room, B), rng.integers(0, room + 1, B)
    for b in range(B):
        hay = text[begin_B[b] : begin_B[b] + room]
        parts = hay[: depth_B[b]], said, digits_BN[b], hay[depth_B[b] :], asked, digits_BN[b, :-1]
        ids_BT[b] = np.concatenate(parts)
    labels_BT[:, T - DIGITS :] = digits_BN
    return Examples(ids_BT, labels_BT)


@cache
def haystack(test: bool) -> Ids:
    """Bytes of the documents of one split, one after the other."""
    documents = list(EmbeddedSource(LIMIT).documents(Account()))
    chosen = [d.text for i, d in enumerate(documents) if (i % TEST_SHARE == 0) == test]
    return np.frombuffer("\n".join(chosen).encode(), dtype=np.uint8)


def needle_task() -> Task:
    """Trained at 128 and 256 bytes, tested to 1024."""
    trained = (128, 256)
    return Task(
        name="needle",
        ability="retrieval from text",
        setting="4 digits in 128 to 256 bytes of the standard library's source; also 512 and 1024",
        vocabulary=256,
        chance=1 / 10,
        batches=tuple(partial(needle, T=T, test=False) for T in trained),
        batch_tokens=4096,
        levels=tuple(
            Level(f"length={T}", partial(needle, T=T, test=True), max(32, 128 * 256 // T), T in trained, T in trained)
            for T in (128, 256, 512, 1024)
        ),
        recipe=Recipe(steps=2000, learning_rate=3e-3, seconds=130),
        arms=MIXERS,
        published_setting="RULER's single needle in essays, 2,000 to 16,000 tokens, models of 0.4 billion parameters and more",
        published="DeltaNet at 2K/4K/8K/16K: 96.8/98.8/98.6/71.4 (passkey), 47.2/15.4/12.8/5.4 (number) (Titans, table 2)",
    )
