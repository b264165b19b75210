"""A document, what can be wrong with one, and the account of everything that was left out."""

from collections.abc import Iterator
from dataclasses import asdict, dataclass, field
from typing import Any, BinaryIO

from superblock.config.fields import ConfigError


class DataError(ConfigError):
    """The text cannot be used. Names the file and what to do."""


@dataclass(frozen=True)
class Document:
    """A text and its name: a path relative to the corpus, the same on every machine, plus a record or piece number."""

    identity: str
    text: str
    origin: str = ""
    """The document this is a piece of; pieces of one document stay in one split."""

    @property
    def key(self) -> str:
        """What decides the split."""
        return self.origin or self.identity


@dataclass
class Account:
    """What was read and what was left out, with one example of each reason."""

    strict: bool = False
    """`data.on_error=raise`: what cannot be read stops the preparation."""
    documents: int = 0
    num_bytes: int = 0
    counts: dict[str, int] = field(default_factory=dict)
    examples: dict[str, str] = field(default_factory=dict)

    def note(self, reason: str, where: str) -> None:
        """Counts something that is no fault, such as a duplicate."""
        self.counts[reason] = self.counts.get(reason, 0) + 1
        self.examples.setdefault(reason, where)

    def fault(self, reason: str, where: str) -> None:
        """Counts something that cannot be read.

        Raises:
            DataError: if the account is strict.
        """
        if self.strict:
            raise DataError(f"{where}: {reason}; mend or remove it, or let data.on_error=skip count and leave it out")
        self.note(reason, where)

    def lines(self) -> Iterator[str]:
        """A line per reason: how often, and the first example."""
        for reason, count in sorted(self.counts.items()):
            yield f"{count:,} x {reason}, first: {self.examples[reason]}"

    def summary(self) -> str:
        """One clause, such as `left out: 3 duplicate, 1 empty`; empty if nothing was left out."""
        return ", ".join(f"{count:,} {reason}" for reason, count in sorted(self.counts.items()))

    def as_json(self) -> dict[str, Any]:
        """For the corpus file."""
        return asdict(self)


def character_boundary(data: bytes, position: int) -> int:
    """The last position up to `position` at which no UTF-8 character is cut; characters have at most 4 bytes."""
    if position >= len(data):
        return len(data)
    for back in range(min(4, position + 1)):
        if data[position - back] & 0xC0 != 0x80:
            return position - back
    return position  # not UTF-8 at all


def cut(identity: str, text: str, limit: int, account: Account) -> Iterator[Document]:
    """Yields the document whole, or in pieces of at most `limit` bytes."""
    if len(text) * 4 <= limit or len(data := text.encode("utf-8", "surrogatepass")) <= limit:
        yield Document(identity, text)
        return
    account.note("cut into pieces of data.max_document_bytes", identity)
    begin = number = 0
    while begin < len(data):
        end = begin + max(1, character_boundary(data[begin : begin + limit + 1], limit))
        number += 1
        yield Document(f"{identity}#{number}", data[begin:end].decode("utf-8", "surrogatepass"), identity)
        begin = end


def decode_stream(identity: str, stream: BinaryIO, limit: int, account: Account) -> Iterator[Document]:
    """Reads UTF-8 text in bounded memory: pieces of at most `limit` bytes, each valid or counted as a fault by itself."""
    offset = number = 0
    rest = b""
    while data := rest + stream.read(limit + 1 - len(rest)):
        number += 1
        end = len(data) if len(data) <= limit else max(1, character_boundary(data, limit))
        whole = number == 1 and len(data) <= limit
        if len(data) > limit and number == 1:
            account.note("cut into pieces of data.max_document_bytes", identity)
        name = identity if whole else f"{identity}#{number}"
        if (text := _decode(data[:end], name, offset, account)) is not None:
            yield Document(name, text, "" if whole else identity)
        offset += end
        rest = data[end:]


def _decode(data: bytes, name: str, offset: int, account: Account) -> str | None:
    if b"\0" in data:
        account.fault("binary (holds NUL bytes)", f"{name}, byte {offset + data.index(0):,}")
        return None
    try:
        return data.decode("utf-8-sig" if offset == 0 else "utf-8")
    except UnicodeDecodeError as error:
        account.fault("not UTF-8", f"{name}, byte {offset + error.start:,}")
        return None
