"""Which checkpoints are whole: the manifest, verification, selection, and removal that spares readers.

<run folder>/checkpoints/
  step-0000400/          whole: it has a manifest that names every other file with its size and SHA-256
  .tmp-step-0000600/     being written, or left behind by a process that was killed
  .old-step-0000400/     replaced a moment ago by a checkpoint of the same step, or about to be deleted
  best.json              {"name": "step-0000400"}; a file, because Windows has no symbolic links for everybody
"""

import contextlib
import hashlib
import json
import os
import re
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from superblock.config.fields import ConfigError

try:
    import fcntl
except ImportError:  # Windows refuses to rename a folder with an open file, which protects readers as well
    fcntl = None  # type: ignore[assignment]

MANIFEST = "manifest.json"
BEST = "best.json"
FORMAT = 1
REQUIRED = (".metadata", "config.json", "progress.json")
WEIGHTS, LINEAGE = "weights.safetensors", "lineage.json"
COPIES = ".registry"
"""Folder below `runs/` for registered models whose run is not on this machine."""
REQUIRED_REGISTERED = (WEIGHTS, "config.json", LINEAGE)
"""Of a registered model's folder (training.registered)."""
_STEP = re.compile(r"(?:\.old-)?step-(\d+)")


class CheckpointError(ConfigError):
    """A checkpoint that cannot be used here, and why."""


def checkpoints_folder(run_folder: Path) -> Path:
    """Where a run keeps its checkpoints."""
    return Path(run_folder) / "checkpoints"


# -- files ------------------------------------------------------------------------------------------------------------


def write_json(path: Path, content: Any) -> None:
    """Writes under a temporary name, to the disk, then renames."""
    temporary = path.with_name(f".tmp-{path.name}")
    temporary.write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")
    sync(temporary)
    os.replace(temporary, path)


