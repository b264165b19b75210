"""From tokens to text that can be shown at once: whole characters only, and nothing of a stop string."""

import codecs
from collections.abc import Sequence

from tokenizers import Tokenizer


class TokenBytes:
    """The bytes of each token of a byte-level BPE.

    The tokenizer stores bytes as printable characters: printable Latin-1 stands for itself, and the other bytes, in
    order, for the characters from 256 on.
    """

    def __init__(self, tokenizer: Tokenizer) -> None:
        printable = [*range(33, 127), *range(161, 173), *range(174, 256)]
        others = [b for b in range(256) if b not in set(printable)]
        self._byte_of = {chr(b): b for b in printable} | {chr(256 + i): b for i, b in enumerate(others)}
        self._tokenizer = tokenizer

    def __getitem__(self, token: int) -> bytes:
        """Bytes of a token; a special token, which is no text, gives its name, and an unknown number nothing."""
        text = self._tokenizer.id_to_token(token) or ""
        try:
            return bytes(map(self._byte_of.__getitem__, text))
        except KeyError:
            return text.encode()


class TextStream:
    """Turns the tokens of one text into pieces that can be shown.

    A character whose bytes are spread over several tokens is held back until it is whole; so is text that may be the
    beginning of a stop string. Bytes that cannot be part of any character become U+FFFD.
    """

    def __init__(self, token_bytes: TokenBytes, stop: Sequence[str] = ()) -> None:
        self._token_bytes = token_bytes
        self._stop = [s for s in stop if s]
        self._decoder = codecs.getincrementaldecoder("utf-8")(errors="replace")
        self._held = ""
        self.stopped = False
        """A stop string was found; the text ends before it."""

    def add(self, token: int, shown: bytes = b"") -> str:
        """The text that a token completes, without the bytes at its beginning that were `shown` before."""
        if self.stopped:
            return ""
        self._held += self._decoder.decode(self._token_bytes[token].removeprefix(shown))
        found = [at for s in self._stop if (at := self._held.find(s)) >= 0]
        if found:
            self.stopped = True
            return self._release(min(found))
        return self._release(len(self._held) - max((_overlap(self._held, s) for s in self._stop), default=0))

    def end(self) -> str:
        """What was held back when the text ends, except bytes of an unfinished character."""
        return "" if self.stopped else self._release(len(self._held))

    def _release(self, length: int) -> str:
        piece, self._held = self._held[:length], self._held[length:]
        return piece


def _overlap(text: str, stop: str) -> int:
    """Length of the longest end of `text` with which `stop` begins."""
    return next((n for n in range(min(len(text), len(stop)), 0, -1) if text.endswith(stop[:n])), 0)
