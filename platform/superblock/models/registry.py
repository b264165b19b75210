"""Model families by name, so that `model.family=<name>` can be a model of your own.

    from superblock.models.registry import register

    @register("mine")
    def build(config: ModelConfig, *, seed: int, device: str) -> LanguageModel: ...

What training needs of a model is `LanguageModel`; tests/examples/own_model.py is a whole one. Legend: B sequences,
T tokens, L MoE layers, E experts.
"""

from collections.abc import Callable
from typing import Any, Protocol

from torch import Tensor

from superblock.config.fields import ConfigError, closest
from superblock.config.model import ModelConfig
from superblock.kernels.packing import PackInfo
from superblock.models.batch import Batch, ModelOutput, Supervision


class LanguageModel(Protocol):
    """A `torch.nn.Module` with these members."""

    config: ModelConfig

    @property
    def num_moe_layers(self) -> int:
        """Layers whose experts are counted; 0 without experts."""

    def forward(
        self,
        input_ids_BT: Tensor,
        pack: PackInfo | None = None,
        labels_BT: Tensor | None = None,
        *,
        supervision: Supervision | None = None,
        score: bool = False,
    ) -> ModelOutput:
        """With labels the losses, `next_token` among them; with `score` per-token scores; without labels logits."""

    def count_targets(self, batch: Batch, supervision: Supervision | None) -> dict[str, int]:
        """The counts of the losses that `forward` returns for this batch, without computing them."""

    def balance_experts(self, expert_counts_LE: Tensor, rate: float) -> None:
        """Called after each optimizer step if `forward` returns expert counts."""


Builder = Callable[..., Any]
"""Called as `builder(config, seed=..., device=...)`; returns a `LanguageModel` that is a `torch.nn.Module`."""

FAMILIES: dict[str, Builder] = {}


def register(name: str) -> Callable[[Builder], Builder]:
    """Decorator that makes a builder known as `model.family=<name>`; a later one of the same name replaces it."""

    def add(builder: Builder) -> Builder:
        FAMILIES[name] = builder
        return builder

    return add


def builder_of(family: str) -> Builder:
    """The builder of a family.

    Raises:
        ConfigError: naming the families there are, and the one that was probably meant.
    """
    if family not in FAMILIES:
        hint = f" (did you mean {close[0]}?)" if (close := closest(family, FAMILIES)) else ""
        raise ConfigError(f"model.family={family}: must be one of {', '.join(sorted(FAMILIES))}{hint}")
    return FAMILIES[family]
