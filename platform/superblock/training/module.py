"""The LightningModule: one whole optimizer step in `training_step`, read from top to bottom.

Optimisation is manual, because a step is more than a backward pass: its micro-batches are weighted by their tokens
(Lightning's accumulation averages averages), the learning rate is a pure function of the step, the router's selection
bias moves after the update, and nothing may depend on a batch index that a resumed run would count anew.
"""

import time
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
import torch
from torch import Tensor

from superblock.config.budget import Budget
from superblock.config.fields import ConfigError
from superblock.config.run import RunConfig
from superblock.models.batch import Batch, ModelOutput, Supervision
from superblock.models.language_model import build_model
from superblock.optim.build import build_optimizer, set_learning_rate
from superblock.optim.schedules import learning_rate_factor
from superblock.tracking.run import Tracker
from superblock.training import checkpoint
from superblock.training.calibration import TIMED, WARM_UP, seconds_per_step
from superblock.training.data_module import PackedDataModule
from superblock.training.distributed import all_reduce_sum, broadcast_object
from superblock.training.growing import Growth
from superblock.training.layers import prepare_layers
from superblock.training.lineage import (
    SCRATCH,
    Lineage,
    Parent,
    ancestor,
    plain_lineage,
    refuse_other_text,
    restore_lineage,
    total_tokens,
)
from superblock.training.sharding import clip_gradients, shard
from superblock.training.size import measure
from superblock.training.strategies import resolve_strategy
from superblock.training.supervision import phases, supervision_at

AROUND_A_STEP = 1.12
"""Steps of a run against the same steps measured alone, on two cores: loader, callbacks and tracking take their share,
and two threads that wait for each other feel every interruption (213 ms against 190 ms over a whole MVP-1)."""


