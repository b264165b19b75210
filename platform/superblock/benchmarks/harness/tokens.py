"""Where a context ends among the tokens of a text."""

from collections.abc import Sequence


def boundary(ids: Sequence[int], sizes: Sequence[int], context_bytes: int) -> int:
    """How many of a text's first tokens lie wholly within its first `context_bytes` bytes.

    Args:
        ids: tokens of the whole text.
        sizes: bytes of each token of the vocabulary.
    """
    end = 0
    for number, token in enumerate(ids):
        end += sizes[token]
        if end > context_bytes:
            return number
    return len(ids)
