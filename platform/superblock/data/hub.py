"""Data sets of the Hugging Face hub, local folders in its layout, and tables: what is read through `datasets`."""

import hashlib
import io
from collections.abc import Iterator
from pathlib import Path
from typing import Any, BinaryIO

from superblock.data.documents import Account, DataError, Document, cut


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
                    f"data.name={self.dataset}: reading stopped after record {number:,}: {_first_line(error)}"
                ) from error

    def _explain(self, error: Exception) -> str:
        text = _first_line(error)
        if type(error).__name__ == "EmptyDatasetError" or isinstance(error, FileNotFoundError):
            text = "no such folder here, and no such data set can be reached on the hub"
        subset = f" data.subset={self.subset}" if self.subset else ""
        return f"data.name={self.dataset}{subset} data.split={self.split}: {text}"


def record_text(where: str, text: object, limit: int, account: Account) -> Iterator[Document]:
    """The documents of one record's text field."""
    if isinstance(text, str):
        yield from cut(where, text, limit, account)
    else:
        account.fault("record without text", f"{where}: {type(text).__name__}")


def parquet(name: str, stream: BinaryIO, field: str, limit: int, account: Account) -> Iterator[Document]:
    """A document per row of a table, a batch of rows at a time."""
    import pyarrow
    import pyarrow.parquet

    if not stream.seekable():  # zstd outside, which nobody needs around a format that is compressed inside
        stream = io.BytesIO(stream.read())
    try:
        table = pyarrow.parquet.ParquetFile(stream)
    except pyarrow.ArrowException as error:
        account.fault("damaged parquet", f"{name}: {_first_line(error)}")
        return
    columns = table.schema_arrow.names
    if field not in columns:
        account.fault(f"no field '{field}' (data.text_field)", f"{name} has: {', '.join(columns[:8])}")
        return
    row = 0
    try:
        for batch in table.iter_batches(batch_size=64, columns=[field]):
            for text in batch.column(0).to_pylist():
                row += 1
                yield from record_text(f"{name}:{row}", text, limit, account)
    except pyarrow.ArrowException as error:
        account.fault("damaged parquet", f"{name}, after row {row:,}: {_first_line(error)}")


def _first_line(error: Exception) -> str:
    return next(iter(str(error).splitlines()), "") or type(error).__name__