def sync(path: Path) -> None:
    """Forces a file or a folder's entries to the disk."""
    if path.is_dir() and os.name == "nt":
        return  # Windows cannot open folders
    descriptor = os.open(path, os.O_RDWR if os.name == "nt" else os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def describe(path: Path) -> dict[str, Any]:
    """A file's entry in the manifest."""
    with path.open("rb") as file:
        digest = hashlib.file_digest(file, "sha256").hexdigest()
    return {"bytes": path.stat().st_size, "sha256": digest}


# -- reading ----------------------------------------------------------------------------------------------------------


def read_manifest(path: Path) -> dict[str, Any]:
    """The manifest of a checkpoint.

    Raises:
        CheckpointError: if there is none or it cannot be read.
    """
    try:
        manifest = json.loads((path / MANIFEST).read_text(encoding="utf-8"))
        names = list(manifest["files"])
    except FileNotFoundError:
        raise CheckpointError(f"{path}: no manifest, so it was never finished") from None
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise CheckpointError(f"{path}: its manifest cannot be read ({error})") from None
    if manifest.get("format") != FORMAT:
        raise CheckpointError(f"{path}: its format is {manifest.get('format')}, this version reads {FORMAT}")
    if odd := [name for name in names if Path(name).name != name or "\\" in name]:
        raise CheckpointError(f"{path}: its manifest names a file outside of the checkpoint ({odd[0]})")
    required = REQUIRED_REGISTERED if WEIGHTS in names else REQUIRED
    if missing := [name for name in required if name not in names]:
        raise CheckpointError(f"{path}: its manifest does not name {missing[0]}")
    result: dict[str, Any] = manifest
    return result


def verify(path: Path, *, full: bool = True, part: int = 0, parts: int = 1) -> str | None:
    """None if the checkpoint is whole, else the reason in words.

    Args:
        full: compare the contents as well, not only the sizes.
        part, parts: check only every `parts`-th file, so that processes can share the work.
    """
    path = Path(path)
    try:
        files = read_manifest(path)["files"]
    except CheckpointError as error:
        return str(error).removeprefix(f"{path}: ")
    for name in sorted(files)[part::parts]:
        try:
            size = (path / name).stat().st_size
            if size != files[name]["bytes"]:
                return f"{name} has {size} bytes instead of {files[name]['bytes']}"
            if full and describe(path / name)["sha256"] != files[name]["sha256"]:
                return f"{name} has changed: its checksum differs"
        except FileNotFoundError:
            return f"{name} is missing"
        except (OSError, KeyError, TypeError) as error:
            return f"{name} cannot be checked ({error})"
    return None


def newest_whole(run_folder: Path) -> tuple[Path | None, list[tuple[str, str]]]:
    """The newest whole checkpoint of a run, and what was skipped before it as (name, reason)."""
    skipped: list[tuple[str, str]] = []
    for path in checkpoints(run_folder):
        reason = verify(path)
        if reason is None:
            return path, skipped
        skipped.append((path.name, reason))
    return None, skipped


def best(run_folder: Path) -> Path | None:
    """The checkpoint with the best validation, if one was marked and is still there."""
    folder = checkpoints_folder(run_folder)
    try:
        name = json.loads((folder / BEST).read_text(encoding="utf-8"))["name"]
    except (OSError, ValueError, KeyError, TypeError):
        return None
    return next((path for path in checkpoints(run_folder) if path.name == name), None)


def checkpoints(run_folder: Path) -> list[Path]:
    """A run's finished checkpoints by step, newest first; a replaced one counts while its successor is missing."""
    found: dict[int, Path] = {}
    folder = checkpoints_folder(run_folder)
    for path in sorted(folder.iterdir()) if folder.is_dir() else []:  # ".old-" sorts before "step-", which replaces it
        if (match := _STEP.fullmatch(path.name)) and path.is_dir():
            found[int(match[1])] = path
    return [found[step] for step in sorted(found, reverse=True)]


def load_config(path: Path) -> dict[str, Any]:
    """The configuration a checkpoint was trained with.

    Raises:
        CheckpointError: if it cannot be read.
    """
    return _read_json(Path(path) / "config.json")


def load_progress(path: Path) -> dict[str, Any]:
    """What `save` was given as progress; of a registered model, its lineage with `step` and `tokens_seen`.

    Raises:
        CheckpointError: if it cannot be read.
    """
    return _read_json(Path(path) / (LINEAGE if (Path(path) / WEIGHTS).is_file() else "progress.json"))


def _read_json(path: Path) -> dict[str, Any]:
    try:
        content: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise CheckpointError(f"{path} cannot be read ({error})") from None
    return content


@contextlib.contextmanager
def reading(path: Path) -> Iterator[None]:
    """While this is open, `remove` leaves the checkpoint alone, in this and in other processes."""
    try:
        file = (path / MANIFEST).open("rb")
    except OSError as error:
        raise CheckpointError(f"{path}: no manifest, so it was never finished ({error.strerror})") from None
    with file:
        if fcntl is not None:
            with contextlib.suppress(OSError):  # a file system without locks
                fcntl.flock(file, fcntl.LOCK_SH)
        yield


# -- replacing and removing -------------------------------------------------------------------------------------------


def tidy(folder: Path) -> None:
    """Undoes what a killed process left: unfinished checkpoints go, a replaced one without successor comes back."""
    for path in folder.glob(".tmp-*"):
        shutil.rmtree(path) if path.is_dir() else path.unlink()
    for path in folder.glob(".old-*"):
        final = path.with_name(path.name.removeprefix(".old-"))
        if final.exists() or verify(path, full=False) is not None:
            shutil.rmtree(path, ignore_errors=True)
        else:
            os.rename(path, final)


def commit(temporary: Path, final: Path) -> None:
    """Gives a finished checkpoint its name; an older one of the same step stays until the new one is in place."""
    old = final.with_name(f".old-{final.name}")
    if final.exists():
        shutil.rmtree(old, ignore_errors=True)
        os.rename(final, old)
    os.rename(temporary, final)
    sync(final.parent)
    shutil.rmtree(old, ignore_errors=True)


def remove(path: Path) -> bool:
    """Deletes a checkpoint and returns True, or leaves it alone while somebody reads it."""
    old = path.with_name(f".old-{path.name}")
    try:
        with (path / MANIFEST).open("rb") as file:
            if fcntl is not None:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        (path / MANIFEST).unlink()  # from here on it is whole for nobody, even if the deletion is interrupted
    except FileNotFoundError:
        pass
    except OSError:
        return False
    os.rename(path, old)
    shutil.rmtree(old, ignore_errors=True)
    return True


def retain(run_folder: Path, keep_last: int, also: Path) -> None:
    """Removes all checkpoints but the best one, the newest `keep_last` that look whole, and `also`."""
    whole = [path for path in checkpoints(run_folder) if verify(path, full=False) is None]
    keep = {*whole[:keep_last], best(run_folder), also}
    for path in checkpoints(run_folder):
        if path not in keep:
            remove(path)
