"""Data sets of the Hugging Face hub, and local folders in its layout, read through `datasets`."""

import hashlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from superblock.data.documents import Account, DataError, Document
from superblock.data.records import first_line, record_text


class HubSource:
    """A document per record, in the data set's order. Streamed, because the text is stored once by ourselves."""

    name = "hub"

    def __init__(self, name: str, *, subset: str | None, split: str, text_field: str, limit: int) -> None:
        self.dataset, self.subset, self.split = name, subset, split
        self.text_field, self.limit = text_field, limit
        self.label = "hub " + "/".join(part for part in (name, subset, split) if part)

    def key(self) -> dict[str, Any]:
        """Name, subset and split; for a local folder also its files. A data set that changes on the hub keeps its key."""
        listing = hashlib.sha256()
        folder = Path(self.dataset).expanduser()
        if folder.is_dir():
            for path in sorted(p for p in folder.rglob("*") if p.is_file()):
                stat = path.stat()
                listing.update(f"{path.relative_to(folder)}\0{stat.st_size}\0{stat.st_mtime_ns}\n".encode())
        name = str(folder.resolve()) if folder.is_dir() else self.dataset
        return {"source": self.name, "name": name, "subset": self.subset, "split": self.split,
                "field": self.text_field, "files": listing.hexdigest()}  # fmt: skip

    def documents(self, account: Account) -> Iterator[Document]:
        """Reads the records.

        Raises:
            DataError: if there is no such data set, subset, split or field, or the network does not answer.
        """
        import datasets

        folder = Path(self.dataset).expanduser()
        name = str(folder) if folder.is_dir() else self.dataset
        try:
            records = iter(datasets.load_dataset(name, self.subset, split=self.split, streaming=True))
            first = next(records, None)
        except Exception as error:  # datasets raises anything: its own, fsspec's, the network's
            raise DataError(self._explain(error)) from error
        if first is None:
            raise DataError(f"data.name={self.dataset}: split {self.split} holds no record")
        if self.text_field not in first:
            raise DataError(
                f"data.text_field={self.text_field}: the records of {self.dataset} have: {', '.join(first)}"
            )
        number = 0
        while first is not None:
            yield from record_text(f"{self.split}:{number}", first[self.text_field], self.limit, account)
            number += 1
            try:
                first = next(records, None)
            except Exception as error:
                raise DataError(
                    f"data.name={self.dataset}: reading stopped after record {number:,}: {first_line(error)}"
                ) from error

    def _explain(self, error: Exception) -> str:
        text = first_line(error)
        if type(error).__name__ == "EmptyDatasetError" or isinstance(error, FileNotFoundError):
            text = "no such folder here, and no such data set can be reached on the hub"
        subset = f" data.subset={self.subset}" if self.subset else ""
        return f"data.name={self.dataset}{subset} data.split={self.split}: {text}"
