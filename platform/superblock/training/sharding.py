"""FSDP2 for a model: which modules are gathered together, and along which dimension a parameter is cut.

Parameters stay fp32 and are gathered as such, so that a sharded run computes what a single process computes; autocast
lowers the precision of the products. Buffers, such as the routers' selection biases, stay whole on every process.
"""

import math
from collections.abc import Callable, Iterable

import torch
from torch import Tensor, nn
from torch.distributed.device_mesh import DeviceMesh
from torch.distributed.fsdp import fully_shard
from torch.distributed.tensor import DTensor, Shard

from superblock.config.model import ModelConfig
from superblock.models.init import init_weights
from superblock.models.language_model import SuperblockModel, build_model


def shard(
    config: ModelConfig,
    *,
    seed: int,
    mesh: DeviceMesh,
    device: torch.device | str,
    prepare: Callable[[nn.Module], None] = lambda model: None,
) -> SuperblockModel:
    """Builds a sharded model without ever holding the whole of it.

    The model is made on the meta device, cut, given storage for this process's parts, and only then filled. Its weights
    are those of `build_model` with the same seed, for any number of processes.

    Args:
        mesh: one dimension, over all processes.
        device: where this process's parts live.
        prepare: changes the model before it is cut (training.layers).
    """
    model = build_model(config, seed=seed, device="meta")
    prepare(model)
    shard_modules(model, mesh)
    model.to_empty(device=device)
    init_weights(model, seed)
    return model


def shard_modules(model: nn.Module, mesh: DeviceMesh) -> None:
    """Makes each superblock and each head a unit that is gathered on its own; the root holds the tables and the norm."""

    def placement(parameter: nn.Parameter) -> Shard | None:
        return shard_placement(parameter.shape, mesh.size())

    for name in ("superblocks", "heads"):
        for unit in getattr(model, name):
            if next(unit.parameters(), None) is not None:
                fully_shard(unit, mesh=mesh, shard_placement_fn=placement)
    fully_shard(model, mesh=mesh, shard_placement_fn=placement)
    plain = [name for name, parameter in model.named_parameters() if not isinstance(parameter, DTensor)]
    assert not plain, f"not sharded: {plain}"  # clipping and fused optimizers cannot mix plain and sharded tensors


def shard_placement(shape: torch.Size, processes: int) -> Shard | None:
    """The dimension along which a stack of experts [E, A, B] is cut; None is the first, the default.

    With more processes than experts, cutting by expert would pad: 64 experts on 1024 processes put 16 times its share
    on some of them. Rows or columns are cut instead where they divide evenly, which FSDP2 wants of them.
    """
    if len(shape) == 3 and shape[0] % processes:
        for dim in (1, 2):
            if shape[dim] % processes == 0:
                return Shard(dim)
    return None


def clip_gradients(parameters: Iterable[nn.Parameter], max_norm: float) -> Tensor:
    """Scales all gradients together so that their global norm is at most `max_norm`.

    Every process calls it. It does not wait for a GPU; on a processor, where looking at the norm costs nothing,
    gradients that need no scaling are left alone instead of multiplied by 1 (half of the time that clipping takes).

    Returns:
        fp32 scalar: the norm before clipping, over all processes' parts.
    """
    given = [parameter for parameter in parameters if parameter.grad is not None]
    norm = torch.nn.utils.get_total_norm([parameter.grad for parameter in given if parameter.grad is not None])
    if isinstance(norm, DTensor):
        norm = norm.full_tensor()
    short = norm.device.type == "cpu" and float(norm) + 1e-6 <= max_norm  # torch's own margin; NaN is not short
    if math.isfinite(max_norm) and not short:
        torch.nn.utils.clip_grads_with_norm_(given, max_norm, norm)
    return norm.detach()
