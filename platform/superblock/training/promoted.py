"""Which model is promoted, and where its checkpoint lies. No torch, and no MLflow for a local store.

The model registry decides: an alias that somebody moves or deletes there counts. Only with `tracking=none`, or while the
store does not answer, do the `promotion.json` files of the runs. The run's own folder is used where it is on this
machine, because its checkpoint has the optimizer's state; else the registered files, copied once.
"""

import re
import shutil
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from superblock.config.fields import ConfigError
from superblock.config.tracking import TrackingConfig
from superblock.config.typed import typed
from superblock.tracking.files import read_json
from superblock.tracking.registry import fetch
from superblock.tracking.runs import list_runs, read_run, runs_root
from superblock.tracking.store import store_uri, without_password
from superblock.tracking.versions import PROMOTED, StoreAway, Version, alias_of_seed, read_versions
from superblock.training.manifest import COPIES, LINEAGE, checkpoints_folder, load_progress, verify

PROMOTION_FILE = "promotion.json"
_ADDRESS = re.compile(r"(?P<registry>models:/)?(?P<name>[^@/]+)(?:@(?P<alias>[\w.-]+)|/(?P<version>\d+))")


class FilesGone(ConfigError):
    """A promoted model whose files are nowhere: neither with its run nor in the registry."""


@dataclass(frozen=True)
class Promoted:
    """A promoted model whose files are here."""

    stage: str
    scale: str
    run: str
    folder: Path
    """The run's, or that of the registered model's copy."""
    checkpoint: Path
    version: int | None
    """In the registry; None where there is none (`tracking=none`)."""
    alias: str
    seed: int
    fingerprint: str
    data_digest: str
    superblocks: int
    lineage: tuple[dict[str, Any], ...]
    """Oldest first, the model itself last: `training.lineage.Ancestor` as JSON."""

    @property
    def has_optimizer(self) -> bool:
        """Whether growth can take over the optimizer's state."""
        return not (self.checkpoint / LINEAGE).is_file()

    @property
    def number(self) -> str:
        """Such as `mvp2-tiny version 3`."""
        model = model_name(self.stage, self.scale)
        return f"{model} version {self.version}" if self.version else f"{model}@{self.alias}"

    def describe(self) -> str:
        """Such as `mvp2-tiny version 3 (run mvp2-tiny-s1-...)`."""
        return f"{self.number} (run {self.run})"


def model_name(stage: str, scale: str) -> str:
    """The registered model of a stage: seeds, data sets and lineages are versions of it."""
    return f"{stage}-{scale}"


def is_address(text: str) -> bool:
    """Whether a text means a promoted model: `mvp2@promoted`, `mvp2-mini@promoted-s3`, `models:/mvp2-tiny/4`."""
    match = _ADDRESS.fullmatch(text)
    return match is not None and (match["alias"] is not None or match["registry"] is not None)


def find_address(
    text: str, tracking: TrackingConfig, *, say: Callable[[str], None], root: Path | None = None
) -> Promoted:
    """The model a user means by an address; without a scale, the stage's newest promotion.

    Raises:
        ConfigError: naming the promoted models there are, if this is none of them; or why its files cannot be had.
    """
    match = _ADDRESS.fullmatch(text)
    assert match is not None, text
    versions = _versions(tracking, say, root)
    for one in versions:
        named = one.model == match["name"] or (not match["registry"] and one.tags.get("stage") == match["name"])
        if named and (match["alias"] in one.aliases if match["alias"] else str(one.version) == match["version"]):
            return _with_files(one, match["alias"] or "", tracking, root)
    raise ConfigError(f"run={text}: there is no such model; {_known(versions, tracking)}")


def find_alias(
    stage: str,
    scale: str,
    tracking: TrackingConfig,
    *,
    seed: int | None = None,
    say: Callable[[str], None],
    root: Path | None = None,
) -> Promoted | None:
    """A stage's promoted model: that of the seed if there is one, else the newest; None if there is none.

    Raises:
        ConfigError: if there is one and its files cannot be had.
    """
    wanted = [alias_of_seed(seed)] if seed is not None else []
    versions = [one for one in _versions(tracking, say, root) if one.model == model_name(stage, scale)]
    for alias in (*wanted, PROMOTED):
        for one in versions:
            if alias in one.aliases:
                return _with_files(one, alias, tracking, root)
    return None


