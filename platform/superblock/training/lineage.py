"""Where a run's weights come from: its parent, the parent's parents, and what the training of all of them cost."""

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from superblock.config.fields import ConfigError, closest, restore
from superblock.config.model import ModelConfig
from superblock.config.run import RunConfig
from superblock.data.corpus import Corpus
from superblock.tracking.files import read_json
from superblock.tracking.runs import list_runs, runs_root
from superblock.training.manifest import (
    COPIES,
    LINEAGE,
    MANIFEST,
    describe,
    load_config,
    load_progress,
    newest_whole,
    read_manifest,
    verify,
)
from superblock.training.size import measure

SCRATCH = "scratch"
"""Method of a run that inherited nothing."""


@dataclass(frozen=True)
class Ancestor:
    """One run of a lineage: what it was and what its own training cost."""

    run: str
    stage: str
    superblocks: int
    method: str
    """How its weights began: `scratch`, or a growth method."""
    seed: int
    steps: int
    sequences: int
    tokens: int
    flops: float
    """Of its own training, forward and backward."""


Lineage = tuple[Ancestor, ...]
"""Oldest first; the run itself last."""


@dataclass(frozen=True)
class Parent:
    """A trained run that a deeper model begins from."""

    run: str
    checkpoint: Path
    model: ModelConfig
    lineage: Lineage


def ancestor(config: RunConfig, *, run: str, steps: int, tokens: int, flops_per_token: float, method: str) -> Ancestor:
    """A run as part of a lineage."""
    sequences = steps * config.trainer.batch_size
    return Ancestor(
        run, config.stage.name, config.model.num_superblocks, method, config.seed, steps, sequences, tokens,
        tokens * flops_per_token,
    )  # fmt: skip


def total_flops(lineage: Sequence[Ancestor]) -> float:
    """FLOPs of training a run and everything it came from."""
    return sum(one.flops for one in lineage)


def total_tokens(lineage: Sequence[Ancestor]) -> int:
    """Tokens that a run and everything it came from were trained on."""
    return sum(one.tokens for one in lineage)


def find_parent(config: RunConfig) -> Parent | None:
    """The parent that `config.parent` names; None for a run from scratch.

    `auto` and `required` mean the promoted model of the stage before, which `staging` looks up; left as they are, as by
    those who call `train` themselves, they mean from scratch.

    Raises:
        ConfigError: if there is no such run, or it has no whole checkpoint.
    """
    if config.parent in ("auto", "required", "none") or config.growth.method == "none":
        return None
    checkpoint = checkpoint_of(config.parent)
    if checkpoint is None:
        names = [run.name for run in list_runs()]
        hint = f"; did you mean {close[0]}?" if (close := closest(config.parent, names)) else ""
        raise ConfigError(f"parent={config.parent}: there is no such run with a whole checkpoint{hint}")
    stored, lineage = load_config(checkpoint), read_lineage(checkpoint)
    return Parent(lineage[-1].run, checkpoint, restore(ModelConfig, stored.get("model", {}), "model"), lineage)


def checkpoint_of(run: str, root: Path | None = None) -> Path | None:
    """The newest whole checkpoint of a run: in its own folder, in the copy of its registered model, or in a folder that
    `run` is the path of (a run's or a checkpoint's own); None if there is none."""
    root = root or runs_root()
    own = newest_whole(root / run)[0]
    if own is not None:
        return own
    for copy in sorted((root / COPIES).glob(f"*/{LINEAGE}")):
        if (lineage := read_json(copy).get("lineage")) and lineage[-1]["run"] == run and verify(copy.parent) is None:
            return copy.parent
    folder = Path(run)
    return folder if (folder / MANIFEST).is_file() else newest_whole(folder)[0]


def refuse_other_text(checkpoint: Path, corpus: Corpus, *, digest: str | None = None) -> None:
    """Whether a model was trained on this text, in the tokens of this tokenizer.

    Args:
        digest: of the model's text, where it is known from elsewhere.

    Raises:
        ConfigError: naming what differs.
    """
    there, here = read_manifest(checkpoint).get("tokenizer"), describe(corpus.tokenizer_path)["sha256"]
    digest = digest or load_progress(checkpoint).get("data_digest", "unknown")  # as of older checkpoints
    if digest not in ("unknown", corpus.digest):
        raise ConfigError(f"data (digest of the text) is {corpus.digest}, it was {digest}")
    if there is not None and there != here:
        raise ConfigError(f"the tokenizer (SHA-256) is {here[:16]}, it was {there[:16]}")


def read_lineage(checkpoint: Path) -> Lineage:
    """The lineage a checkpoint was saved with; of one from before lineages, its own run alone."""
    progress = load_progress(checkpoint)
    if "lineage" in progress:
        return restore_lineage(progress["lineage"])
    stored = load_config(checkpoint)
    config = RunConfig()
    config.stage.name, config.seed = stored["stage"]["name"], stored["seed"]
    config.trainer.batch_size = stored["trainer"]["batch_size"]
    config.model = restore(ModelConfig, stored["model"], "model")
    cost = measure(config.model, stored["data"]["sequence_length"]).training_flops_per_token
    name = checkpoint.resolve().parent.parent.name
    steps, tokens = progress["step"], progress["tokens_seen"]
    return (ancestor(config, run=name, steps=steps, tokens=tokens, flops_per_token=cost, method=SCRATCH),)


def restore_lineage(plain: Sequence[dict[str, Any]]) -> Lineage:
    """A lineage from what `plain_lineage` made of it."""
    return tuple(Ancestor(**one) for one in plain)


def plain_lineage(lineage: Sequence[Ancestor]) -> list[dict[str, Any]]:
    """A lineage as JSON."""
    return [asdict(one) for one in lineage]
