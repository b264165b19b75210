"""Stand-ins for what a callback is given: a module with the values of the step just done, a tracker that remembers."""

from types import SimpleNamespace
from typing import Any

import pytest
import torch

from superblock.config.run import RunConfig


class RememberingTracker:
    """Keeps what was recorded, in order."""

    def __init__(self) -> None:
        self.steps: list[tuple[int, dict[str, float]]] = []
        self.results: dict[str, float] = {}
        self.texts: dict[str, str] = {}

    def metrics(self, values: dict[str, float], step: int) -> None:
        assert all(isinstance(value, float) for value in values.values())
        self.steps.append((step, values))

    def result(self, values: dict[str, float]) -> None:
        self.results |= values

    def text(self, text: str, name: str) -> None:
        self.texts[name] = text

    def series(self, key: str) -> list[tuple[int, float]]:
        return [(step, values[key]) for step, values in self.steps if key in values]


class StandInModule(SimpleNamespace):
    """One call of `advance` is one optimizer step of 100 tokens."""

    def advance(self, **last: Any) -> None:
        self.step += 1
        self.tokens_seen += self.tokens_per_step
        for name, value in last.items():
            setattr(self, f"last_{name}", value)

    def bytes_of_scored_tokens(self, split: str, tokens: int) -> float:
        return {"val": 4.0, "test": 3.0}[split] * tokens


@pytest.fixture
def module() -> StandInModule:
    config = RunConfig()
    config.trainer.log_every = 3
    config.trainer.precision = "fp32"
    return StandInModule(
        model=torch.nn.Linear(3, 2),
        config=config,
        tracker=RememberingTracker(),
        device=torch.device("cpu"),
        step=0,
        total_steps=7,
        tokens_seen=0,
        tokens_per_step=100,
        last_losses={},
        last_expert_counts_LE=None,
        last_router_stats={},
        last_gradient_norm=torch.tensor(1.0),
        last_learning_rate=0.001,
        val_bits_per_byte=None,
        best_val_bits_per_byte=None,
    )


@pytest.fixture
def trainer() -> SimpleNamespace:
    return SimpleNamespace(
        is_global_zero=True,
        world_size=1,
        sanity_checking=False,
        state=SimpleNamespace(fn="fit"),
        num_val_batches=[4],
        num_test_batches=[4],
    )