class LanguageModelModule(pl.LightningModule):
    """Wraps a language model for Lightning's Trainer.

    Attributes that callbacks read are public: `step` and `tokens_seen` survive a resume, the `last_*` tensors are
    those of the latest optimizer step and are detached.
    """

    def __init__(
        self,
        config: RunConfig,
        data: PackedDataModule,
        tracker: Tracker,
        *,
        world_size: int,
        resume_from: Path | None = None,
        parent: Parent | None = None,
        report: Callable[[str], None] = print,
    ) -> None:
        super().__init__()
        self.automatic_optimization = False
        self.config, self.data, self.tracker = config, data, tracker
        self.world_size, self.resume_from, self._report = world_size, resume_from, report
        self.parent = parent
        self.boundary: dict[str, Any] | None = None
        self.ancestors: Lineage = parent.lineage if parent else ()
        self.model: Any = None
        self.step = 0
        self.total_steps = 0
        self.tokens_seen = 0
        self.training_seconds = 0.0
        self.val_bits_per_byte: float | None = None
        self.best_val_bits_per_byte: float | None = None
        self.callback_states: dict[str, dict[str, Any]] = {}
        self.last_losses: dict[str, Tensor] = {}
        self.last_expert_counts_LE: Tensor | None = None
        self.last_router_stats: dict[str, Tensor] = {}
        self.last_gradient_norm: Tensor | None = None
        self.last_learning_rate = 0.0

    @property
    def lineage(self) -> Lineage:
        """The run's ancestors and, as far as it has come, itself."""
        config = self.config
        own = ancestor(
            config,
            run=self.tracker.run_folder.name,
            steps=self.step,
            tokens=self.tokens_seen,
            flops_per_token=measure(config.model, config.data.sequence_length).training_flops_per_token,
            method=config.growth.method if self.ancestors else SCRATCH,
        )
        return (*self.ancestors, own)

    @property
    def tokens_per_step(self) -> int:
        """Tokens of one optimizer step over all processes."""
        return self.config.trainer.batch_size * self.config.data.sequence_length

    def bytes_of_scored_tokens(self, split: str, tokens: int) -> float:
        """Bytes that `tokens` scored tokens of a split stand for; exact for the whole split."""
        part = getattr(self.data.corpus, split)
        return float(part.num_bytes * tokens / len(part))

    # -- set-up ---------------------------------------------------------------------------------------------------

    def configure_model(self) -> None:
        """Builds the model once; under `fsdp` on the meta device, sharded, then filled shard by shard."""
        if self.model is not None:
            return
        prepare = partial(prepare_layers, config=self.config.trainer)
        if resolve_strategy(self.config.trainer.strategy) == "fsdp":
            assert self.device_mesh is not None
            self.model = shard(
                self.config.model,
                seed=self.config.seed,
                mesh=self.device_mesh["data_parallel"],
                device=self.trainer.strategy.root_device,
                prepare=prepare,
            )
        else:
            self.model = build_model(self.config.model, seed=self.config.seed)
            prepare(self.model)

    def configure_optimizers(self) -> torch.optim.Optimizer:
        """One optimizer; its learning rate is set in every step."""
        return build_optimizer(self.model, self.config.optim, fused=self.config.trainer.precision != "fp16")

    def on_fit_start(self) -> None:
        """Continues a checkpoint; or begins, from a parent if there is one, and turns the budget into a number of steps."""
        if self.resume_from:
            self._refuse_other_text(self.resume_from)
            self._restore(checkpoint.load(self.resume_from, model=self.model, optimizer=self._optimizer))
            self.tracker.rewind(self.step)
        else:
            self._begin(Budget.parse(self.config.trainer.budget or ""))
        self.data.first_step, self.data.total_steps = self.step, self.total_steps
        every = self.config.evaluation.every
        self._validation_steps = max(1, round(every * self.total_steps if every < 1 else every))
        self._report(
            f"train   {self.total_steps:,} steps of {self.tokens_per_step:,} tokens"
            + (f", continuing after step {self.step:,}" if self.step else "")
        )

    def should_validate(self) -> bool:
        """Whether the step just done is one that is validated; the last is followed by the whole split anyway."""
        return self.step % self._validation_steps == 0 and self.step < self.total_steps

    def progress(self) -> dict[str, Any]:
        """What a checkpoint must hold beside weights and optimizer, as JSON."""
        return {
            "step": self.step,
            "total_steps": self.total_steps,
            "tokens_seen": self.tokens_seen,
            "training_seconds": self.training_seconds,
            "best_val_bits_per_byte": self.best_val_bits_per_byte,
            "lineage": plain_lineage(self.lineage),
            "boundary": self.boundary,
            "data_digest": self.data.corpus.digest,
        }

    def _begin(self, budget: Budget) -> None:
        growth = Growth(self.parent, self.config.model, self.config.growth) if self.parent else None
        if growth and self.config.growth.continue_data:
            self.data.skipped = total_tokens(self.ancestors) // self.config.data.sequence_length
        if growth:
            boundary = growth.weights(self.model, self._boundary_batch())
        self.total_steps = self._steps_of_budget(budget)
        if growth:
            boundary = replace(boundary, inherited_states=growth.optimizer(self.model, self._optimizer))
            self._report(f"growth  {boundary.describe()}")
            self.boundary = boundary.to_dict()

    def _boundary_batch(self) -> Batch | None:
        """Four sequences to compare both models on; None where a model is in parts or would be compiled for it."""
        if self.world_size > 1 or self.config.trainer.compile:
            return None
        return self.data.few(4).to(self.device)

    def _refuse_other_text(self, path: Path) -> None:
        try:
            refuse_other_text(path, self.data.corpus)
        except ConfigError as error:
            raise ConfigError(
                f"resume: {path} cannot be continued, its text has changed since: {error}\nbegin anew, without resume"
            ) from None

    def _restore(self, progress: dict[str, Any]) -> None:
        self.ancestors = restore_lineage(progress.get("lineage", [])[:-1])
        self.boundary = progress.get("boundary")
        if self.ancestors and self.config.growth.continue_data:
            self.data.skipped = total_tokens(self.ancestors) // self.config.data.sequence_length
        self.step, self.total_steps = progress["step"], progress["total_steps"]
        self.tokens_seen, self.training_seconds = progress["tokens_seen"], progress["training_seconds"]
        self.best_val_bits_per_byte = progress["best_val_bits_per_byte"]
        self.callback_states = progress["callbacks"]

    def _steps_of_budget(self, budget: Budget) -> int:
        if budget.unit != "minutes":
            return budget.steps(self.tokens_per_step, 1.0)
        batches = [batch.to(self.device) for batch in self.data.batches(0, WARM_UP + TIMED)]
        parts = phases(self.config.model)
        seconds = AROUND_A_STEP * sum((end - begin) * self._measure(batches, (begin + end) / 2) for begin, end in parts)
        steps: int = broadcast_object(budget.steps(self.tokens_per_step, seconds))
        return steps

    def _measure(self, batches: list[Batch], progress: float) -> float:
        """Seconds per step at a share of the training; the steps are undone, so their learning rate does not matter."""
        self.total_steps = 1_000_000
        self.step = int(progress * self.total_steps)
        with self.trainer.precision_plugin.train_step_context():
            seconds = seconds_per_step(self._optimizer_step, batches, self.model, self._optimizer)
        self.step = self.tokens_seen = 0
        return seconds

    @property
    def _optimizer(self) -> torch.optim.Optimizer:
        optimizer = self.optimizers(use_pl_optimizer=False)
        assert isinstance(optimizer, torch.optim.Optimizer)
        return optimizer

    # -- training -------------------------------------------------------------------------------------------------

    def training_step(self, batch: Batch, batch_idx: int) -> None:
        """One optimizer step on this process's share of the batch."""
        start = time.perf_counter()
        self._optimizer_step(batch)
        self.training_seconds += time.perf_counter() - start

    def _optimizer_step(self, batch: Batch) -> None:
        config = self.config
        # dropout is a function of (seed, step, rank), so that a resumed run needs no generator state
        _seed(hash((config.seed, self.step, self.global_rank)) & 0x7FFF_FFFF_FFFF_FFFF, self.device)
        supervision = supervision_at(
            config.model, self.step, self.total_steps, sequence_length=config.data.sequence_length, seed=config.seed
        )
        factor = learning_rate_factor(config.schedule, self.step, self.total_steps)
        if self.ancestors:
            factor *= config.growth.learning_rate
        self.last_learning_rate = set_learning_rate(self._optimizer, factor)
        self.last_losses = {}

        optimizer = self.optimizers()
        optimizer.step(closure=lambda: self._accumulate_gradients(batch, supervision))  # type: ignore[union-attr]
        optimizer.zero_grad(set_to_none=True)  # type: ignore[union-attr]
        if self.last_expert_counts_LE is not None and config.model.moe.balance_rate:
            self.model.balance_experts(self.last_expert_counts_LE, config.model.moe.balance_rate)
        self.step += 1
        self.tokens_seen += self.tokens_per_step

    def _accumulate_gradients(self, batch: Batch, supervision: Supervision | None) -> None:
        """Gradients of the whole batch: each loss term is divided by its targets over all micro-batches and processes."""
        targets = self._global_targets(batch, supervision)
        counts_LE: Tensor | None = None
        for part in batch.split(self.config.trainer.micro_batches):
            output: ModelOutput = self.model(part.input_ids_BT, part.pack, part.labels_BT, supervision=supervision)
            share = part.num_targets / max(1, targets["next_token"])
            objective = torch.zeros((), device=self.device)
            for name, term in output.losses.items():
                mean = term.total * share if name == "router" else term.total / max(1, targets[name])
                objective = objective + term.weight * mean
                self.last_losses[name] = self.last_losses.get(name, 0) + mean.detach()
            # gradients are averaged over processes, while `targets` already counts all of them
            with torch.autocast(self.device.type, enabled=False):
                self.manual_backward(objective * self.world_size)
            if output.expert_counts_LE is not None:
                counts_LE = output.expert_counts_LE if counts_LE is None else counts_LE + output.expert_counts_LE
            self.last_router_stats = output.router_stats
        if counts_LE is not None and self.world_size > 1:
            torch.distributed.all_reduce(counts_LE)
        self.last_expert_counts_LE = counts_LE

    def _global_targets(self, batch: Batch, supervision: Supervision | None) -> dict[str, int]:
        counts: dict[str, int] = self.model.count_targets(batch, supervision)
        if self.world_size == 1:
            return counts
        names = sorted(counts)
        return dict(zip(names, map(int, all_reduce_sum([counts[name] for name in names])), strict=True))

    def on_before_optimizer_step(self, optimizer: torch.optim.Optimizer) -> None:
        """Clips the global gradient norm, after fp16 gradients have been unscaled."""
        self.last_gradient_norm = clip_gradients(
            self.model.parameters(), self.config.optim.gradient_clip or float("inf")
        )

    # -- evaluation -----------------------------------------------------------------------------------------------

    def validation_step(self, batch: Batch, batch_idx: int) -> ModelOutput:  # type: ignore[override]
        """Scores every head's predictions; callbacks turn them into metrics."""
        output: ModelOutput = self.model(batch.input_ids_BT, batch.pack, batch.labels_BT, score=True)
        return output

    test_step = validation_step  # type: ignore[assignment]

    def transfer_batch_to_device(self, batch: Batch, device: torch.device, dataloader_idx: int) -> Batch:
        """Moves a batch with its document boundaries."""
        return batch if device.type == "cpu" else batch.to(device)


def _seed(seed: int, device: torch.device) -> None:
    """`torch.manual_seed` for one device: that keeps a stack trace for every kind of GPU that is not there, in every step."""
    torch.default_generator.manual_seed(seed)
    if device.type == "cuda":
        torch.cuda.manual_seed(seed)
