"""The smaller models inside a model: cut off after a superblock, whose exit becomes the output.

A head reads the residual stream with a norm of its own and unembeds with the model's table (models/mtp.py). So the
model that ends there is the superblocks up to it, with that norm as its final one: a 12-superblock checkpoint is a 1-,
3- and 6-superblock model too, which computes, caches and decodes as if it had been built that way.
"""

from copy import deepcopy

import torch
from torch import nn

from superblock.config.fields import ConfigError
from superblock.config.model import ModelConfig
from superblock.models.language_model import SuperblockModel
from superblock.models.mtp import MTPHead


def truncate(model: nn.Module, superblocks: int) -> SuperblockModel:
    """The model that ends at the exit of superblock `superblocks` (from 1); all of them give an equal model.

    Nothing is copied: tables, superblocks and heads are the modules of `model`, and the final norm is that of the last
    head that is left, so `state_dict` has it under two names. Moving or training one model moves or trains the other.

    Raises:
        ConfigError: if the model has no such exit, or it was never trained.
    """
    if not isinstance(model, SuperblockModel):
        family = getattr(getattr(model, "config", None), "family", type(model).__name__)
        raise ConfigError(f"exit_at={superblocks}: a model of family {family} has no exits; leave exit_at out")
    refuse_exit(model.config, superblocks)
    with torch.device("meta"):
        part = SuperblockModel(truncated_config(model.config, superblocks))
    part.embedding, part.unembedding = model.embedding, model.unembedding
    part.superblocks = nn.ModuleList(model.superblocks[:superblocks])
    part.heads = nn.ModuleList(model.heads[:superblocks])
    if superblocks == model.config.num_superblocks:
        part.norm = model.norm
    else:
        last = model.heads[superblocks - 1]
        assert isinstance(last, MTPHead)
        part.norm = last.norm
    part.training = model.training
    return part


def truncated_config(config: ModelConfig, superblocks: int) -> ModelConfig:
    """The configuration of what `truncate` makes. The last head alone may be a block, so a cut model ends with an mlp."""
    part = deepcopy(config)
    if superblocks < config.num_superblocks:
        part.num_superblocks, part.expect_params, part.mtp.last = superblocks, None, "mlp"
    return part


def refuse_exit(config: ModelConfig, superblocks: int) -> None:
    """Whether a model trained with `config` may end at the exit of a superblock (from 1); its own end always may.

    Raises:
        ConfigError: if there is no such superblock or its exit was never trained, naming the setting that left it out.
    """
    S, mtp = config.num_superblocks, config.mtp
    if not 1 <= superblocks <= S:
        allowed = f"1 to {S}" if S > 1 else "1"
        raise ConfigError(
            f"exit_at={superblocks}: the model has {S} superblock{'s' if S > 1 else ''}; must be {allowed}"
        )
    trained = config.trained_exits()
    if superblocks == S or superblocks in trained:
        return
    if trained:
        known = ", ".join(map(str, trained))
        reason = f"with model.mtp.exits={mtp.exits} only these exits learnt: {known}"
    elif not mtp.enabled:
        reason = "with model.mtp.enabled=false no exit learnt"
    elif not mtp.exit_weight:
        reason = "with model.mtp.exit_weight=0 no exit learnt"
    else:
        key = "start" if mtp.exit_start is None else "exit_start"
        reason = f"with model.mtp.{key}=1 no exit ever began to learn"
    raise ConfigError(f"exit_at={superblocks}: {reason}; exit_at={S} is the whole model")
