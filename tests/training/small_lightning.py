"""Lightning's Trainer around the small model, with a strategy by name."""

from typing import Any

import lightning.pytorch as pl
import torch
from small_training import batch_at, small_config, small_model, small_optimizer
from torch.distributed.tensor import DTensor
from torch.utils.data import DataLoader

from superblock.kernels.packing import PackInfo
from superblock.models.batch import Supervision
from superblock.training.distributed import all_reduce_sum, local_world_size, num_nodes, rank, world_size
from superblock.training.sharding import clip_gradients, shard
from superblock.training.strategies import build_strategy

STEPS = 6


class SmallModule(pl.LightningModule):
    """Trains heads in every second step only, as a rotation of exits does."""

    def __init__(self, strategy: str) -> None:
        super().__init__()
        self.automatic_optimization = False
        self.strategy, self.model, self.losses = strategy, None, []  # type: ignore[var-annotated]

    def configure_model(self) -> None:
        if self.model is None and self.strategy == "fsdp":
            self.model = shard(small_config(), seed=1, mesh=self.device_mesh["data_parallel"], device=self.device)
        elif self.model is None:
            self.model = small_model()

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return small_optimizer(self.model)

    def training_step(self, batch: Any, batch_idx: int) -> None:
        rows = batch_at(batch_idx).chunk(world_size())[rank()]
        supervision = Supervision(begin=0, end=8, mtp_weight=0.3) if batch_idx % 2 else None
        pack = PackInfo.dense(len(rows), rows.shape[1] - 1)
        output = self.model(rows[:, :-1], pack, rows[:, 1:].contiguous(), supervision=supervision)
        loss = sum(term.weight * term.total / term.count for name, term in output.losses.items() if name != "router")
        self.manual_backward(loss)
        clip_gradients(self.model.parameters(), 1.0)
        self.optimizers().step()
        self.optimizers().zero_grad(set_to_none=True)
        self.losses += [all_reduce_sum([loss.item()])[0] / world_size()]


def fit(strategy: str, module: SmallModule | None = None) -> dict[str, Any]:
    """Losses, and whether the parameters are sharded."""
    module = module or SmallModule(strategy)
    trainer = pl.Trainer(
        accelerator="cpu",
        strategy=build_strategy(strategy, "cpu"),
        max_epochs=1,
        use_distributed_sampler=False,
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        devices=local_world_size(),
        num_nodes=num_nodes(),
    )
    trainer.fit(module, DataLoader(range(STEPS), batch_size=None))
    parameters = list(module.model.parameters())
    return {"losses": module.losses, "sharded": all(isinstance(parameter, DTensor) for parameter in parameters)}
