"""Families by name, and the example of a model of one's own."""

import importlib.util
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import torch

from superblock.config.fields import ConfigError
from superblock.config.model import ModelConfig
from superblock.models.batch import Batch
from superblock.models.language_model import SuperblockModel, build_model
from superblock.models.registry import FAMILIES, LanguageModel

EXAMPLE = Path(__file__).parents[1] / "examples" / "own_model.py"


@pytest.fixture
def example() -> Iterator[None]:
    """The example's family, registered for the length of a test."""
    spec = importlib.util.spec_from_file_location("own_model", EXAMPLE)
    assert spec and spec.loader
    spec.loader.exec_module(importlib.util.module_from_spec(spec))
    yield
    del FAMILIES["gru"]


def test_the_default_family(small: Callable[..., ModelConfig]) -> None:
    assert isinstance(build_model(small(), seed=0, device="meta"), SuperblockModel)


def test_a_misspelt_family_names_the_right_one(small: Callable[..., ModelConfig]) -> None:
    with pytest.raises(ConfigError, match=r"model\.family=superblok: must be one of .*did you mean superblock\?"):
        build_model(small(family="superblok"), seed=0)


@pytest.mark.usefixtures("example")
def test_own_model_learns(small: Callable[..., ModelConfig], packed: Callable[..., Batch]) -> None:
    config, batch = small(family="gru"), packed([24], [24])
    model: LanguageModel = build_model(config, seed=0)
    assert isinstance(model, torch.nn.Module)
    optimizer = torch.optim.AdamW(model.parameters(), lr=3e-2)
    means = []
    for _ in range(30):
        terms = model(batch.input_ids_BT, batch.pack, batch.labels_BT).losses
        assert {name: term.count for name, term in terms.items()} == model.count_targets(batch, None)
        loss = torch.stack([term.weight * term.total / term.count for term in terms.values()]).sum()
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        means.append(loss.item())
    assert means[-1] < 0.3 * means[0]
    scores = model(batch.input_ids_BT, batch.pack, batch.labels_BT, score=True).scores["next_token"]
    assert scores.nll_BT.mean().item() < means[0]
    assert model(batch.input_ids_BT).logits_BTV.shape == (2, 24, config.vocab_size)
