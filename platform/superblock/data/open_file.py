"""Opens files by their ending, compressed or not, as streams of bytes."""

import bz2
import gzip
import io
import lzma
import zipfile
import zlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path, PurePosixPath
from typing import Any, BinaryIO, cast

TEXT = (".txt", ".md", ".py")
RECORDS = (".jsonl", ".parquet")
COMPRESSED = (".gz", ".bz2", ".xz", ".zst", ".zip")
ACCEPTED = "files that end in .txt .md .py .jsonl .parquet, also with .gz .bz2 .xz .zst, or in .zip archives"
READ_ERRORS = (OSError, EOFError, lzma.LZMAError, zlib.error, zipfile.BadZipFile, NotImplementedError, RuntimeError)
"""What a file that is damaged, encrypted or out of reach makes its reader raise."""


def kind(path: str) -> str | None:
    """`.txt`, `.md`, `.py`, `.jsonl`, `.parquet` or `.zip`; None for a file that is no text of ours."""
    name = PurePosixPath(path.lower())
    ending = PurePosixPath(name.stem).suffix if name.suffix in COMPRESSED[:-1] else name.suffix
    return ending if ending in (*TEXT, *RECORDS, ".zip") else None


@contextmanager
def open_bytes(path: Path) -> Iterator[BinaryIO]:
    """A binary stream of what the file holds, decompressed piece by piece."""
    ending = path.suffix.lower()
    if ending == ".zst":
        # comes with datasets; the standard library reads zstd from Python 3.14 on
        import pyarrow  # type: ignore[import-untyped]

        with pyarrow.input_stream(str(path), compression="zstd") as stream:
            yield cast(BinaryIO, io.BufferedReader(stream))  # arrow's own cannot read lines
        return
    openers: dict[str, Callable[..., Any]] = {".gz": gzip.open, ".bz2": bz2.open, ".xz": lzma.open}
    with openers.get(ending, open)(path, "rb") as stream:
        yield stream


def zip_members(path: Path) -> Iterator[tuple[str, str]]:
    """(name, kind) of the text files in an archive, sorted by name."""
    with zipfile.ZipFile(path) as archive:
        for name in sorted(archive.namelist()):
            if (ending := kind(name)) and ending != ".zip" and not name.lower().endswith(COMPRESSED):
                yield name, ending


@contextmanager
def open_member(path: Path, name: str) -> Iterator[BinaryIO]:
    """A binary stream of one file of an archive."""
    with zipfile.ZipFile(path) as archive, archive.open(name) as stream:
        yield cast(BinaryIO, stream)
