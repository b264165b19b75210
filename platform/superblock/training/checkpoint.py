"""Saving and loading a run: one directory format for one process and for many (layout: training.manifest).

A checkpoint holds the weights, the optimizer's state, `config.json`, `progress.json` and the tokenizer, so that nothing
else is needed to continue or to generate. It is written under a temporary name, synced, and renamed: it is whole or it
is not there. Tensors are stored whole-shaped, so that any number of processes can read what any other number wrote:

    model/<parameter or buffer>            as the model's state_dict names it
    optimizer/<parameter>/<state>          exp_avg, exp_avg_sq, step (AdamW); momentum_buffer (Muon)

Learning rates and decays are not stored: they follow from the configuration and the step.
"""

import errno
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

import torch
from torch import Tensor, nn

from superblock.training import compatibility, manifest, storage
from superblock.training.distributed import all_gather_object, barrier, rank, world_size
from superblock.training.manifest import CheckpointError, load_config, load_progress, newest_whole, verify

__all__ = [
    "CheckpointError",
    "load",
    "load_config",
    "load_model_weights",
    "load_progress",
    "newest_whole",
    "read_optimizer_states",
    "read_weights",
    "save",
    "tokenizer_path",
    "verify",
]

T = TypeVar("T")
TOKENIZER = "tokenizer.json"


def save(
    run_folder: Path,
    *,
    model: nn.Module,
    optimizer: torch.optim.Optimizer,
    progress: dict[str, Any],
    config: dict[str, Any],
    tokenizer: Path | None = None,
    keep_last: int = 2,
    best: bool = False,
) -> Path:
    """Writes `checkpoints/step-<step>` and removes what need not be kept. Every process calls it.

    Args:
        progress: JSON-able, with `step`; what `load` returns.
        config: JSON-able; `config["model"]` is compared with the model at loading.
        tokenizer: file that is copied into the checkpoint.
        keep_last: newest checkpoints kept beside the best one.
        best: marks this one as the best so far.

    Raises:
        OSError: on every process, if it could not be written on one; earlier checkpoints are untouched and nothing
            unfinished is left.
    """
    folder = manifest.checkpoints_folder(run_folder)
    final = folder / f"step-{progress['step']:07d}"
    temporary = folder / f".tmp-{final.name}"
    tensors = _tensors(model, optimizer)
    try:
        _everywhere(lambda: _prepare(folder, temporary))
        _everywhere(lambda: storage.write_tensors(temporary, tensors))
        parts = _everywhere(lambda: _describe_own_files(temporary, progress, config, tokenizer))
        files = {name: entry for part in parts for name, entry in part.items()}
        _everywhere(lambda: _commit(temporary, final, files, config, best))
    except BaseException as error:
        if rank() == 0:
            shutil.rmtree(temporary, ignore_errors=True)
        if isinstance(error, OSError):  # from `_everywhere`, hence on all processes
            barrier()
            raise _explain(error, final, tensors) from error
        raise
    if rank() == 0:
        manifest.retain(run_folder, keep_last, final)
    return final


def load(
    path: Path, *, model: nn.Module, optimizer: torch.optim.Optimizer | None = None, tokenizer: Path | None = None
) -> dict[str, Any]:
    """Fills a model, and an optimizer over its parameters, in place; returns the progress. Every process calls it.

    Args:
        tokenizer: the tokenizer in use; refused if it is not the checkpoint's.

    Raises:
        CheckpointError: if the checkpoint is not whole or belongs to another model, optimizer or tokenizer, saying
            which.
    """
    path = Path(path)
    with manifest.reading(path):
        _refuse_broken(path)
        content = manifest.read_manifest(path)
        if tokenizer is not None and manifest.describe(Path(tokenizer))["sha256"] != content["tokenizer"]:
            raise CheckpointError(f"{path} was trained with another tokenizer than {tokenizer}")
        compatibility.refuse_other_model(path, load_config(path).get("model"), model)
        metadata = storage.read_metadata(path, content["files"])
        compatibility.refuse_other_tensors(path, storage.entries(metadata, "model/"), model.state_dict())
        tensors, states = _model_tensors(model), {}
        if optimizer is not None:
            states = compatibility.empty_states(path, storage.entries(metadata, "optimizer/"), model, optimizer)
        tensors |= {f"optimizer/{name}/{key}": value for name, state in states.items() for key, value in state.items()}
        storage.read_tensors(path, metadata, tensors)
        if optimizer is not None:
            parameters = dict(model.named_parameters())
            optimizer.state.clear()
            for name, state in states.items():
                optimizer.state[parameters[name]] = state
        return load_progress(path)


def load_model_weights(path: Path, model: nn.Module) -> None:
    """Fills a model's parameters and buffers from a checkpoint, after the same checks as `load`."""
    load(path, model=model)


def read_weights(path: Path) -> dict[str, Tensor]:
    """Every parameter and buffer of a checkpoint, whole and on the CPU, by its name in the model's `state_dict`.

    Raises:
        CheckpointError: if the checkpoint is not whole.
    """
    return _read_whole(Path(path), "model/")


