"""From documents to token files: prepared once under a fingerprint of data and settings, then opened in no time."""

import hashlib
import json
import os
import shutil
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
from filelock import FileLock, Timeout
from numpy.typing import NDArray
from tokenizers import Tokenizer

from superblock.config.data import DataConfig
from superblock.config.folders import user_cache
from superblock.data import text_store, token_file, tokenizer
from superblock.data.documents import Account, DataError
from superblock.data.sources import Source, open_source
from superblock.data.text_store import SPLITS
from superblock.data.token_file import TokenFile

FORMAT = 3  # raise it when prepared files change their meaning
Report = Callable[[str], None]


@dataclass(frozen=True)
class Corpus:
    """A prepared corpus in a folder: tokenizer, token files, the raw text of the val and test splits, and `corpus.json`."""

    folder: Path

    @cached_property
    def meta(self) -> dict[str, Any]:
        """What `corpus.json` says."""
        meta: dict[str, Any] = json.loads((self.folder / "corpus.json").read_text("utf-8"))
        return meta

    @property
    def name(self) -> str:
        """The kind of source: embedded, text or hub."""
        return str(self.meta["name"])

    @property
    def fingerprint(self) -> str:
        """16 hex digits of source and settings."""
        return str(self.meta["fingerprint"])

    @property
    def digest(self) -> str:
        """16 hex digits of the text: bits per byte compare only where it is the same."""
        return str(self.meta["digest"])

    @property
    def description(self) -> str:
        """One line: source, digest, documents, bytes, tokens, what was left out."""
        return str(self.meta["description"])

    @property
    def tokenizer_path(self) -> Path:
        """The tokenizer as `tokenizers` saves it."""
        return self.folder / "tokenizer.json"

    @cached_property
    def tokenizer(self) -> Tokenizer:
        """The byte-level BPE."""
        return tokenizer.load(self.tokenizer_path)

    @cached_property
    def end_of_text(self) -> int:
        """Id of the token that begins every document."""
        return tokenizer.end_of_text(self.tokenizer)

    @cached_property
    def token_bytes(self) -> NDArray[np.int64]:
        """[V] bytes of text behind each token."""
        return tokenizer.token_bytes(self.tokenizer)

    @cached_property
    def train(self) -> TokenFile:
        """Training split."""
        return TokenFile(self.folder, "train")

    @cached_property
    def val(self) -> TokenFile:
        """Validation split."""
        return TokenFile(self.folder, "val")

    @cached_property
    def test(self) -> TokenFile:
        """Test split."""
        return TokenFile(self.folder, "test")

    def text_path(self, split: str) -> Path:
        """The raw text of the val or test split, documents one after the other."""
        return self.folder / f"{split}.txt"

    def documents(self, split: str) -> Iterator[str]:
        """The texts of the val or test split, one at a time."""
        part: TokenFile = getattr(self, split)
        ends = np.append(part.doc_starts[1:], len(part))
        with self.text_path(split).open("rb") as file:
            for begin, end in zip(part.doc_starts.tolist(), ends.tolist(), strict=True):
                yield file.read(int(self.token_bytes[part.tokens[begin:end]].sum())).decode("utf-8")

    def reference_points(self, split: str = "test") -> dict[str, float]:
        """Bits per byte that simpler models need for a split, see `reference_points`."""
        from superblock.data.reference_points import reference_points

        return reference_points(self, split)

    def whole(self) -> bool:
        """Whether every file is there and as long as it was written."""
        try:
            sound = hashlib.sha256(self.tokenizer_path.read_bytes()).hexdigest() == self.meta["tokenizer_sha256"]
            texts = all(
                self.text_path(name).stat().st_size == getattr(self, name).num_bytes for name in ("val", "test")
            )
            return sound and texts and all(TokenFile(self.folder, name).whole() for name in SPLITS)
        except (OSError, ValueError, KeyError):
            return False


def prepare(config: DataConfig, *, report: Report = print) -> Corpus:
    """Opens the corpus of a configuration; prepares it first, with a line per phase, if that has not been done.

    Two processes may prepare the same corpus at once: one works, the other waits. An interrupted preparation leaves
    nothing that is taken for a corpus.

    Raises:
        DataError: if there is no text, or too little, or (`data.on_error=raise`) a document cannot be read.
    """
    source = open_source(config)
    fingerprint = _fingerprint(config, source)
    folder = cache_folder(config) / "corpora" / f"{source.name}-{fingerprint}"
    corpus = Corpus(folder)
    if not corpus.whole():
        try:
            folder.parent.mkdir(parents=True, exist_ok=True)
            with _only_one(folder, report):
                if not (corpus := Corpus(folder)).whole():
                    _prepare(config, source, fingerprint, folder, report)
        except OSError as error:
            raise DataError(
                f"data.cache_dir={folder.parent.parent}: {error}; name a folder with space in data.cache_dir"
            ) from error
        corpus = Corpus(folder)
    if len(corpus.train) <= config.sequence_length:
        need = config.sequence_length * corpus.train.num_bytes / max(1, len(corpus.train)) / 1000
        raise DataError(
            f"data.sequence_length={config.sequence_length}: the training split has only {len(corpus.train):,} tokens; "
            f"give more than {need:.0f} kB of text, or lower data.sequence_length"
        )
    return corpus


