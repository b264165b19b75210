"""What one process of a distributed test does: `worker.py <scenario> <folder>` under torchrun writes its findings as JSON."""

import json
import sys
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.tensor import DTensor
from torch.nn.parallel import DistributedDataParallel

sys.path.insert(0, str(Path(__file__).parents[1] / "training"))

from small_training import TOTAL, small_config, small_model, small_optimizer, train

from superblock.config.model import ModelConfig
from superblock.config.trainer import TrainerConfig
from superblock.models.language_model import SuperblockModel
from superblock.training import checkpoint
from superblock.training.distributed import (
    all_gather_object,
    all_reduce_max,
    all_reduce_sum,
    barrier,
    broadcast_object,
    rank,
    start_process_group,
    stop_process_group,
    world_size,
)
from superblock.training.layers import prepare_layers
from superblock.training.sharding import clip_gradients, shard

HALF = TOTAL // 2
COMPILE = torch.compile


def sharded(config: ModelConfig | None = None) -> SuperblockModel:
    mesh = init_device_mesh("cpu", (world_size(),))
    return shard(config or small_config(), seed=1, mesh=mesh, device="cpu")


def steps(model: nn.Module, optimizer: torch.optim.Optimizer, first: int, last: int) -> list[float]:
    """Trains and returns the losses over all processes."""
    losses = train(model, optimizer, range(first, last), rank=rank(), processes=world_size())
    return [total / world_size() for total in all_reduce_sum(losses)]


def whole(model: nn.Module) -> dict[str, torch.Tensor]:
    """All weights in full, on every process."""
    items = model.state_dict().items()
    return {name: value.full_tensor() if isinstance(value, DTensor) else value.clone() for name, value in items}


def keep(folder: Path, name: str, model: nn.Module) -> None:
    weights = whole(model)
    if rank() == 0:
        torch.save(weights, folder / f"{name}.pt")


def training(folder: Path) -> dict[str, Any]:
    """FSDP2 and DDP from the same start, with AdamW and Muon; a checkpoint half-way; one that a single process wrote."""
    found: dict[str, Any] = {}
    model = sharded()
    keep(folder, "start", model)
    found["sharded"] = all(isinstance(parameter, DTensor) for parameter in model.parameters())
    found["local"] = sum(p.to_local().numel() for p in model.parameters() if isinstance(p, DTensor))
    optimizer = small_optimizer(model)
    found["fsdp"] = steps(model, optimizer, 0, HALF)
    checkpoint.save(folder / "two", model=model, optimizer=optimizer, progress={"step": HALF}, config={}, best=True)
    found["fsdp"] += steps(model, optimizer, HALF, TOTAL)
    keep(folder, "fsdp", model)

    model = sharded()
    optimizer = small_optimizer(model)
    found["progress"] = checkpoint.load(
        folder / "one" / "checkpoints" / f"step-{HALF:07d}", model=model, optimizer=optimizer
    )
    found["resumed"] = steps(model, optimizer, HALF, TOTAL)

    model = sharded()
    found["muon"] = steps(model, small_optimizer(model, "muon"), 0, TOTAL)

    replica = small_model()
    wrapped = DistributedDataParallel(replica, find_unused_parameters=True, broadcast_buffers=False)
    found["ddp"] = steps(wrapped, small_optimizer(replica), 0, TOTAL)
    keep(folder, "ddp", replica)
    return found


def layers(folder: Path) -> dict[str, Any]:
    """Layers that are recomputed, and compiled as well, inside sharded superblocks."""
    config = small_config(moe__backend="sorted", gdn__backend="chunked", gqa__backend="sdpa")
    found: dict[str, Any] = {}
    for name, settings in {
        "plain": TrainerConfig(),
        "recomputed": TrainerConfig(activation_checkpointing="full"),
        "compiled": TrainerConfig(activation_checkpointing="selective", compile=True),
    }.items():
        torch.compile = partial(COMPILE, backend="aot_eager")  # without the code generator, which takes minutes
        model = shard(
            config,
            seed=1,
            mesh=init_device_mesh("cpu", (world_size(),)),
            device="cpu",
            prepare=partial(prepare_layers, config=settings),
        )
        found[name] = steps(model, small_optimizer(model), 0, HALF)
    return found


