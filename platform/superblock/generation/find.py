"""Which checkpoint a user means. Reads files only, no torch, so that the answer is on screen at once."""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from superblock.config.fields import ConfigError, closest
from superblock.config.tracking import TrackingConfig
from superblock.config.typed import typed
from superblock.tracking.runs import RunRecord, find_run, list_runs, read_run, runs_root
from superblock.training.manifest import MANIFEST, checkpoints_folder, newest_whole, verify
from superblock.training.promoted import Promoted, find_address, is_address


@dataclass(frozen=True)
class Found:
    """A whole checkpoint, the run it belongs to, and what was passed over on the way to it."""

    checkpoint: Path
    run: RunRecord | None
    skipped: tuple[str, ...] = ()
    promoted: Promoted | None = None
    """Where it was found by an alias of the model registry."""

    def describe(self) -> str:
        """The run in one line, with its test result if it has one."""
        if self.run is None:
            return self.promoted.describe() if self.promoted else str(self.checkpoint)
        facts = [self.promoted.number] if self.promoted else []
        facts += [f"stage {self.run.stage}", f"scale {self.run.scale}", self.checkpoint.name]
        bits = self.run.summary.get("splits", {}).get("test", {}).get("bits_per_byte")
        if isinstance(bits, float):
            facts.append(f"test {bits:.3f} bits per byte")
        return f"{self.run.name} ({', '.join(facts)})"


def find_checkpoint(
    run: str, root: Path | None = None, tracking: TrackingConfig | None = None, *, key: str = "run"
) -> Found:
    """The newest whole checkpoint of a run, or a promoted model.

    Args:
        run: `newest`, a run's name, MLflow id or stage, or the folder of a run or of one checkpoint. For `newest` and a
            stage, runs without a whole checkpoint are passed over. Or an address of the model registry: `mvp2@promoted`,
            `mvp2-mini@promoted-s3`, `models:/mvp2-tiny/4`.
        root: folder that holds the runs.
        tracking: the store whose registry is asked; by default `mlflow.db` of the current folder.
        key: what `run` is called in an error.

    Raises:
        ConfigError: if there is no such run, or none with a whole checkpoint.
    """
    if (Path(run) / MANIFEST).exists():
        return _one_checkpoint(Path(run), key)
    skipped: list[str] = []
    if is_address(run) and not Path(run).is_dir():
        promoted = find_address(run, tracking or TrackingConfig(), say=skipped.append, root=root)
        return Found(promoted.checkpoint, read_run(promoted.folder), tuple(skipped), promoted)
    for folder, record in _candidates(run, root, key):
        checkpoint, broken = newest_whole(folder)
        skipped += [f"{folder / 'checkpoints' / name}: {reason}" for name, reason in broken]
        if checkpoint is not None:
            return Found(checkpoint, record, tuple(skipped))
        skipped.append(f"{folder.name} has no whole checkpoint")
    raise ConfigError(f"{key}={run}: {'; '.join(skipped)}; {_advice(root)}")


def _one_checkpoint(path: Path, key: str) -> Found:
    reason = verify(path)
    if reason is not None:
        raise ConfigError(
            f"{key}={path}: is not whole: {reason}; give the run's folder to use its newest whole checkpoint"
        )
    return Found(path, read_run(path.resolve().parent.parent))


def _candidates(run: str, root: Path | None, key: str) -> Iterator[tuple[Path, RunRecord | None]]:
    """The runs that may be meant, best first."""
    if checkpoints_folder(Path(run)).is_dir():
        yield Path(run), read_run(Path(run))
        return
    runs = list_runs(root)
    if not runs:
        raise ConfigError(f"{key}={run}: {_advice(root)}")
    if run == "newest":
        yield from ((record.folder, record) for record in runs)
    elif (record := find_run(run, root)) is None:
        known = [name for record in runs for name in (record.name, record.stage)]
        hint = f"; did you mean {close[0]}?" if (close := closest(run, known)) else ""
        raise ConfigError(
            f"{key}={run}: there is no such run{hint}\nthe newest are {', '.join(r.name for r in runs[:5])}"
        )
    elif record.name != run and record.stage == run:
        yield from ((record.folder, record) for record in list_runs(root, stage=run))
    else:
        yield record.folder, record


def _advice(root: Path | None) -> str:
    folder = (root or runs_root()).resolve()
    return f"there is no run to generate with in {folder}; train one with: {typed('run stage=mvp1')}"