def cache_folder(config: DataConfig) -> Path:
    """`data.cache_dir`, or the user's cache."""
    return Path(config.cache_dir).expanduser() if config.cache_dir else user_cache()


def _fingerprint(config: DataConfig, source: Source) -> str:
    names = ("vocab_size", "val_percent", "test_percent", "max_document_bytes", "on_error")
    parts = {"format": FORMAT, "source": source.key(), **{name: getattr(config, name) for name in names}}
    return hashlib.sha256(json.dumps(parts, sort_keys=True).encode("utf-8", "surrogateescape")).hexdigest()[:16]


@contextmanager
def _only_one(folder: Path, report: Report) -> Iterator[None]:
    """Holds the lock of a corpus; says so if another process has it. The lock vanishes with its process."""
    lock = FileLock(folder.with_name(f"{folder.name}.lock"))
    try:
        lock.acquire(timeout=0)
    except Timeout:
        report("another process is preparing this corpus; waiting for it")
        lock.acquire()
    try:
        yield
    finally:
        lock.release()


def _prepare(config: DataConfig, source: Source, fingerprint: str, folder: Path, report: Report) -> None:
    """Writes everything into a folder beside the final one, which a rename then puts in place."""
    draft = folder.with_name(f".{folder.name}.draft")
    for leftover in (draft, folder):  # of a killed process, or damaged
        if leftover.exists():
            report(f"removing an incomplete corpus in {leftover}")
            shutil.rmtree(leftover)
    draft.mkdir()
    try:
        _fill(config, source, fingerprint, draft, report)
        os.replace(draft, folder)
    except BaseException:
        shutil.rmtree(draft, ignore_errors=True)
        raise


def _fill(config: DataConfig, source: Source, fingerprint: str, folder: Path, report: Report) -> None:
    clock = _Clock()
    account = Account(strict=config.on_error == "raise")
    report(f"reading the {source.label}")
    store = text_store.collect(source, folder / "text", account)
    report(f"  {account.documents:,} documents, {account.num_bytes / 1e6:.1f} MB in {clock.lap():.1f} s")
    for line in account.lines():
        report(f"  left out or changed: {line}")
    if not account.documents:
        raise DataError(
            f"data.source={config.source}: nothing in the {source.label} could be used: {account.summary() or 'no document'}"
        )
    if _fingerprint(config, open_source(config)) != fingerprint:
        raise DataError(
            f"data.source={config.source}: files of the {source.label} changed while they were read; start again"
        )
    ranges, how = text_store.split(store, val_percent=config.val_percent, test_percent=config.test_percent)

    bpe = tokenizer.train(store.texts(ranges["train"]), config.vocab_size)
    bpe.save(str(folder / "tokenizer.json"))
    report(
        f"  learned {bpe.get_vocab_size():,} tokens from {ranges['train'].num_bytes / 1e6:.1f} MB in {clock.lap():.1f} s"
    )

    files = {name: token_file.write(store, ranges[name], bpe, folder, name) for name in SPLITS}
    tokens = sum(len(file) for file in files.values())
    seconds = clock.lap()
    report(f"  wrote {tokens / 1e6:.2f} M tokens in {seconds:.1f} s ({tokens / seconds:,.0f} tokens/s)")
    for name in ("val", "test"):
        text_store.keep(store, ranges[name], folder / f"{name}.txt")
    store.path.unlink()
    _describe(config, source, fingerprint, folder, account, store.digest, how, files)


def _describe(
    config: DataConfig,
    source: Source,
    fingerprint: str,
    folder: Path,
    account: Account,
    digest: str,
    how: str,
    files: dict[str, TokenFile],
) -> None:
    tokens = sum(len(file) for file in files.values())
    shares = ", ".join(f"{name} {len(files[name]):,}" for name in SPLITS)
    changed = f"; {account.summary()}" if account.counts else ""
    description = (
        f"{source.label}: {account.documents:,} documents, {account.num_bytes / 1e6:.2f} MB, digest {digest}, "
        f"{tokens:,} tokens of a vocabulary of {files['train'].vocab_size:,} ({shares}; split by {how}){changed}"
    )
    meta = {
        "format": FORMAT,
        "name": source.name,
        "fingerprint": fingerprint,
        "digest": digest,
        "description": description,
        "split": how,
        "account": account.as_json(),
        "settings": {
            name: getattr(config, name)
            for name in ("vocab_size", "val_percent", "test_percent", "max_document_bytes", "on_error")
        },
        "source": source.key(),
        "tokenizer_sha256": hashlib.sha256((folder / "tokenizer.json").read_bytes()).hexdigest(),
    }
    (folder / "corpus.json").write_text(json.dumps(meta, indent=1), "utf-8")


class _Clock:
    """Seconds since the last look."""

    def __init__(self) -> None:
        self.last = time.perf_counter()

    def lap(self) -> float:
        now = time.perf_counter()
        self.last, passed = now, now - self.last
        return max(passed, 1e-9)