def _versions(tracking: TrackingConfig, say: Callable[[str], None], root: Path | None) -> list[Version]:
    """Newest first."""
    uri = store_uri(tracking)
    if uri is not None:
        try:
            return read_versions(uri)
        except StoreAway as error:
            say(f"registry: {error}; going by the runs' own {PROMOTION_FILE}")
    return _from_files(root)


def _from_files(root: Path | None) -> list[Version]:
    """What the runs' own records say; of each model, and of each of its seeds, the newest has the alias."""
    records = [(run, read_json(run.folder / PROMOTION_FILE)) for run in list_runs(root)]
    records = sorted(
        ((run, record) for run, record in records if record.get("promoted")),
        key=lambda pair: float(pair[1].get("time", 0)),
        reverse=True,
    )
    found: list[Version] = []
    taken: set[tuple[str, str]] = set()
    for run, record in records:
        aliases = [(str(record["model"]), alias) for alias in (PROMOTED, alias_of_seed(run.seed))]
        free = tuple(alias for model, alias in aliases if (model, alias) not in taken)
        taken.update(aliases)
        number = int(record.get("version") or 0)
        tags = {key: str(value) for key, value in record["tags"].items()}
        found.append(Version(str(record["model"]), number, None, float(record["time"]), "", free, tags))
    return found


def _with_files(version: Version, alias: str, tracking: TrackingConfig, root: Path | None) -> Promoted:
    """Raises ConfigError if neither the run nor a copy of the registered files is to be had."""
    tags, name = version.tags, f"{version.model} version {version.version}" if version.version else version.model
    own = _own_folder(version, root)
    if own is not None:
        folder, checkpoint = own
    else:
        uri = store_uri(tracking)
        if not version.location or uri is None:
            raise FilesGone(
                f"{name}: the checkpoint of its run {tags.get('run')} is gone; train it again: "
                + typed(f"run stage={tags.get('stage')} scale={tags.get('scale')}")
            )
        folder = (root or runs_root()) / COPIES / f"{version.model}-v{version.version}"
        _remove_other(folder, version)
        try:
            checkpoint = fetch(version, uri, folder)
        except StoreAway as error:
            kind = ConfigError if tracking.store == "server" else FilesGone  # a server may answer another time
            raise kind(f"{name}: its files cannot be had: {error}") from None
        if (fault := verify(checkpoint)) is not None:
            raise ConfigError(f"{name}: {checkpoint} is not whole: {fault}; remove that folder to fetch it again")
    return Promoted(
        stage=tags.get("stage", ""),
        scale=tags.get("scale", ""),
        run=tags.get("run", ""),
        folder=folder,
        checkpoint=checkpoint,
        version=version.version or None,
        alias=alias,
        seed=int(tags.get("seed", 0)),
        fingerprint=tags.get("fingerprint", ""),
        data_digest=tags.get("data_digest", ""),
        superblocks=int(tags.get("superblocks", 0)),
        lineage=tuple(load_progress(checkpoint).get("lineage", ())),
    )


def _own_folder(version: Version, root: Path | None) -> tuple[Path, Path] | None:
    """The run's folder and promoted checkpoint, if they are here and this is that run, not another of its name."""
    folder = (root or runs_root()) / version.tags.get("run", "")
    record = read_run(folder)
    if record is None or (version.run_id is not None and record.mlflow_run_id != version.run_id):
        return None
    checkpoint = checkpoints_folder(folder) / version.tags.get("checkpoint", "")
    return (folder, checkpoint) if verify(checkpoint, full=False) is None else None


def _remove_other(folder: Path, version: Version) -> None:
    """A copy from a store that has been deleted since, in which another model had this number."""
    if folder.is_dir() and read_json(folder / LINEAGE).get("mlflow_run_id") != version.run_id:
        shutil.rmtree(folder)


def _known(versions: list[Version], tracking: TrackingConfig) -> str:
    names = [f"{one.model}@{alias}" for one in versions for alias in one.aliases]
    if names:
        return f"promoted are {', '.join(names[:8])}"
    place = "promotion.json of any run" if tracking.store == "none" else without_password(store_uri(tracking))
    return f"nothing is promoted in {place}\na stage is promoted when it has passed its gates: {typed('run stage=all')}"
