"""Which documents a configuration means."""

from collections.abc import Iterator
from typing import Any, Protocol

from superblock.config.data import DataConfig
from superblock.data.documents import Account, Document
from superblock.data.embedded import EmbeddedSource
from superblock.data.hub import HubSource
from superblock.data.text_files import TextSource


class Source(Protocol):
    """Where documents come from."""

    name: str
    label: str
    """What people read: `standard library of cpython 3.11.7, without tests`."""

    def key(self) -> dict[str, Any]:
        """What decides whether the text is still the one that was prepared; reads no text."""

    def documents(self, account: Account) -> Iterator[Document]:
        """The documents in a fixed order; whatever is left out is counted in the account."""


def open_source(config: DataConfig) -> Source:
    """The source that `data.source` names.

    Raises:
        DataError: naming the path or data set, if there is nothing to read.
    """
    limit = config.max_document_bytes
    if config.source == "text":
        assert config.path is not None
        return TextSource(config.path, text_field=config.text_field, limit=limit)
    if config.source == "hub":
        assert config.name is not None
        return HubSource(
            config.name, subset=config.subset, split=config.split, text_field=config.text_field, limit=limit
        )
    return EmbeddedSource(limit)
