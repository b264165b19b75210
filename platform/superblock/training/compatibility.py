"""Whether a checkpoint belongs to a model and an optimizer, before a single weight is changed.

torch's own loading does not see names that only the checkpoint has, nor a number of heads or experts per token that
changes no shape: such a checkpoint would load and compute something else.
"""

import json
from collections.abc import Mapping
from dataclasses import asdict, is_dataclass
from itertools import islice
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.distributed.checkpoint.metadata import TensorStorageMetadata

from superblock.config.fields import differences
from superblock.training.manifest import CheckpointError

_FREE = {"backend", "chunk_size", "cross_entropy_chunk", "expect_params"}
"""Model settings that may differ between saving and loading: they choose how the same function is computed."""


def refuse_other_model(path: Path, stored: Any, model: nn.Module) -> None:
    """Compares the model section of a stored configuration with `model.config`, where both are known.

    A setting that is newer than the checkpoint counts as its default, which is what there was before.

    Raises:
        CheckpointError: naming the settings that differ.
    """
    here = getattr(model, "config", None)
    if here is None or stored is None or not is_dataclass(here) or isinstance(here, type):
        return
    there = _completed(stored, asdict(type(here)()))
    found = islice(differences(there, json.loads(json.dumps(asdict(here))), "model", _FREE), 4)
    if lines := [f"{key} is {before} there and {now} here" for key, before, now in found]:
        raise CheckpointError(f"{path} holds another model: " + "; ".join(lines))


def _completed(stored: Mapping[str, Any], defaults: Mapping[str, Any]) -> dict[str, Any]:
    """The stored settings, and the defaults of those it does not name."""
    found = {**defaults, **stored}
    for name, default in defaults.items():
        if isinstance(default, Mapping) and isinstance(found[name], Mapping):
            found[name] = _completed(found[name], default)
    return found


def refuse_other_tensors(path: Path, stored: Mapping[str, TensorStorageMetadata], state: Mapping[str, Tensor]) -> None:
    """Compares the names and shapes of a checkpoint's model tensors with the model's.

    Raises:
        CheckpointError: naming up to three tensors that one side lacks, or the first whose shape differs.
    """
    missing, extra = sorted(state.keys() - stored.keys()), sorted(stored.keys() - state.keys())
    if missing or extra:
        names = missing or extra
        fault = "lacks" if missing else "has, beyond this model,"
        rest = f" and {len(names) - 3} more" if len(names) > 3 else ""
        raise CheckpointError(f"{path} {fault} {', '.join(names[:3])}{rest}")
    for name, tensor in state.items():
        if stored[name].size != tensor.shape:
            shapes = f"{list(stored[name].size)} there and {list(tensor.shape)} here"
            raise CheckpointError(f"{path} holds another model: {name} is {shapes}")


def empty_states(
    path: Path, stored: Mapping[str, TensorStorageMetadata], model: nn.Module, optimizer: torch.optim.Optimizer
) -> dict[str, dict[str, Tensor]]:
    """Room for the optimizer state that a checkpoint has: by parameter name, then by name of the state.

    A parameter that has not had a gradient yet has no state there, and gets none here.

    Raises:
        CheckpointError: if the state is that of another optimizer.
    """
    parameters = dict(model.named_parameters())
    muon = {parameter: group.get("muon", False) for group in optimizer.param_groups for parameter in group["params"]}
    states: dict[str, dict[str, Tensor]] = {}
    for key, item in stored.items():
        name, kind = key.rsplit("/", 1)
        parameter = parameters.get(name)
        if parameter is None or (kind == "momentum_buffer") != muon.get(parameter):
            raise CheckpointError(
                f"{path} was trained with another optimizer: its {kind} of {name} has no place in this one"
            )
        dtype = item.properties.dtype
        if kind == "step":
            states.setdefault(name, {})[kind] = torch.zeros((), dtype=dtype, device=parameter.device)
        else:
            states.setdefault(name, {})[kind] = torch.zeros_like(parameter, dtype=dtype, requires_grad=False)
    return states
