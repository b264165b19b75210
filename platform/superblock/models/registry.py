"""Model families by name, so that `model.family=<name>` can be a model of your own.

    from superblock.models.registry import register

    @register("mine")
    def build(config: ModelConfig, *, seed: int, device: str) -> LanguageModel: ...

What training needs of a model is `LanguageModel`; tests/examples/own_model.py is a whole one. Legend: B sequences,
T tokens, L MoE layers, E experts.
"""

import importlib.util
import sys
from collections.abc import Callable
from hashlib import sha256
from pathlib import Path
from typing import Any, Protocol

from torch import Tensor

from superblock.config.fields import ConfigError, closest
from superblock.config.model import ModelConfig
from superblock.kernels.packing import PackInfo
from superblock.models.batch import Batch, ModelOutput, Supervision
from superblock.models.cache import Cache


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
        cache: Cache | None = None,
        last_only: bool = False,
    ) -> ModelOutput:
        """With labels the losses, `next_token` among them; with `score` per-token scores; without labels logits, which
        continue what `cache` holds. The model keeps its state in `cache.states` and moves `cache.length`."""

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


def import_families(file: str) -> None:
    """Runs a Python file, once per process, for the families it registers.

    Raises:
        ConfigError: if there is no such file, or it cannot be imported.
    """
    path = Path(file).expanduser().resolve()
    name = f"superblock_family_{sha256(str(path).encode()).hexdigest()[:12]}"
    if name in sys.modules:
        return
    if not path.is_file():
        raise ConfigError(f"model.file={file}: there is no such file")
    spec = importlib.util.spec_from_file_location(name, path)
    if spec is None or spec.loader is None:
        raise ConfigError(f"model.file={file}: must be a .py file")
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module
    try:
        spec.loader.exec_module(module)
    except Exception as error:
        del sys.modules[name]
        raise ConfigError(f"model.file={file}: {type(error).__name__}: {error}") from error


def builder_of(family: str) -> Builder:
    """The builder of a family.

    Raises:
        ConfigError: naming the families there are, and the one that was probably meant.
    """
    if family not in FAMILIES:
        hint = f" (did you mean {close[0]}?)" if (close := closest(family, FAMILIES)) else ""
        raise ConfigError(f"model.family={family}: must be one of {', '.join(sorted(FAMILIES))}{hint}")
    return FAMILIES[family]
