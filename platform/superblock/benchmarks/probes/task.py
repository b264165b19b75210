"""What a probe is: how its examples are drawn, what of them is scored, and how it is trained.

Legend: B sequences, T tokens. A label is the token that the model is to answer with at that very place (Zoology's
convention: the input is not shifted), or `IGNORE` where nothing is asked.
"""

from collections.abc import Callable
from dataclasses import dataclass, replace

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from superblock.models.batch import IGNORE

Ids = NDArray[np.int64]
WIDTH = 64
"""Of every model's residual stream."""


@dataclass(frozen=True)
class Examples:
    """Sequences of one length."""

    ids_BT: Ids
    labels_BT: Ids

    def tensors(self) -> tuple[Tensor, Tensor]:
        """As the model takes them."""
        return torch.from_numpy(self.ids_BT), torch.from_numpy(self.labels_BT)


Draw = Callable[[np.random.Generator, int], Examples]
"""So many sequences of a distribution."""


@dataclass(frozen=True)
class Level:
    """One difficulty at which a trained model is tested."""

    name: str
    """Such as `pairs=8`: what grows, and how far."""
    draw: Draw
    examples: int
    """Sequences of the test."""
    scored: bool
    """Whether it is part of the score."""
    trained: bool
    """Whether examples of this difficulty were trained on."""

    @property
    def size(self) -> int:
        """The number in its name: its step in MLflow."""
        return int(self.name.partition("=")[2])

    @property
    def tokens(self) -> int:
        """Tokens of one of its sequences."""
        return sequence_length(self.draw)


@dataclass(frozen=True)
class Recipe:
    """How a model is trained on a task: AdamW, linear warm-up and cosine, gradients clipped to 1."""

    steps: int
    learning_rate: float
    seconds: float
    """What a run takes in one thread of the processor that it was tried on, for the plan alone."""
    weight_decay: float = 0.1
    warmup: float = 0.05
    """Share of the steps."""
    stop: float | None = 0.99
    """Training ends once accuracy on fresh examples of the training distribution was this high in `STOP_AFTER`
    evaluations in a row (Zoology's early stop); None trains all steps."""


@dataclass(frozen=True)
class Task:
    """One probe at one tier."""

    name: str
    ability: str
    """What it asks for, in a few words."""
    setting: str
    """Sizes as they are here, in words."""
    vocabulary: int
    """Token ids are below it."""
    chance: float
    """Accuracy of the best answer that does not look at the input."""
    batches: tuple[Draw, ...]
    """Distributions of training, one after the other from step to step; together they are the training distribution."""
    batch_tokens: int
    """Tokens of a step, about: each distribution has as many sequences as fit."""
    levels: tuple[Level, ...]
    recipe: Recipe
    arms: tuple[str, ...]
    """Those that run unless others are asked for."""
    published_setting: str
    published: str | None
    """What others measured, in words, with its source."""
    rope_fraction: float = 0.25
    rope_theta: float = 10000.0
    """Position encoding of attention, see `AttentionConfig`."""
    tied: bool = False
    """One table for reading and answering tokens, as in Zoology: what was looked up is then nearly the answer."""
    init_std: float = WIDTH**-0.5
    """Standard deviation of the initial weights; larger models have 0.02, which leaves the output gates of one as narrow as
    these nearly shut: then recall is hardly learnt, and state tracking, which needs no more than a few directions, best."""
    key_dim: int = 32
    """Width of a key of Gated DeltaNet: so many associations fit into a head's state without disturbing each other."""
    balanced: bool = True
    """Whether the load of experts is balanced, as in training on text. Moved in every step, the selection goes on changing what a
    token computes, which a state that is carried through hundreds of tokens does not forgive."""

    def sequences(self, draw: Draw) -> int:
        """Sequences of a step of one of `batches`."""
        return max(1, self.batch_tokens // sequence_length(draw))

    def shortened(self, steps: int, examples: int) -> "Task":
        """The same with few steps and few examples, for a smoke test."""
        levels = tuple(replace(level, examples=min(examples, level.examples)) for level in self.levels)
        tokens = min(self.batch_tokens, 512)
        return replace(
            self, levels=levels, batch_tokens=tokens, recipe=replace(self.recipe, steps=min(steps, self.recipe.steps), seconds=1.0)
        )  # fmt: skip


def sequence_length(draw: Draw) -> int:
    """Tokens of a sequence that `draw` makes."""
    return int(draw(np.random.default_rng(0), 1).ids_BT.shape[1])


def unasked(B: int, T: int) -> Ids:
    """Labels that ask for nothing."""
    return np.full((B, T), IGNORE, dtype=np.int64)


def distinct(rng: np.random.Generator, B: int, population: int, count: int) -> Ids:
    """[B, count] different numbers below `population` in every row, in random order."""
    return rng.random((B, population)).argsort(axis=1)[:, :count]


def chosen_places(rng: np.random.Generator, B: int, T: int, count: int) -> Ids:
    """[B, count] different places below T in every row, rising."""
    return np.sort(distinct(rng, B, T, count), axis=1)


ATTENTION, DELTANET, POSITIVE, HYBRID, HYBRID_POSITIVE = (
    "attention", "deltanet", "deltanet-positive", "hybrid", "hybrid-positive",
)  # fmt: skip
MIXERS = (ATTENTION, DELTANET, HYBRID)
EVERY_ARM = (ATTENTION, DELTANET, POSITIVE, HYBRID, HYBRID_POSITIVE)
