"""Where text comes from and how it becomes batches."""

from collections.abc import Iterator
from dataclasses import dataclass

from superblock.config.fields import knob


@dataclass
class DataConfig:
    """A corpus, its tokenizer and the way sequences are cut."""

    source: str = knob(
        "embedded",
        "embedded: this interpreter's standard library; text: your files; hub: a data set of the hub",
        choices=("embedded", "text", "hub"),
    )
    path: str | None = knob(None, "data=text: file, folder or glob of .txt .md .py .jsonl .parquet, compressed or not")
    name: str | None = knob(None, "data=hub: name of the data set, or a local folder in the hub's layout")
    subset: str | None = knob(None, "data=hub: configuration of the data set")
    split: str = knob("train", "data=hub: split to read")
    text_field: str = knob("text", "field of .jsonl, .parquet and hub records that holds the text")
    on_error: str = knob(
        "skip", "a document that cannot be read: skip counts and reports it, raise stops", choices=("skip", "raise")
    )
    max_document_bytes: int = knob(
        16_000_000, "longer documents are cut into pieces of this size, and counted", minimum=1024
    )
    vocab_size: int = knob(
        4096, "size of the byte-level BPE trained on the training split", minimum=320, maximum=1_000_000
    )
    sequence_length: int = knob(256, "tokens per training sequence", minimum=2)
    val_percent: float = knob(
        2.0, "share of documents for validation, chosen by a hash of their path", above=0, maximum=40
    )
    test_percent: float = knob(
        5.0, "share of documents for the test, chosen by a hash of their path", above=0, maximum=40
    )
    cache_dir: str | None = knob(None, "where tokenizers and token files live; null is the user's cache directory")
    workers: int = knob(0, "processes that load batches; 0 loads in the training process", minimum=0, maximum=64)

    def problems(self) -> Iterator[tuple[str, str]]:
        if self.source == "text" and not self.path:
            yield "path", "data=text needs data.path=<file, folder or glob>"
        if self.path and self.source != "text":
            yield "path", "has an effect only with data=text"
        if self.name and self.source != "hub":
            yield "name", "has an effect only with data=hub"
        if self.source == "hub" and not self.name:
            yield "name", "data=hub needs data.name=<data set>"
        if self.vocab_size % 64:
            yield "vocab_size", "must be a multiple of 64"
