"""The corpus that needs no network: the source text of the running interpreter's standard library."""

import hashlib
import os
import sys
import sysconfig
import tokenize
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from superblock.data.documents import Account, DataError, Document, cut

# tests, what users installed, bytecode, and the folder of build settings
EXCLUDED = {"test", "tests", "idle_test", "site-packages", "dist-packages", "__pycache__", "lib-dynload"}
MACHINE_MADE = ("_sysconfigdata", "config-")  # differ from machine to machine with one version


class EmbeddedSource:
    """A document per file, in the order of their paths; line ends are made `\\n`, as Python reads them."""

    name = "embedded"

    def __init__(self, limit: int) -> None:
        self.limit = limit
        self.root = Path(sysconfig.get_path("stdlib"))
        self.version = f"{sys.implementation.name} {'.'.join(map(str, sys.version_info[:3]))}"
        self.label = f"standard library of {self.version}, without tests"
        self._files = sorted(self._list())
        if len(self._files) < 100:
            raise DataError(
                f"data=embedded: this interpreter keeps {len(self._files)} source files of its standard library in {self.root}, "
                "which is no corpus; use data=text data.path=<folder> instead"
            )

    def key(self) -> dict[str, Any]:
        """Changes whenever a file does; reads no text."""
        listing = hashlib.sha256()
        for relative in self._files:
            stat = (self.root / relative).stat()
            listing.update(f"{relative}\0{stat.st_size}\0{stat.st_mtime_ns}\n".encode())
        return {"source": self.name, "version": self.version, "files": listing.hexdigest()}

    def documents(self, account: Account) -> Iterator[Document]:
        """Reads every file with the encoding it declares."""
        for relative in self._files:
            try:
                with tokenize.open(self.root / relative) as file:
                    text = file.read()
            except (OSError, SyntaxError, UnicodeDecodeError) as error:
                account.fault(f"cannot be read ({type(error).__name__})", relative)
                continue
            yield from cut(relative, text, self.limit, account)

    def _list(self) -> Iterator[str]:
        for folder, subfolders, files in os.walk(self.root):
            subfolders[:] = [name for name in subfolders if name not in EXCLUDED and not name.startswith(MACHINE_MADE)]
            for name in files:
                if name.endswith(".py") and not name.startswith(MACHINE_MADE):
                    yield (Path(folder) / name).relative_to(self.root).as_posix()