def read_optimizer_states(path: Path) -> dict[str, dict[str, Tensor]]:
    """The optimizer's state in a checkpoint, whole and on the CPU: by parameter name, then by name of the state.

    A parameter that had no gradient yet is absent.

    Raises:
        CheckpointError: if the checkpoint is not whole.
    """
    states: dict[str, dict[str, Tensor]] = {}
    for key, value in _read_whole(Path(path), "optimizer/").items():
        name, kind = key.rsplit("/", 1)
        states.setdefault(name, {})[kind] = value
    return states


def tokenizer_path(path: Path) -> Path:
    """The tokenizer of a checkpoint.

    Raises:
        CheckpointError: if it was saved without one.
    """
    if not (Path(path) / TOKENIZER).is_file():
        raise CheckpointError(f"{path}: has no tokenizer")
    return Path(path) / TOKENIZER


# -- saving -----------------------------------------------------------------------------------------------------------


def _tensors(model: nn.Module, optimizer: torch.optim.Optimizer) -> dict[str, Tensor]:
    tensors = _model_tensors(model)
    for name, parameter in model.named_parameters():
        for key, value in optimizer.state.get(parameter, {}).items():
            assert isinstance(value, Tensor), f"the optimizer's {key} of {name} is not a tensor"
            tensors[f"optimizer/{name}/{key}"] = value
    return tensors


def _model_tensors(model: nn.Module) -> dict[str, Tensor]:
    return {f"model/{name}": value for name, value in model.state_dict().items()}


def _prepare(folder: Path, temporary: Path) -> None:
    if rank() == 0:
        folder.mkdir(parents=True, exist_ok=True)
        manifest.tidy(folder)
        temporary.mkdir()


def _describe_own_files(
    folder: Path, progress: dict[str, Any], config: dict[str, Any], tokenizer: Path | None
) -> dict[str, Any]:
    """The manifest's entries of the files that this process wrote; shards are large, so each process reads its own."""
    names = [path.name for path in folder.glob(f"__{rank()}_*")]
    if rank() == 0:
        manifest.write_json(folder / "config.json", config)
        manifest.write_json(folder / "progress.json", progress)
        names += [".metadata", "config.json", "progress.json"]
        if tokenizer is not None:
            shutil.copyfile(tokenizer, folder / TOKENIZER)
            manifest.sync(folder / TOKENIZER)
            names.append(TOKENIZER)
    return {name: manifest.describe(folder / name) for name in names}


def _commit(temporary: Path, final: Path, files: dict[str, Any], config: dict[str, Any], best: bool) -> None:
    if rank() != 0:
        return
    content = {
        "format": manifest.FORMAT,
        "processes": world_size(),
        "config": files["config.json"]["sha256"],
        "tokenizer": files.get(TOKENIZER, {}).get("sha256"),
        "files": dict(sorted(files.items())),
    }
    manifest.write_json(temporary / manifest.MANIFEST, content)
    manifest.sync(temporary)
    manifest.commit(temporary, final)
    if best:
        manifest.write_json(final.parent / manifest.BEST, {"name": final.name})


def _everywhere(action: Callable[[], T]) -> list[T]:
    """Runs `action` on every process and returns all results; if it fails on one, it raises OSError on all."""
    result, failure = None, None
    try:
        result = action()
    except Exception as error:
        failure = (getattr(error, "errno", None), f"{type(error).__name__}: {error}")
    outcomes = all_gather_object((result, failure))
    for _, bad in outcomes:
        if bad is not None:
            raise OSError(bad[0] or errno.EIO, bad[1])
    return [value for value, _ in outcomes]  # type: ignore[misc]


def _explain(error: OSError, final: Path, tensors: dict[str, Tensor]) -> OSError:
    """One sentence: torch reports a full disk as an unexpected position in its own file."""
    needed = sum(value.numel() * value.element_size() for value in tensors.values())
    number, reason = error.errno or errno.EIO, " ".join(str(error.strerror).split())[:300]
    try:
        free = shutil.disk_usage(final.parent).free
    except OSError:
        free = needed
    if free < needed or number == errno.ENOSPC:
        number, reason = errno.ENOSPC, f"the disk is full ({needed / 1e6:.0f} MB needed, {free / 1e6:.0f} MB free)"
    return OSError(
        number, f"checkpoint {final.name} was not written, earlier ones are intact: {reason}", str(final.parent)
    )


# -- loading -----------------------------------------------------------------------------------------------------------


def _read_whole(path: Path, prefix: str) -> dict[str, Tensor]:
    with manifest.reading(path):
        _refuse_broken(path)
        metadata = storage.read_metadata(path, manifest.read_manifest(path)["files"])
        found = storage.entries(metadata, prefix)
        tensors = {name: torch.empty(item.size, dtype=item.properties.dtype) for name, item in found.items()}
        storage.read_tensors(path, metadata, {f"{prefix}{name}": value for name, value in tensors.items()})
    return tensors


def _refuse_broken(path: Path) -> None:
    reasons = all_gather_object(verify(path, part=rank(), parts=world_size()))
    for reason in reasons:
        if reason is not None:
            raise CheckpointError(f"{path} is not whole: {reason}")
