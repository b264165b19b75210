"""The user's own files: a document per .txt, .md and .py file, or per record of .jsonl and .parquet files.

They are read here and with `pyarrow` rather than through `datasets`, whose text reader takes a whole file into memory and
whose JSON reader cannot say which line is bad.
"""

import glob
import hashlib
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any, BinaryIO

from superblock.data.documents import Account, DataError, Document, decode_stream
from superblock.data.open_file import ACCEPTED, READ_ERRORS, kind, open_bytes, open_member, zip_members
from superblock.data.records import json_lines, parquet

MAGIC = "*?["
TWICE = "link to a folder that is read already"


class TextSource:
    """Files, a folder or a glob, in the order of their paths relative to where the search began."""

    name = "text"

    def __init__(self, path: str, *, text_field: str, limit: int) -> None:
        self.path, self.text_field, self.limit = path, text_field, limit
        self.label = f"text of {path}"
        self.search = Account()
        self.root, self._files = self._find(Path(path).expanduser())

    def key(self) -> dict[str, Any]:
        """Changes whenever a file does; reads no text."""
        listing = hashlib.sha256()
        for relative in self._files:
            try:
                stat = (self.root / relative).stat()
                listing.update(f"{relative}\0{stat.st_size}\0{stat.st_mtime_ns}\n".encode("utf-8", "surrogateescape"))
            except OSError:
                listing.update(f"{relative}\0-\n".encode("utf-8", "surrogateescape"))
        path = os.path.abspath(os.path.expanduser(self.path))
        return {"source": self.name, "path": path, "field": self.text_field, "files": listing.hexdigest()}

    def documents(self, account: Account) -> Iterator[Document]:
        """Reads one file after the other; what cannot be read goes into the account."""
        for reason, count in self.search.counts.items():
            report = account.fault if reason == TWICE else account.note
            for _ in range(count):
                report(reason, self.search.examples[reason])
        for relative in self._files:
            try:
                yield from self._file(relative, self.root / relative, account)
            except READ_ERRORS as error:
                account.fault(f"cannot be read ({type(error).__name__})", f"{relative}: {error}")

    def _file(self, relative: str, path: Path, account: Account) -> Iterator[Document]:
        ending = kind(relative)
        if ending == ".zip":
            for member, inner in zip_members(path):
                with open_member(path, member) as stream:
                    yield from self._stream(f"{relative}/{member}", inner, stream, account)
        else:
            with open_bytes(path) as stream:
                yield from self._stream(relative, ending or "", stream, account)

    def _stream(self, name: str, ending: str, stream: BinaryIO, account: Account) -> Iterator[Document]:
        if ending == ".jsonl":
            return json_lines(name, stream, self.text_field, self.limit, account)
        if ending == ".parquet":
            return parquet(name, stream, self.text_field, self.limit, account)
        return decode_stream(name, stream, self.limit, account)

    def _find(self, path: Path) -> tuple[Path, list[str]]:
        """The folder that names are relative to, and the sorted names of the files."""
        if path.is_dir():
            root, found = path, list(self._walk(path))
        elif path.exists():
            if kind(path.name) is None:
                raise DataError(f"data.path={self.path}: cannot tell what this file is; give {ACCEPTED}")
            root, found = path.parent, [path.name]
        elif any(sign in str(path) for sign in MAGIC):
            parts = path.parts
            plain = next(i for i, part in enumerate(parts) if any(sign in part for sign in MAGIC))
            root = Path(*parts[:plain]) if plain else Path()
            found = [
                m for m in glob.glob(str(Path(*parts[plain:])), root_dir=root, recursive=True) if (root / m).is_file()
            ]
            found = [Path(match).as_posix() for match in found if self._accept(match)]
        elif path.is_symlink():
            raise DataError(f"data.path={self.path}: is a link that leads nowhere or to itself")
        else:
            raise DataError(f"data.path={self.path}: there is no such file or folder (looked from {Path.cwd()})")
        if not found:
            ignored = f"; other files found: {self.search.summary()}" if self.search.counts else ""
            raise DataError(f"data.path={self.path}: nothing to read here; put in {ACCEPTED}{ignored}")
        return root, sorted(found)

    def _walk(self, root: Path) -> Iterator[str]:
        """Files below a folder; links are followed, but no folder is entered twice, so loops end."""
        seen = {os.path.realpath(root)}
        for folder, subfolders, files in os.walk(root, followlinks=True):
            for name in sorted(subfolders):
                real = os.path.realpath(os.path.join(folder, name))
                if name.startswith("."):
                    subfolders.remove(name)
                elif real in seen:
                    subfolders.remove(name)
                    self.search.note(TWICE, os.path.join(folder, name))
                seen.add(real)
            for name in files:
                relative = (Path(folder) / name).relative_to(root).as_posix()
                if self._accept(relative):
                    yield relative

    def _accept(self, relative: str) -> bool:
        if os.path.basename(relative).startswith("."):
            return False
        if kind(relative) is None:
            self.search.note("file of another kind", relative)
            return False
        return True
