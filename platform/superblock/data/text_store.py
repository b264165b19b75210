"""The admitted text of a corpus on disk, and how it is split.

The files may change while they are read or later; from here on only this copy counts.
"""

import hashlib
import os
from array import array
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from superblock.data.documents import Account, DataError, character_boundary
from superblock.data.sources import Source

SPLITS = ("train", "val", "test")


@dataclass(frozen=True)
class TextStore:
    """Documents as ranges of one UTF-8 file."""

    path: Path
    begins: NDArray[np.int64]
    ends: NDArray[np.int64]
    draws: NDArray[np.float64]
    """Hash of each document's name as a number in [0, 1): what decides its split."""
    digest: str
    """16 hex digits of the SHA-256 over all documents in order."""
    groups: NDArray[np.int32]
    """Of each document, the index of its group in `group_names`."""
    group_names: tuple[str, ...]
    """First folders of documents' names, such as a package; empty for documents in none."""

    def texts(self, ranges: "Ranges") -> Iterator[str]:
        """The text of each range, one at a time."""
        with self.path.open("rb") as file:
            for begin, end in zip(ranges.begins.tolist(), ranges.ends.tolist(), strict=True):
                file.seek(begin)
                yield file.read(end - begin).decode("utf-8", "surrogatepass")


@dataclass(frozen=True)
class Ranges:
    """The documents of one split, as byte ranges of the store."""

    begins: NDArray[np.int64]
    ends: NDArray[np.int64]
    groups: NDArray[np.int32]
    """As in the store."""

    def __len__(self) -> int:
        return len(self.begins)

    @property
    def num_bytes(self) -> int:
        """Bytes of text."""
        return int((self.ends - self.begins).sum())


def collect(source: Source, path: Path, account: Account) -> TextStore:
    """Writes every document that can be used; counts empty ones, duplicates and unreadable ones.

    An exact duplicate is left out, because a copy on the other side of the split would be training on the test.
    """
    begins, ends, draws, groups = array("q"), array("q"), array("d"), array("i")
    names: dict[str, int] = {}
    seen: set[bytes] = set()
    digest = hashlib.sha256()
    position = 0
    with path.open("wb") as file:
        for document in source.documents(account):
            data = _admit(document.identity, document.text, account)
            if data is None:
                continue
            content = hashlib.sha256(data).digest()
            if content[:16] in seen:
                account.note("duplicate", document.identity)
                continue
            seen.add(content[:16])
            digest.update(content)
            file.write(data)
            begins.append(position)
            position += len(data)
            ends.append(position)
            draws.append(draw(document.key))
            groups.append(names.setdefault(group_of(document.identity), len(names)))
    account.documents, account.num_bytes = len(begins), position
    return TextStore(
        path,
        np.array(begins, np.int64),
        np.array(ends, np.int64),
        np.array(draws),
        digest.hexdigest()[:16],
        np.array(groups, np.int32),
        tuple(names),
    )


def group_of(identity: str) -> str:
    """The first folder of a document's name: its package in a library; empty if it lies in none."""
    folder, slash, _ = identity.partition("/")
    return folder if slash else ""


def _admit(name: str, text: str, account: Account) -> bytes | None:
    """The document as UTF-8, or None if it is left out."""
    if not text.strip():
        account.note("empty", name)
    elif "\0" in text:
        account.fault("binary (holds NUL bytes)", name)
    else:
        try:
            return text.encode()
        except UnicodeEncodeError as error:
            account.fault("half of a surrogate pair", f"{name}, character {error.start:,}")
    return None


def draw(name: str) -> float:
    """A number in [0, 1) that depends on the name alone, equal on every machine."""
    data = f"superblock/{name}".encode("utf-8", "surrogateescape")
    return int.from_bytes(hashlib.blake2b(data, digest_size=8).digest(), "big") / 2**64


def split(store: TextStore, *, val_percent: float, test_percent: float) -> tuple[dict[str, Ranges], str]:
    """Assigns every byte to train, val or test; the second value says how.

    Documents go as a whole to the split that the hash of their name draws. Where that misses a split or gives it less
    than a quarter of its share (few documents, or of very different length), each document is cut instead, near line
    ends: its head to train, then val, then test.

    Raises:
        DataError: if there is too little text for three splits.
    """
    test, val = test_percent / 100, val_percent / 100
    label = np.where(store.draws < test, 2, np.where(store.draws < test + val, 1, 0))
    total = int((store.ends - store.begins).sum())
    parts = {
        name: Ranges(store.begins[label == i], store.ends[label == i], store.groups[label == i])
        for i, name in enumerate(SPLITS)
    }
    shares = {"train": 1 - val - test, "val": val, "test": test}
    if all(parts[name].num_bytes >= shares[name] * total / 4 for name in SPLITS) and total:
        return parts, "whole documents"
    parts = _cut_each(store, val, test)
    if empty := [name for name in SPLITS if not parts[name].num_bytes]:
        raise DataError(
            f"data.source: {len(store.begins):,} documents with {total:,} bytes are too little for a {empty[0]} split of "
            f"{100 * shares[empty[0]]:g} %; give at least 10 kB of text, better 1 MB"
        )
    return parts, "the tail of each document"


def _cut_each(store: TextStore, val: float, test: float) -> dict[str, Ranges]:
    rows: dict[str, list[tuple[int, int, int]]] = {name: [] for name in SPLITS}
    with store.path.open("rb") as file:
        for begin, end, group in zip(store.begins.tolist(), store.ends.tolist(), store.groups.tolist(), strict=True):
            file.seek(begin)
            data = file.read(end - begin)
            first = _line_end(data, round(len(data) * (1 - val - test)), 0)
            second = _line_end(data, round(len(data) * (1 - test)), first)
            for name, (a, b) in zip(SPLITS, ((0, first), (first, second), (second, len(data))), strict=True):
                if a < b:
                    rows[name].append((begin + a, begin + b, group))
    arrays = {name: np.array(found, np.int64).reshape(-1, 3) for name, found in rows.items()}
    return {name: Ranges(found[:, 0], found[:, 1], found[:, 2].astype(np.int32)) for name, found in arrays.items()}


def _line_end(data: bytes, position: int, floor: int) -> int:
    """The end of the last line before `position`, at most 4 kB away; a character boundary if there is none."""
    newline = data.rfind(b"\n", max(floor, position - 4096), position)
    return newline + 1 if newline >= 0 else max(floor, character_boundary(data, position))


def keep(store: TextStore, ranges: Ranges, path: Path) -> None:
    """Writes the raw text of a split, for compressors and for exact byte counts."""
    with store.path.open("rb") as source, path.open("wb") as file:
        for begin, end in zip(ranges.begins.tolist(), ranges.ends.tolist(), strict=True):
            source.seek(begin)
            file.write(source.read(end - begin))
        file.flush()
        os.fsync(file.fileno())
