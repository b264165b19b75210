"""Which strategy and how many processes a run gets, how stacks are cut, and FSDP2 on one process."""

import sys
from types import SimpleNamespace

import pytest
import torch
import torch.distributed as dist
from lightning.pytorch.strategies import SingleDeviceStrategy
from small_lightning import SmallModule, fit
from small_training import TOTAL, small_config, small_model, small_optimizer, train
from torch import nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.tensor import DTensor, Shard

from superblock.config.fields import ConfigError
from superblock.training import distributed
from superblock.training.sharding import clip_gradients, shard, shard_placement
from superblock.training.strategies import (
    DDPByTorchrun,
    FSDP2Strategy,
    build_strategy,
    resolve_accelerator,
    resolve_strategy,
)


@pytest.fixture(autouse=True)
def _no_torchrun(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("WORLD_SIZE", "LOCAL_WORLD_SIZE", "RANK", "LOCAL_RANK", "MASTER_ADDR", "MASTER_PORT"):
        monkeypatch.delenv(name, raising=False)


@pytest.fixture
def torchrun_of_four(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WORLD_SIZE", "4")
    monkeypatch.setenv("LOCAL_WORLD_SIZE", "2")


def test_names_without_torchrun() -> None:
    assert resolve_strategy("auto") == "single"
    assert (distributed.local_world_size(), distributed.num_nodes()) == (1, 1)
    assert isinstance(build_strategy("auto"), SingleDeviceStrategy)
    assert isinstance(build_strategy("ddp"), DDPByTorchrun)


def test_names_under_torchrun(torchrun_of_four: None) -> None:
    assert resolve_strategy("auto") == "fsdp"
    assert (distributed.local_world_size(), distributed.num_nodes()) == (2, 2)
    strategy = build_strategy("fsdp")
    assert isinstance(strategy, FSDP2Strategy)
    assert (strategy._data_parallel_size, strategy._tensor_parallel_size) == (4, 1)
    with pytest.raises(ConfigError, match="torchrun started 4 processes; use ddp, fsdp or auto"):
        build_strategy("single")


def test_lightning_may_not_start_processes() -> None:
    for strategy in (FSDP2Strategy(), DDPByTorchrun()):
        strategy.cluster_environment = SimpleNamespace(creates_processes_externally=False)  # type: ignore[assignment]
        strategy.parallel_devices = [torch.device("cpu")] * 2
        with pytest.raises(ConfigError, match="torchrun --nproc-per-node 2"):
            strategy._configure_launcher()
        strategy.parallel_devices = [torch.device("cpu")]
        strategy._configure_launcher()


def test_what_cannot_run_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(ConfigError, match="precision=fp16"):
        build_strategy("single", "cpu", "fp16")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert resolve_accelerator("auto") == "cpu"
    with pytest.raises(ConfigError, match="torch sees no GPU"):
        resolve_accelerator("gpu")


def test_half_a_torchrun_is_refused(torchrun_of_four: None) -> None:
    with pytest.raises(ConfigError, match="RANK, LOCAL_RANK, MASTER_ADDR, MASTER_PORT not set"):
        distributed.start_process_group()


def test_collectives_of_one_process() -> None:
    distributed.start_process_group()
    assert not dist.is_initialized()
    assert distributed.all_reduce_sum([1, 2.5]) == [1.0, 2.5]
    assert distributed.all_reduce_max(3) == 3.0
    assert distributed.broadcast_object("x") == "x"
    assert distributed.all_gather_object("x") == ["x"]
    assert (distributed.rank(), distributed.world_size()) == (0, 1)
    distributed.barrier()
    distributed.stop_process_group()


@pytest.mark.parametrize(
    ("shape", "processes", "placement"),
    [
        ((64, 6144, 8192), 1024, Shard(1)),  # by expert, 64 processes would hold everything
        ((64, 6144, 8192), 32, None),
        ((3, 5, 8), 2, Shard(2)),
        ((3, 5, 7), 2, None),
        ((8192, 64), 1024, None),
    ],
)
def test_placement_of_stacks(shape: tuple[int, ...], processes: int, placement: Shard | None) -> None:
    assert shard_placement(torch.Size(shape), processes) == placement


def test_clipping() -> None:
    parameters = [nn.Parameter(torch.zeros(3)), nn.Parameter(torch.zeros(4)), nn.Parameter(torch.zeros(1))]
    parameters[0].grad, parameters[1].grad = torch.full((3,), 2.0), torch.full((4,), 1.0)
    assert clip_gradients(parameters, float("inf")).item() == pytest.approx(4.0)
    assert parameters[0].grad[0] == 2.0
    assert clip_gradients(iter(parameters), 1.0).item() == pytest.approx(4.0)
    assert clip_gradients(parameters, 1.0).item() == pytest.approx(1.0, rel=1e-5)
    assert parameters[2].grad is None


@pytest.mark.skipif(sys.platform == "win32", reason="gloo needs a network interface by name there")
@pytest.mark.parametrize(("name", "tolerance"), [("adamw", 2e-6), ("muon", 1e-2)])
def test_fsdp_on_one_process(group_of_one: None, name: str, tolerance: float) -> None:
    """The start is equal bit for bit; then the last bits differ, which Muon's bf16 products enlarge."""
    expected = small_model()
    model = shard(small_config(), seed=1, mesh=init_device_mesh("cpu", (1,)), device="cpu")
    for key, value in model.state_dict().items():
        whole = value.full_tensor() if isinstance(value, DTensor) else value
        assert torch.equal(whole, expected.state_dict()[key])
    losses = train(expected, small_optimizer(expected, name), range(TOTAL))
    assert train(model, small_optimizer(model, name), range(TOTAL)) == pytest.approx(losses, abs=tolerance)


@pytest.mark.skipif(sys.platform == "win32", reason="gloo needs a network interface by name there")
def test_an_unsharded_model_is_refused(group_of_one: None) -> None:
    with pytest.raises(RuntimeError, match="parameters unsharded, model.embedding.weight first"):
        fit("fsdp", SmallModule("single"))
    assert fit("fsdp")["sharded"]
