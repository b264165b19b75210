"""All callbacks together under Lightning's own Trainer: the hooks come in the order they rely on."""

import io
import json
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
import pytest
import torch
from rich.console import Console
from torch.utils.data import DataLoader

from superblock.callbacks.accuracy import Accuracy
from superblock.callbacks.expert_health import ExpertHealth
from superblock.callbacks.memory import Memory
from superblock.callbacks.nonfinite import NonFiniteError, NonFiniteGuard
from superblock.callbacks.norms import Norms
from superblock.callbacks.perplexity import Perplexity
from superblock.callbacks.progress import ProgressBar
from superblock.callbacks.samples import Samples
from superblock.callbacks.throughput import Throughput
from superblock.kernels.packing import PackInfo
from superblock.models.batch import Batch, ModelOutput, TokenScores
from superblock.models.cache import Cache

B, T, V = 4, 16, 11


class Bigram(torch.nn.Module):
    """The smallest language model: a table of logits."""

    def __init__(self) -> None:
        super().__init__()
        self.table = torch.nn.Embedding(V, V)

    def forward(self, ids_BT: torch.Tensor, cache: Cache | None = None, last_only: bool = False) -> torch.Tensor:
        return self.table(ids_BT)


class TinyModule(pl.LightningModule):
    """Keeps the promises callbacks rely on, with one optimizer step per `training_step`."""

    def __init__(self, config: Any, tracker: Any) -> None:
        super().__init__()
        self.automatic_optimization = False
        self.config, self.tracker, self.model = config, tracker, Bigram()
        self.step, self.total_steps, self.tokens_seen, self.tokens_per_step = 0, 8, 0, B * T
        self.last_losses: dict[str, torch.Tensor] = {}
        self.last_expert_counts_LE = torch.tensor([[3.0, 5.0]])
        self.last_router_stats: dict[str, torch.Tensor] = {}
        self.last_gradient_norm = torch.tensor(0.0)
        self.last_learning_rate = 0.5
        self.val_bits_per_byte = self.best_val_bits_per_byte = None
        self.spoil_at = 0

    def bytes_of_scored_tokens(self, split: str, tokens: int) -> float:
        return 2.0 * tokens

    def training_step(self, batch: Batch, batch_idx: int) -> None:
        optimizer: Any = self.optimizers()
        loss = torch.nn.functional.cross_entropy(
            self.model(batch.input_ids_BT).flatten(0, 1), batch.labels_BT.flatten()
        )
        loss = loss * (float("nan") if self.step + 1 == self.spoil_at else 1.0)
        self.manual_backward(loss)
        self.last_losses = {"next_token": loss.detach()}
        self.last_gradient_norm = torch.nn.utils.clip_grad_norm_(self.model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad()
        self.step, self.tokens_seen = self.step + 1, self.tokens_seen + self.tokens_per_step

    def validation_step(self, batch: Batch, batch_idx: int) -> ModelOutput:
        logits = self.model(batch.input_ids_BT)
        nll = torch.nn.functional.cross_entropy(logits.flatten(0, 1), batch.labels_BT.flatten(), reduction="none")
        rank = (logits > logits.gather(-1, batch.labels_BT[..., None])).sum(-1)
        return ModelOutput(scores={"next_token": TokenScores(nll.view(B, T), rank)})

    test_step = validation_step

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.SGD(self.model.parameters(), lr=4.0)

    def transfer_batch_to_device(self, batch: Batch, device: torch.device, dataloader_idx: int) -> Batch:
        return batch


def loader(count: int) -> DataLoader:
    generator = torch.Generator().manual_seed(count)
    rows = [torch.randint(0, V, (B, T), generator=generator) for _ in range(count)]
    batches: Any = [Batch(ids, (3 * ids + 1) % V, PackInfo.dense(B, T)) for ids in rows]
    return DataLoader(batches, batch_size=None)


@pytest.fixture
def run(module: Any, tmp_path: Path) -> Any:
    def make(spoil_at: int = 0) -> tuple[pl.Trainer, TinyModule, io.StringIO, list[pl.Callback]]:
        torch.manual_seed(0)
        tiny, screen = TinyModule(module.config, module.tracker), io.StringIO()
        tiny.spoil_at = spoil_at
        perplexity = Perplexity(train_bytes_per_token=2.0)
        callbacks: list[pl.Callback] = [
            NonFiniteGuard(),
            perplexity,
            Accuracy(),
            Throughput(training_flops_per_token=1e3),
            Memory(),
            ExpertHealth(),
            Norms(),
            Samples(lambda prompt, tokens, seed: "x" * tokens, ["a"], count=1, tokens=3),
            ProgressBar(console=Console(file=screen), perplexity=perplexity),
        ]
        trainer = pl.Trainer(
            accelerator="cpu", max_epochs=1, val_check_interval=4, logger=False, enable_checkpointing=False,
            enable_progress_bar=False, enable_model_summary=False, callbacks=callbacks, default_root_dir=tmp_path,
        )  # fmt: skip
        return trainer, tiny, screen, callbacks

    return make


def test_a_whole_run(run: Any) -> None:
    trainer, module, screen, callbacks = run()
    trainer.fit(module, loader(8), loader(2))
    trainer.validate(module, loader(3), verbose=False)
    trainer.test(module, loader(3), verbose=False)
    tracker = module.tracker
    for key in ("train/loss", "experts/load_entropy", "memory/peak_mib", "norms/gradient", "norms/update_ratio"):
        assert [step for step, _ in tracker.series(key)] == [3, 6, 8], key
    for key in ("val/loss", "val/bits_per_byte", "val/accuracy_top1"):
        assert [step for step, _ in tracker.series(key)] == [4, 8], key
    assert [step for step, _ in tracker.series("throughput/tokens_per_second")] == [3, 6, 8]
    assert module.val_bits_per_byte == tracker.series("val/bits_per_byte")[-1][1]
    losses = [loss for _, loss in tracker.series("train/loss")]
    assert losses == sorted(losses, reverse=True)
    for key in ("final/val_bits_per_byte", "test/perplexity", "test/accuracy_top5", "final/tokens_per_second"):
        assert key in tracker.results, key
    # the same weights and the same batches (seeded by their number) give the same result under both names
    assert tracker.results["test/loss"] == tracker.results["final/val_loss"]
    assert list(tracker.texts) == ["samples.md"]
    assert [line.split(" at ")[0] for line in screen.getvalue().splitlines() if " at step" in line] == [
        *("validation", "validation", "validation", "test")
    ]
    assert all(json.loads(json.dumps(c.state_dict())) == c.state_dict() for c in callbacks)


def test_a_run_that_diverges_stops_at_the_step(run: Any) -> None:
    trainer, module, _, _ = run(spoil_at=5)
    with pytest.raises(NonFiniteError, match="step 5: the gradient norm and the next_token loss"):
        trainer.fit(module, loader(8), loader(2))
    assert module.step == 5 and "samples.md" not in module.tracker.texts
