"""A registered model's folder is a checkpoint: it loads, grows, and is refused where it is not whole."""

import json
from dataclasses import asdict
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from small_training import small_config, small_model, small_optimizer, train

from superblock.models.growth import plan_growth
from superblock.optim.growth import transplant_states
from superblock.training import checkpoint, registered
from superblock.training.manifest import CheckpointError, load_progress, verify


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Of a model with tensors of several dtypes."""
    (tmp_path / "config.json").write_text(json.dumps({"model": asdict(small_config())}))
    (tmp_path / "tokenizer.json").write_text("{}")
    folder = tmp_path / "registered"
    folder.mkdir()
    weights = small_model().state_dict()
    lineage = {"step": 7, "tokens_seen": 99, "lineage": []}
    registered.write(folder, weights, tmp_path / "config.json", tmp_path / "tokenizer.json", lineage)
    return folder


def test_it_loads_as_a_checkpoint_does(folder: Path) -> None:
    expected, model = small_model().state_dict(), small_model()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.zero_()
    assert verify(folder) is None
    assert checkpoint.load(folder, model=model) == load_progress(folder)
    assert load_progress(folder)["step"] == 7
    for weights in (model.state_dict(), checkpoint.read_weights(folder), load_file(folder / "weights.safetensors")):
        assert list(weights.keys() ^ expected.keys()) == []
        assert all(torch.equal(weights[name], expected[name]) for name in expected)
        assert all(weights[name].dtype == expected[name].dtype for name in expected)
    assert checkpoint.tokenizer_path(folder).read_text() == "{}"


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float64, torch.int64, torch.uint8, torch.bool])
def test_every_dtype_keeps_its_name(tmp_path: Path, dtype: torch.dtype) -> None:
    (tmp_path / "json").write_text("{}")
    (tmp_path / "out").mkdir()
    tensors = {"one": torch.tensor([0, 1]).to(dtype), "number": torch.ones((), dtype=dtype)}
    registered.write(tmp_path / "out", tensors, tmp_path / "json", tmp_path / "json", {"step": 0})
    read = checkpoint.read_weights(tmp_path / "out")
    assert {name: (value.dtype, value.tolist()) for name, value in read.items()} == {
        name: (dtype, value.tolist()) for name, value in tensors.items()
    }


def test_growth_from_it_begins_a_new_optimizer(folder: Path) -> None:
    assert checkpoint.read_optimizer_states(folder) == {}
    grown = small_model(num_superblocks=3)
    optimizer = small_optimizer(grown)
    train(grown, optimizer, range(2))
    transplant_states(plan_growth(small_config(), small_config(num_superblocks=3), "identity"), {}, grown, optimizer)
    assert not optimizer.state


def test_what_is_not_whole_or_another_model_is_refused(folder: Path) -> None:
    with pytest.raises(CheckpointError, match=r"model\.num_superblocks is 2 there and 3 here"):
        checkpoint.load(folder, model=small_model(num_superblocks=3))
    weights = folder / "weights.safetensors"
    content = weights.read_bytes()
    weights.write_bytes(content[:-1] + bytes([content[-1] ^ 1]))
    with pytest.raises(CheckpointError, match="its checksum differs"):
        checkpoint.read_weights(folder)
    weights.unlink()
    with pytest.raises(CheckpointError, match=r"weights\.safetensors is missing"):
        checkpoint.read_weights(folder)


def test_a_broken_file_is_named(folder: Path) -> None:
    (folder / "weights.safetensors").write_bytes(b"nonsense")
    with pytest.raises(CheckpointError, match=r"weights\.safetensors cannot be read"):
        registered.read_metadata(folder)
