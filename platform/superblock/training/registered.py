"""A registered model's folder: a checkpoint without optimizer state, in files that anybody can read.

    weights.safetensors   every parameter and buffer, whole, as the model's state_dict names it
    config.json           the configuration it was trained with
    tokenizer.json        as `tokenizers` saves it
    lineage.json          `step`, `tokens_seen`, `lineage` as a checkpoint's progress has them, and where it comes from
    manifest.json         sizes and SHA-256 of the others, as in every checkpoint

So whatever takes a checkpoint's folder takes this one: generation, growth (with a new optimizer), verification.
"""

import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor
from torch.distributed.checkpoint.metadata import Metadata, TensorProperties, TensorStorageMetadata

from superblock.models.init import local_region
from superblock.training import manifest
from superblock.training.manifest import LINEAGE, WEIGHTS, CheckpointError

PREFIX = "model/"


def write(folder: Path, weights: Mapping[str, Tensor], config: Path, tokenizer: Path, lineage: dict[str, Any]) -> None:
    """Fills an empty folder; the manifest comes last, so that a folder cut short is never taken for a whole one.

    Args:
        weights: by name in the state_dict, on the CPU.
        config, tokenizer: files to copy.
        lineage: JSON-able, with `step`, `tokens_seen` and `lineage`.
    """
    contiguous = {name: tensor.detach().contiguous() for name, tensor in weights.items()}
    save_file(contiguous, folder / WEIGHTS, metadata={"format": "pt"})
    shutil.copyfile(config, folder / "config.json")
    shutil.copyfile(tokenizer, folder / "tokenizer.json")
    manifest.write_json(folder / LINEAGE, lineage)
    files = {path.name: manifest.describe(path) for path in sorted(folder.iterdir())}
    content = {
        "format": manifest.FORMAT,
        "processes": 1,
        "config": files["config.json"]["sha256"],
        "tokenizer": files["tokenizer.json"]["sha256"],
        "files": files,
    }
    manifest.write_json(folder / manifest.MANIFEST, content)


def read_metadata(path: Path) -> Metadata:
    """Names, shapes and dtypes, as those of a checkpoint's tensors.

    Raises:
        CheckpointError: if the file cannot be read.
    """
    try:
        with safe_open(path / WEIGHTS, framework="pt") as file:
            slices = {name: file.get_slice(name) for name in file.keys()}  # noqa: SIM118 - it is no mapping
            found = {
                f"{PREFIX}{name}": (torch.Size(s.get_shape()), _dtype(s.get_dtype())) for name, s in slices.items()
            }
    except (OSError, SafetensorError) as error:
        raise CheckpointError(f"{path / WEIGHTS} cannot be read ({error})") from None
    return Metadata(
        {name: TensorStorageMetadata(TensorProperties(dtype), size, []) for name, (size, dtype) in found.items()}
    )


@torch.no_grad()
def read_tensors(path: Path, tensors: Mapping[str, Tensor]) -> None:
    """Fills plain and sharded tensors in place, each process its own parts.

    Raises:
        CheckpointError: if the file cannot be read.
    """
    try:
        with safe_open(path / WEIGHTS, framework="pt") as file:
            for name, tensor in tensors.items():
                local, region = local_region(tensor)
                stored = file.get_slice(name.removeprefix(PREFIX))
                local.copy_(stored[region] if region else file.get_tensor(name.removeprefix(PREFIX)))
    except (OSError, SafetensorError) as error:
        raise CheckpointError(f"{path / WEIGHTS} cannot be read ({error})") from None


def _dtype(name: str) -> torch.dtype:
    """The dtype that safetensors calls F32, BF16, I64."""
    kinds = {"F": "float", "BF": "bfloat", "I": "int", "U": "uint"}
    if name == "BOOL":
        return torch.bool
    letters = name.rstrip("0123456789")
    dtype: torch.dtype = getattr(torch, f"{kinds[letters]}{name.removeprefix(letters)}")
    return dtype