def uneven(folder: Path) -> dict[str, Any]:
    """Three experts on two processes: cut by rows; clipping, both optimizers and checkpoints must cope."""
    config = small_config(moe__num_experts=3)
    model = sharded(config)
    keep(folder, "uneven-start", model)
    experts = model.superblocks[0].layers[0].moe.gate_up
    found: dict[str, Any] = {"placement": str(experts.placements[0]), "shape": list(experts.to_local().shape)}
    for name in ("adamw", "muon"):
        optimizer = small_optimizer(model, name)
        steps(model, optimizer, 0, 4)
        path = checkpoint.save(folder / name, model=model, optimizer=optimizer, progress={"step": 4}, config={})
        before = whole(model)
        other = sharded(config)
        checkpoint.load(path, model=other, optimizer=small_optimizer(other, name))
        after = whole(other)
        found[name] = all(torch.equal(value, after[key]) for key, value in before.items())
    for parameter in model.parameters():
        parameter.grad = torch.ones_like(parameter)
    size = sum(parameter.numel() for parameter in model.parameters())
    found["norm"] = [float(clip_gradients(model.parameters(), 1.0)), size**0.5]
    found["clipped"] = float(clip_gradients(model.parameters(), float("inf")))
    return found


def faults(folder: Path) -> dict[str, Any]:
    """One process cannot write; all of them must hear of it, and the previous checkpoint must stay."""
    model = sharded()
    optimizer = small_optimizer(model)
    options: dict[str, Any] = {"model": model, "optimizer": optimizer, "config": {}}
    checkpoint.save(folder, progress={"step": 1}, **options)
    write_item = torch.save

    def full(*args: Any, **keywords: Any) -> None:
        if rank() == 1:
            raise OSError(28, "No space left on device")
        write_item(*args, **keywords)

    torch.save = full  # type: ignore[assignment]
    found: dict[str, Any] = {"error": None}
    try:
        checkpoint.save(folder, progress={"step": 2}, **options)
    except OSError as error:
        found["error"] = str(error)
    torch.save = write_item  # type: ignore[assignment]
    found["names"] = sorted(path.name for path in (folder / "checkpoints").iterdir())
    path, _ = checkpoint.newest_whole(folder)
    assert path is not None
    checkpoint.load(path, model=model, optimizer=optimizer)

    shards = sorted(path.glob("__1_*"))
    all_gather_object(None)
    if rank() == 0:
        shards[0].write_bytes(b"short")
    all_gather_object(None)
    try:
        checkpoint.load(path, model=model)
    except checkpoint.CheckpointError as error:
        found["broken"] = str(error)
    return found


def lightning(folder: Path) -> dict[str, Any]:
    """The strategies under Lightning's Trainer, with manual optimisation."""
    from small_lightning import fit

    return {name: fit(name) for name in ("fsdp", "ddp")}


def collectives(folder: Path) -> dict[str, Any]:
    """The helpers themselves."""
    return {
        "rank": rank(),
        "sum": all_reduce_sum([rank() + 1, 2**53 - 1 if rank() == 0 else 0]),
        "max": all_reduce_max(float(rank())),
        "first": broadcast_object({"from": rank()}),
        "all": all_gather_object(rank()),
        "threads": torch.get_num_threads(),
    }


def main() -> None:
    scenario, folder = sys.argv[1], Path(sys.argv[2])
    start_process_group("cpu")
    found = globals()[scenario](folder)
    (folder / f"{scenario}-{rank()}.json").write_text(json.dumps(found))
    barrier()  # gloo aborts a process that leaves while another still talks to it
    stop_process_group()


if __name__ == "__main__":
    main()
