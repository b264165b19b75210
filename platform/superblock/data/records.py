"""Records: JSON lines and the rows of tables, a document each, in bounded memory and with the place of every fault."""

import io
import json
from collections.abc import Iterator
from typing import BinaryIO

from superblock.data.documents import Account, Document, cut


def json_lines(name: str, stream: BinaryIO, field: str, limit: int, account: Account) -> Iterator[Document]:
    """A document per line; faults are named by file and line. A line may have twice the bytes of the longest document."""
    number = 0
    while line := stream.readline(2 * limit):
        number += 1
        where = f"{name}:{number}"
        if len(line) >= 2 * limit and not line.endswith(b"\n"):
            while (skipped := stream.readline(2 * limit)) and not skipped.endswith(b"\n"):
                pass
            account.fault("line longer than twice data.max_document_bytes", where)
            continue
        if not line.strip():
            continue
        try:
            record = json.loads(line)
        except (ValueError, RecursionError) as error:
            account.fault("malformed JSON", f"{where}: {error}")
            continue
        if not isinstance(record, dict) or field not in record:
            fields = ", ".join(list(record)[:8]) if isinstance(record, dict) else type(record).__name__
            account.fault(f"no field '{field}' (data.text_field)", f"{where} has: {fields}")
        elif not isinstance(record[field], str):
            account.fault(f"field '{field}' is no text", f"{where}: {type(record[field]).__name__}")
        else:
            yield from cut(where, record[field], limit, account)


def record_text(where: str, text: object, limit: int, account: Account) -> Iterator[Document]:
    """The documents of one record's text field."""
    if isinstance(text, str):
        yield from cut(where, text, limit, account)
    else:
        account.fault("record without text", f"{where}: {type(text).__name__}")


def parquet(name: str, stream: BinaryIO, field: str, limit: int, account: Account) -> Iterator[Document]:
    """A document per row of a table, a batch of rows at a time."""
    import pyarrow  # type: ignore[import-untyped]
    import pyarrow.parquet  # type: ignore[import-untyped]

    if not stream.seekable():  # zstd outside, which nobody needs around a format that is compressed inside
        stream = io.BytesIO(stream.read())
    try:
        table = pyarrow.parquet.ParquetFile(stream)
    except pyarrow.ArrowException as error:
        account.fault("damaged parquet", f"{name}: {first_line(error)}")
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
        account.fault("damaged parquet", f"{name}, after row {row:,}: {first_line(error)}")


def first_line(error: Exception) -> str:
    """What an error says, in one line."""
    return next(iter(str(error).splitlines()), "") or type(error).__name__
