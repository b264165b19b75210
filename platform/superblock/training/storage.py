"""torch.distributed.checkpoint's files, written without absolute paths and read without running their pickle.

A checkpoint's `.metadata` is a pickle, and torch reads it with `pickle.load`: whoever can write it runs code in the
process that loads it, and a checksum beside it does not help. Here it is read by an unpickler that knows the dozen
plain types such a file needs and refuses everything else. Tensors are read by torch with `weights_only=True`; objects,
which torch would unpickle too, are neither written nor accepted.
"""

import contextlib
import pickle
import warnings
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
import torch.distributed.checkpoint as dcp
from torch import Tensor
from torch.distributed.checkpoint.api import CheckpointException
from torch.distributed.checkpoint.filesystem import FileSystemReader, FileSystemWriter
from torch.distributed.checkpoint.metadata import (
    _MEM_FORMAT_ENCODING,
    Metadata,
    StorageMeta,
    TensorStorageMetadata,
)

from superblock.training import registered
from superblock.training.manifest import WEIGHTS, CheckpointError

_METADATA = "torch.distributed.checkpoint.metadata"
_TYPES = {
    ("torch", "Size"),
    ("torch.serialization", "_get_layout"),
    ("torch.distributed.checkpoint.filesystem", "_StorageInfo"),
    *((_METADATA, name) for name in ("Metadata", "MetadataIndex", "StorageMeta", "TensorStorageMetadata")),
    *((_METADATA, name) for name in ("TensorProperties", "ChunkStorageMetadata", "_MEM_FORMAT_ENCODING")),
    *(("torch", str(value).removeprefix("torch.")) for value in vars(torch).values() if isinstance(value, torch.dtype)),
}


class _PlainUnpickler(pickle.Unpickler):
    def find_class(self, module: str, name: str) -> Any:
        if (module, name) == ("builtins", "getattr"):
            return _member
        if (module, name) not in _TYPES:
            raise CheckpointError(
                f"it asks for {module}.{name}, which no checkpoint needs; it may be malicious and was not loaded"
            )
        return super().find_class(module, name)


def _member(owner: object, name: str) -> _MEM_FORMAT_ENCODING:
    """`getattr` for the one enumeration in such a file: Python 3.11.0 to 3.11.3 pickles its members as attributes."""
    if owner is not _MEM_FORMAT_ENCODING or name not in _MEM_FORMAT_ENCODING.__members__:
        raise CheckpointError(f"it asks for an attribute {name} of {owner}; it may be malicious and was not loaded")
    return _MEM_FORMAT_ENCODING[name]


class _Writer(FileSystemWriter):
    def storage_meta(self) -> StorageMeta | None:
        return None  # would hold the absolute path, as a type that other operating systems cannot create


class _Reader(FileSystemReader):
    def __init__(self, path: Path, metadata: Metadata) -> None:
        super().__init__(path)
        self._metadata = metadata

    def read_metadata(self, *args: Any, **kwargs: Any) -> Metadata:
        self._metadata.storage_meta = StorageMeta(load_id=self.load_id)
        return self._metadata


def read_metadata(path: Path, files: Iterable[str]) -> Metadata:
    """The names, shapes and places of a checkpoint's tensors.

    Args:
        files: names of the files that belong to the checkpoint; a place outside of them is refused.

    Raises:
        CheckpointError: if it holds anything but tensors, or is not readable.
    """
    if WEIGHTS in set(files):
        return registered.read_metadata(path)
    try:
        with (path / ".metadata").open("rb") as file:
            metadata = _PlainUnpickler(file).load()
        assert isinstance(metadata, Metadata), type(metadata)
        assert all(isinstance(item, TensorStorageMetadata) for item in metadata.state_dict_metadata.values())
        places = {place.relative_path for place in metadata.storage_data.values()}
    except CheckpointError as error:
        raise CheckpointError(f"{path}/.metadata: {error}") from None
    except Exception as error:  # a pickle can fail in any way
        raise CheckpointError(f"{path}/.metadata is not a list of tensors ({type(error).__name__}: {error})") from None
    if outside := places - set(files):
        raise CheckpointError(f"{path}/.metadata points to {min(outside)}, which is no file of the checkpoint")
    return metadata


def entries(metadata: Metadata, prefix: str) -> dict[str, TensorStorageMetadata]:
    """Shapes and dtypes of the tensors below a prefix, by the rest of their names."""
    items = metadata.state_dict_metadata.items()
    return {
        name.removeprefix(prefix): item
        for name, item in items
        if name.startswith(prefix) and isinstance(item, TensorStorageMetadata)
    }


def write_tensors(path: Path, tensors: dict[str, Tensor]) -> None:
    """Writes a flat dictionary of plain and sharded tensors; every process calls it, and writes and syncs its own part.

    Raises:
        OSError, RuntimeError: on every process, what one of them met.
    """
    planner = dcp.DefaultSavePlanner(flatten_state_dict=False, flatten_sharded_tensors=False)
    with _first_cause():
        dcp.save(tensors, storage_writer=_Writer(path), planner=planner, no_dist=not dist.is_initialized())


def read_tensors(path: Path, metadata: Metadata, tensors: dict[str, Tensor]) -> None:
    """Fills the given tensors in place, each process its own parts, however many processes wrote them.

    Raises:
        CheckpointError: on every process, if one cannot read its parts.
    """
    if (path / WEIGHTS).is_file():
        registered.read_tensors(path, tensors)
        return
    planner = dcp.DefaultLoadPlanner(flatten_state_dict=False, flatten_sharded_tensors=False)
    try:
        with _first_cause():
            dcp.load(
                tensors, storage_reader=_Reader(path, metadata), planner=planner, no_dist=not dist.is_initialized()
            )
    except Exception as error:
        raise CheckpointError(f"{path} cannot be read ({type(error).__name__}: {error})") from error


@contextlib.contextmanager
def _first_cause() -> Iterator[None]:
    """Raises what went wrong first instead of torch's CheckpointException, which is no Exception and pages long."""
    try:
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", "torch.distributed is disabled", UserWarning)
            yield
    except CheckpointException as error:
        cause, _ = next(iter(error.failures.values()))
        raise cause from error
