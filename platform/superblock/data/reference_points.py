"""What simpler models need for the same text, in bits per byte: the marks a language model has to beat.

Legend: N tokens, V vocabulary.
"""

import json
import lzma
import math
import os
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from superblock.data.token_file import TokenFile

if TYPE_CHECKING:
    from superblock.data.corpus import Corpus

Codes = NDArray[np.int64]
MOST_TOKENS = 50_000_000  # of the training split for the n-gram models: 2 GB of memory; more changes the third decimal
MOST_BYTES = 1 << 27  # of a split for xz, which compresses about 1.5 MB a second


def reference_points(corpus: "Corpus", split: str = "test") -> dict[str, float]:
    """Bits per byte of `unigram`, `trigram` (both on the corpus's tokens, learned on its training split) and `xz -9e`.

    They score the same labels as the model does: every token after the split's first, from context within its document.
    Computed once (seconds), then read from the corpus's folder.
    """
    path = corpus.folder / f"reference_points.{split}.json"
    try:
        found: dict[str, float] = json.loads(path.read_text("utf-8"))
        return found
    except (OSError, ValueError):
        pass  # not there yet, or cut short: computed now
    file: TokenFile = getattr(corpus, split)
    unigram, trigram = ngram_bits(corpus.train.tokens[:MOST_TOKENS], file.tokens, file.end_of_text, file.vocab_size)
    points = {
        "unigram": unigram / file.num_bytes,
        "trigram": trigram / file.num_bytes,
        "xz": xz(corpus.text_path(split)),
    }
    temporary = path.with_suffix(f".{os.getpid()}.tmp")
    temporary.write_text(json.dumps(points), "utf-8")
    os.replace(temporary, path)
    return points


def xz(path: Path) -> float:
    """Bits per byte of `xz -9e`. A dictionary no longer than the text finds the same matches in a fraction of the memory."""
    size = min(path.stat().st_size, MOST_BYTES)
    dictionary = max(4096, min(size, 1 << 26))
    filters = [{"id": lzma.FILTER_LZMA2, "preset": 9 | lzma.PRESET_EXTREME, "dict_size": dictionary}]
    compressor = lzma.LZMACompressor(lzma.FORMAT_XZ, lzma.CHECK_CRC64, filters=filters)
    compressed = left = 0
    with path.open("rb") as file:
        left = size
        while left and (chunk := file.read(min(left, 1 << 20))):
            compressed += len(compressor.compress(chunk))
            left -= len(chunk)
    compressed += len(compressor.flush())
    return 8 * compressed / max(1, size)


@dataclass(frozen=True)
class NGrams:
    """How often each context was followed by each token. A code is `context * V + token`."""

    codes: Codes
    """Sorted, distinct."""
    counts: Codes
    contexts: Codes
    """Sorted, distinct."""
    totals: Codes
    """Tokens seen after each context."""
    kinds: Codes
    """Distinct tokens seen after each context."""

    @classmethod
    def count(cls, contexts_N: Codes, tokens_N: Codes, V: int) -> "NGrams":
        """Counts every (context, token)."""
        codes, counts = np.unique(contexts_N * V + tokens_N, return_counts=True)
        contexts, first, kinds = np.unique(codes // V, return_index=True, return_counts=True)
        return cls(codes, counts, contexts, np.add.reduceat(counts, first), kinds)

    def refine(self, lower_N: NDArray[np.float64], contexts_N: Codes, tokens_N: Codes, V: int) -> NDArray[np.float64]:
        """Witten-Bell: (count + kinds x lower order's probability) / (total + kinds); the lower order's where unseen."""
        count_N = _look_up(self.codes, self.counts, contexts_N * V + tokens_N)
        total_N = _look_up(self.contexts, self.totals, contexts_N)
        kinds_N = _look_up(self.contexts, self.kinds, contexts_N)
        seen_N = total_N > 0
        refined = (count_N + kinds_N * lower_N) / np.where(seen_N, total_N + kinds_N, 1)
        return np.where(seen_N, refined, lower_N)


def _look_up(keys: Codes, values: Codes, wanted: Codes) -> Codes:
    place = np.minimum(np.searchsorted(keys, wanted), len(keys) - 1)
    return np.where(keys[place] == wanted, values[place], 0)


def ngram_bits(
    train_N: NDArray[np.integer], test_N: NDArray[np.integer], end_of_text: int, V: int
) -> tuple[float, float]:
    """Bits that an interpolated unigram and trigram model need for all tokens of a stream but the first.

    Witten and Bell 1991, method C, interpolated as in Chen and Goodman 1999, down to the uniform distribution. A context
    does not reach behind the end-of-text token that begins a document.
    """
    seen, wanted = _with_contexts(train_N, end_of_text, V), _with_contexts(test_N, end_of_text, V)
    probability = np.full(len(wanted[0]), 1 / V)
    bits = []
    for order in range(3):
        model = NGrams.count(seen[order + 1], seen[0], V)
        probability = model.refine(probability, wanted[order + 1], wanted[0], V)
        bits.append(float(-np.log(probability).sum() / math.log(2)))
    return bits[0], bits[2]


def _with_contexts(tokens_N: NDArray[np.integer], end_of_text: int, V: int) -> tuple[Codes, Codes, Codes, Codes]:
    """The tokens after the first, and for each its context of no, one and two tokens."""
    stream = tokens_N.astype(np.int64)
    last = stream[:-1]
    before = np.concatenate([[end_of_text], stream[:-2]])
    before[last == end_of_text] = end_of_text
    return stream[1:], np.zeros(len(last), np.int64), last, before * V + last
