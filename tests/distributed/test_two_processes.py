"""Two real processes compute what one computes, and each reads what the other wrote."""

from pathlib import Path
from typing import Any

import pytest
import torch
from launch import torchrun
from small_training import TOTAL, small_config, small_model, small_optimizer, train

from superblock.models.language_model import build_model
from superblock.training import checkpoint

pytestmark = [pytest.mark.slow, pytest.mark.distributed]
HALF = TOTAL // 2


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("two")


@pytest.fixture(scope="module")
def single(folder: Path) -> dict[str, Any]:
    """One process: losses and final weights with both optimizers, and a checkpoint half-way."""
    model = small_model()
    optimizer = small_optimizer(model)
    losses = train(model, optimizer, range(HALF))
    checkpoint.save(folder / "one", model=model, optimizer=optimizer, progress={"step": HALF}, config={})
    losses += train(model, optimizer, range(HALF, TOTAL))
    other = small_model()
    return {
        "adamw": losses,
        "weights": model.state_dict(),
        "muon": train(other, small_optimizer(other, "muon"), range(TOTAL)),
    }


@pytest.fixture(scope="module")
def double(folder: Path, single: dict[str, Any]) -> list[dict[str, Any]]:
    return torchrun("training", folder)


def _weights(path: Path) -> dict[str, torch.Tensor]:
    weights: dict[str, torch.Tensor] = torch.load(path, weights_only=True)
    return weights


def test_sharded_weights_are_those_of_one_process(folder: Path, double: list[dict[str, Any]]) -> None:
    start = _weights(folder / "start.pt")
    assert all(torch.equal(value, start[name]) for name, value in small_model().state_dict().items())
    assert double[0]["sharded"]
    total = sum(parameter.numel() for parameter in small_model().parameters())
    assert total <= double[0]["local"] + double[1]["local"] <= 1.01 * total


@pytest.mark.parametrize("strategy", ["fsdp", "ddp"])
def test_against_one_process(folder: Path, single: dict[str, Any], double: list[dict[str, Any]], strategy: str) -> None:
    assert double[0][strategy] == double[1][strategy]
    assert double[0][strategy] == pytest.approx(single["adamw"], abs=2e-6)
    final = _weights(folder / f"{strategy}.pt")
    assert max(float((value - final[name]).abs().max()) for name, value in single["weights"].items()) < 1e-4


def test_muon_against_one_process(single: dict[str, Any], double: list[dict[str, Any]]) -> None:
    """Orthogonalisation is in bf16, where a gradient that differs in its last bit may round to its neighbour."""
    assert double[0]["muon"] == pytest.approx(single["muon"], abs=1e-2)


def test_written_by_two_read_by_one(folder: Path, double: list[dict[str, Any]]) -> None:
    model = build_model(small_config(), seed=9)
    optimizer = small_optimizer(model)
    path, skipped = checkpoint.newest_whole(folder / "two")
    assert path is not None and not skipped
    assert checkpoint.load(path, model=model, optimizer=optimizer) == {"step": HALF}
    assert train(model, optimizer, range(HALF, TOTAL)) == pytest.approx(double[0]["fsdp"][HALF:], abs=1e-6)


def test_written_by_one_read_by_two(single: dict[str, Any], double: list[dict[str, Any]]) -> None:
    assert double[0]["progress"] == double[1]["progress"] == {"step": HALF}
    assert double[0]["resumed"] == pytest.approx(single["adamw"][HALF:], abs=1e-6)


def test_recomputed_and_compiled_layers(tmp_path: Path) -> None:
    found = torchrun("layers", tmp_path)[0]
    assert found["recomputed"] == pytest.approx(found["plain"], abs=2e-6)
    assert found["compiled"] == pytest.approx(found["plain"], abs=1e-5)


def test_experts_that_do_not_divide(tmp_path: Path) -> None:
    found = torchrun("uneven", tmp_path)
    start = _weights(tmp_path / "uneven-start.pt")
    model = small_model(moe__num_experts=3)
    assert all(torch.equal(value, start[name]) for name, value in model.state_dict().items())
    for result in found:
        assert result["placement"].endswith("(1)") or "dim=1" in result["placement"]
        assert result["shape"] == [3, 16, 32]
        assert result["adamw"] and result["muon"]
        assert result["norm"][0] == pytest.approx(result["norm"][1], rel=1e-5)
        assert result["clipped"] == pytest.approx(1.0, rel=1e-4)


def test_a_disk_that_is_full_for_one_process(tmp_path: Path) -> None:
    found = torchrun("faults", tmp_path)
    for result in found:
        assert "step-0000002 was not written, earlier ones are intact: the disk is full" in result["error"]
        assert result["names"] == ["step-0000001"]
        assert "__1_0.distcp has 5 bytes instead of" in result["broken"]


def test_lightning_strategies_against_one_process(tmp_path: Path) -> None:
    from small_lightning import fit

    expected = fit("single")["losses"]
    for result in torchrun("lightning", tmp_path):
        assert result["fsdp"]["sharded"] and not result["ddp"]["sharded"]
        for name in ("fsdp", "ddp"):
            assert result[name]["losses"] == pytest.approx(expected, abs=2e-6)


def test_collectives(tmp_path: Path) -> None:
    found = torchrun("collectives", tmp_path)
    for rank, result in enumerate(found):
        assert result == {
            "rank": rank,
            "sum": [3.0, 2.0**53 - 1],
            "max": 1.0,
            "first": {"from": 0},
            "all": [0, 1],
            "threads": 1,
        }
