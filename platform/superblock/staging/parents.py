"""What a stage begins from: the promoted model of the stage before, a named run, or nothing."""

from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

from superblock.config.fields import ConfigError
from superblock.config.run import RunConfig
from superblock.config.typed import typed
from superblock.staging.promotion import Promoted, find_promoted, refuse_other_parent
from superblock.tracking.runs import RunRecord, find_run, read_run, runs_root
from superblock.training.lineage import checkpoint_of
from superblock.training.manifest import load_config, newest_whole

Say = Callable[[str], None]


@dataclass(frozen=True)
class Resolved:
    """A configuration whose `parent` is `none`, a run's name or a folder, and the promotion behind it where it was looked up."""

    config: RunConfig
    promoted: Promoted | None = None

    @property
    def parent_record(self) -> RunRecord | None:
        """The parent's run, where it lies in this folder."""
        return None if self.config.parent == "none" else read_run(runs_root() / self.config.parent)


def resolve_parent(config: RunConfig, say: Say, *, before: Promoted | None = None, together: bool = False) -> Resolved:
    """Follows `parent`: auto takes a promoted model that fits, required insists on it, anything else is as it was written.

    A run that is continued by name keeps the parent it began from.

    Args:
        before: what the stage before was promoted as, where it belongs to the same pipeline.
        together: the stage is one of several that build on each other: the first has no parent to require, and a parent
            that does not fit is an error in every other.

    Raises:
        ConfigError: where a promoted model that fits is required and there is none, or on a stage that has no parent.
    """
    if config.resume not in ("none", "auto") and (kept := _parent_of(config.resume)) is not None:
        return Resolved(replace(config, parent=kept))
    if config.parent not in ("auto", "required"):
        return Resolved(config)
    stage, must = config.stage.parent, config.parent == "required"
    scratch = Resolved(replace(config, parent="none"))
    if stage is None:
        if must and not together:
            raise ConfigError(
                f"parent=required: stage {config.stage.name} is the first, it begins from scratch; leave it out"
            )
        return scratch
    if config.growth.method == "none":
        return scratch
    promoted = before or find_promoted(stage, config, seed=config.seed)
    if promoted is None:
        words = f"there is no promoted {stage} at scale {config.scale.name}"
        if must:
            raise ConfigError(
                f"parent=required: {words}\ntrain one: {typed(f'run stage={stage} scale={config.scale.name}')}"
            )
        say(f"parent  {words}: training {config.stage.name} from scratch")
        return scratch
    try:
        refuse_other_parent(promoted, config)
    except ConfigError as error:
        if must or together:
            raise ConfigError(f"parent={config.parent}: {error}") from None
        reason = str(error).partition("\n")[0]
        say(f"parent  {promoted.run} does not fit ({reason}): training {config.stage.name} from scratch")
        return scratch
    found = checkpoint_of(promoted.run)
    if found is not None and promoted.folder not in (found, *found.parents):
        raise ConfigError(
            f"parent={config.parent}: {found} is another model than {promoted.describe()}\n"
            "rename that run's folder, or name what to begin from with parent=<run>"
        )
    say(f"parent  {promoted.describe()}")
    return Resolved(replace(config, parent=promoted.run), promoted)


def _parent_of(run: str) -> str | None:
    """The parent that a run was begun with, as its newest checkpoint says; None where there is none yet."""
    record = find_run(run)
    checkpoint: Path | None = newest_whole(record.folder)[0] if record else None
    return load_config(checkpoint).get("parent") if checkpoint else None
