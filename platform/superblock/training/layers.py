"""How the layers of a superblock are run in training: recomputed in the backward pass, compiled, or as they are.

Both change `forward` of single layers and nothing else, so that names of parameters, checkpoints, decoding and
evaluation stay as they are. What is compiled is recomputed, and what is recomputed is sharded: the other way round,
torch.compile gives up a whole recomputed region for the first kernel in it that it may not look into.
"""

import functools
from collections.abc import Callable
from typing import Any

import torch
from torch import nn
from torch.utils.checkpoint import checkpoint

from superblock.config.fields import ConfigError
from superblock.config.trainer import TrainerConfig
from superblock.kernels.tracing import before_compiling
from superblock.models.superblock import Layer


def prepare_layers(model: nn.Module, config: TrainerConfig) -> None:
    """Applies `trainer.activation_checkpointing` and `trainer.compile`; call it before the model is sharded.

    `full` recomputes whole layers and keeps their input alone, at the price of another forward pass. `selective`
    recomputes the mixers (convolution, gates, delta rule, attention), which keep most for the least work, and keeps
    what the experts need. The heads see a quarter of each sequence and are left as they are.

    Raises:
        ConfigError: for a family without superblocks.
    """
    layers = [module for module in model.modules() if isinstance(module, Layer)]
    asked = {
        f"activation_checkpointing={config.activation_checkpointing}": config.activation_checkpointing != "none",
        "compile=true": config.compile,
    }
    for setting, wanted in asked.items():
        if wanted and not layers:
            raise ConfigError(f"trainer.{setting}: works with model.family=superblock only, whose layers it knows")
    if config.compile:
        before_compiling()
    for layer in layers:
        if config.compile:
            _wrap(layer, _compiled)
        if config.activation_checkpointing == "full":
            _wrap(layer, _recomputed)
        elif config.activation_checkpointing == "selective":
            _wrap(layer.mixer, _recomputed)


def _wrap(module: nn.Module, make: Callable[[Callable[..., Any]], Callable[..., Any]]) -> None:
    """Replaces a module's `forward` where gradients are asked for; without them the original runs."""
    plain, wrapped = module.forward, make(module.forward)

    @functools.wraps(plain)
    def forward(*arguments: Any, **named: Any) -> Any:
        return (wrapped if torch.is_grad_enabled() else plain)(*arguments, **named)

    module.forward = forward


def _recomputed(forward: Callable[..., Any]) -> Callable[..., Any]:
    """Keeps the inputs, and computes the rest once more when gradients need it.

    Nothing in a layer draws random numbers, so that no generator's state is kept either.
    """
    return functools.partial(checkpoint, forward, use_reentrant=False, preserve_rng_state=False)


def _compiled(forward: Callable[..., Any]) -> Callable[..., Any]:
    """By torch.compile for the shapes of training, which do not change within a run."""
    return torch.compile(forward, dynamic=False)
