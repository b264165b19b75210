"""A finished run with what measuring its model again needs: its checkpoint, its configuration and its text."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from superblock.config.fields import ConfigError, restore
from superblock.config.run import RunConfig
from superblock.data.corpus import Corpus, prepare
from superblock.tracking.runs import RunRecord
from superblock.training.checkpoint import load_config, tokenizer_path
from superblock.training.manifest import newest_whole
from superblock.training.process import prepare_process


@dataclass(frozen=True)
class Finished:
    """See the module."""

    record: RunRecord
    checkpoint: Path
    """The newest whole one: the model that was tested."""
    config: RunConfig
    """The run's own."""
    corpus: Corpus


def open_finished(record: RunRecord, key: str, *, threads: int | None, say: Callable[[str], None]) -> Finished:
    """Prepares the process and the text of a run.

    Args:
        record: of a finished run.
        key: what the user wrote to name it, such as `resume=deep`: errors begin with it.
        threads: CPU threads; None is one per core.
        say: shows a line.

    Raises:
        ConfigError: if it has no whole checkpoint, or its text or the tokenizer is another by now.
    """
    checkpoint, _ = newest_whole(record.folder)
    if checkpoint is None:
        raise ConfigError(f"{key}: {record.folder} has no whole checkpoint")
    prepare_process(threads, 1)
    config, corpus = own_text(checkpoint, key, digest=record.summary.get("data_digest"), say=say)
    return Finished(record, checkpoint, config, corpus)


def own_text(checkpoint: Path, key: str, *, digest: str | None, say: Callable[[str], None]) -> tuple[RunConfig, Corpus]:
    """A checkpoint's configuration, and the text it was trained and tested on.

    Args:
        key: what errors begin with.
        digest: of that text, if it is known.

    Raises:
        ConfigError: if the text or the tokenizer is another by now.
    """
    config: RunConfig = restore(RunConfig, load_config(checkpoint), "config")
    corpus = prepare(config.data, report=say)
    if digest is not None and corpus.digest != digest:
        raise ConfigError(
            f"{key}: its text has changed since (digest {digest} then, {corpus.digest} now), so results would not compare"
        )
    if tokenizer_path(checkpoint).read_bytes() != corpus.tokenizer_path.read_bytes():
        raise ConfigError(f"{key}: {checkpoint} was trained with another tokenizer than that of this text")
    return config, corpus
