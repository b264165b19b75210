"""A real model, small enough that a test trains it in a second, and a plain training loop over random tokens."""

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from superblock.config.model import AttentionConfig, DeltaNetConfig, ModelConfig, MoEConfig, MTPConfig
from superblock.config.optim import OptimConfig, ScheduleConfig
from superblock.kernels.packing import PackInfo
from superblock.models.batch import Supervision
from superblock.models.language_model import SuperblockModel, build_model
from superblock.optim.build import build_optimizer, set_learning_rate
from superblock.optim.schedules import learning_rate_factor
from superblock.training.sharding import clip_gradients

T, VOCAB, BATCH, TOTAL = 16, 64, 4, 12


def small_config(**changes: object) -> ModelConfig:
    config = ModelConfig(
        d_model=32,
        vocab_size=VOCAB,
        num_superblocks=2,
        max_sequence_length=T,
        gdn=DeltaNetConfig(num_key_heads=2, num_value_heads=2, key_dim=8, value_dim=8, chunk_size=8),
        gqa=AttentionConfig(num_heads=2, num_kv_heads=1, head_dim=8, rope_fraction=0.5),
        moe=MoEConfig(num_experts=4, top_k=2, d_expert=16, d_shared=16),
        mtp=MTPConfig(d_hidden=8, d_block=16),
    )
    for name, value in changes.items():
        section, _, field = name.rpartition("__")
        setattr(getattr(config, section) if section else config, field, value)
    return config


def small_model(**changes: object) -> SuperblockModel:
    return build_model(small_config(**changes), seed=1)


def small_optimizer(model: nn.Module, name: str = "adamw") -> torch.optim.Optimizer:
    return build_optimizer(model, OptimConfig(name=name))


def batch_at(step: int) -> Tensor:
    """Tokens [BATCH, T + 1] of a step: a pure function of it."""
    return torch.randint(0, VOCAB, (BATCH, T + 1), generator=torch.Generator().manual_seed(step))


def train(
    model: nn.Module, optimizer: torch.optim.Optimizer, steps: Sequence[int], *, rank: int = 0, processes: int = 1
) -> list[float]:
    """Trains on this process's rows; gradients are averaged over processes by whoever sharded the model.

    The heads have no gradient in the first three steps. Returns each step's loss over this process's rows.
    """
    losses = []
    for step in steps:
        set_learning_rate(optimizer, learning_rate_factor(ScheduleConfig(), step, TOTAL))
        rows = batch_at(step).chunk(processes)[rank]
        inputs_BT, labels_BT = rows[:, :-1], rows[:, 1:].contiguous()
        supervision = Supervision(begin=0, end=8, mtp_weight=0.3, exits=((0, 0.1),) if step % 2 else ())
        pack = PackInfo.dense(*inputs_BT.shape)
        output = model(inputs_BT, pack, labels_BT, supervision=supervision if step >= 3 else None)
        terms = [term for name, term in output.losses.items() if name != "router"]
        loss = sum(term.weight * term.total / term.count for term in terms)
        loss.backward()
        clip_gradients(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        losses.append(loss.item())
    return losses
