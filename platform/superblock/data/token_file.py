"""The tokens of one split in a memory-mapped file: written once, opened in no time, read by many processes."""

import json
import os
import time
from array import array
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from tokenizers import Tokenizer

from superblock.data.text_store import Ranges, TextStore
from superblock.data.tokenizer import end_of_text, slices

BATCH_BYTES = 4_000_000  # text that is tokenized at once; bounds memory


@dataclass(frozen=True)
class TokenFile:
    """A stream of tokens in which every document is `[end_of_text]` and then its tokens.

    Pickles as its path, so that worker processes open the file themselves.
    """

    folder: Path
    name: str

    @cached_property
    def _meta(self) -> dict[str, Any]:
        meta: dict[str, Any] = json.loads((self.folder / f"{self.name}.json").read_text("utf-8"))
        return meta

    @cached_property
    def tokens(self) -> NDArray[np.uint16] | NDArray[np.uint32]:
        """[N] uint16, or uint32 for vocabularies above 65,536; memory-mapped, read-only."""
        return np.memmap(self.folder / f"{self.name}.bin", dtype=str(self._meta["dtype"]), mode="r")

    @cached_property
    def doc_starts(self) -> NDArray[np.int64]:
        """[D] index of each document's end-of-text token."""
        starts: NDArray[np.int64] = np.load(self.folder / f"{self.name}.starts.npy", mmap_mode="r")
        return starts

    @cached_property
    def groups(self) -> NDArray[np.int32]:
        """[D] index of each document's group in `group_names`."""
        groups: NDArray[np.int32] = np.load(self.folder / f"{self.name}.groups.npy", mmap_mode="r")
        return groups

    @property
    def group_names(self) -> tuple[str, ...]:
        """First folders of documents, such as packages; empty for documents in none."""
        return tuple(self._meta["groups"])

    @property
    def num_bytes(self) -> int:
        """Bytes of the raw text."""
        return int(self._meta["num_bytes"])

    @property
    def end_of_text(self) -> int:
        """Id of the token that begins every document."""
        return int(self._meta["end_of_text"])

    @property
    def vocab_size(self) -> int:
        """Every token id is below this."""
        return int(self._meta["vocab_size"])

    def __len__(self) -> int:
        return int(self._meta["num_tokens"])

    def __getstate__(self) -> dict[str, object]:
        return {"folder": self.folder, "name": self.name}

    def whole(self) -> bool:
        """Whether the files are there and as long as they were written."""
        try:
            width = np.dtype(str(self._meta["dtype"])).itemsize
            size = (self.folder / f"{self.name}.bin").stat().st_size
            return size == width * len(self) and len(self.doc_starts) == len(self.groups) == int(
                self._meta["documents"]
            )
        except (OSError, ValueError, KeyError, TypeError):
            return False


def write(store: TextStore, ranges: Ranges, tokenizer: Tokenizer, folder: Path, name: str) -> TokenFile:
    """Tokenizes a split, in the order of its documents, with all cores and in bounded memory, behind a progress bar."""
    from rich.console import Console
    from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn

    mark = end_of_text(tokenizer)
    vocab_size = tokenizer.get_vocab_size()
    dtype = np.dtype(np.uint16 if vocab_size <= 1 << 16 else np.uint32)
    starts, total, began = array("q"), 0, time.perf_counter()
    columns = (TextColumn("{task.description}"), BarColumn(), TextColumn("{task.fields[rate]}"), TimeRemainingColumn())
    console = Console(stderr=True)
    with (
        Progress(*columns, console=console, transient=True, disable=not console.is_terminal) as bar,
        (folder / f"{name}.bin").open("wb") as file,
    ):
        task = bar.add_task(f"tokenizing {name}", total=ranges.num_bytes, rate="")
        for texts in _batches(store.texts(ranges)):
            pieces = [list(slices(text)) for text in texts]
            encoded = iter(
                tokenizer.encode_batch_fast([p for parts in pieces for p in parts], add_special_tokens=False)
            )
            for parts in pieces:
                ids = [mark]
                for _ in parts:
                    ids += next(encoded).ids
                starts.append(total)
                total += len(ids)
                file.write(np.array(ids, dtype).tobytes())
            rate = f"{total / (time.perf_counter() - began):,.0f} tokens/s"
            bar.update(task, advance=sum(len(text.encode()) for text in texts), rate=rate)
        file.flush()
        os.fsync(file.fileno())
    np.save(folder / f"{name}.starts.npy", np.array(starts, np.int64))
    np.save(folder / f"{name}.groups.npy", ranges.groups)
    meta = {"num_tokens": total, "num_bytes": ranges.num_bytes, "documents": len(starts), "dtype": dtype.name,
            "vocab_size": vocab_size, "end_of_text": mark, "groups": store.group_names}  # fmt: skip
    (folder / f"{name}.json").write_text(json.dumps(meta), "utf-8")
    return TokenFile(folder, name)


def _batches(texts: Iterator[str]) -> Iterator[list[str]]:
    batch: list[str] = []
    size = 0
    for text in texts:
        batch.append(text)
        size += len(text)
        if size >= BATCH_BYTES:
            yield batch
            batch, size = [], 0
    if batch:
        yield batch
