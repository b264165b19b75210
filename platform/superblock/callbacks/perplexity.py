"""Loss, perplexity and bits per byte, of the training stream and of whole splits."""

from collections.abc import Mapping
from typing import Any

import torch
from lightning.pytorch import Trainer
from torch import Tensor

from superblock.callbacks.base import MAIN, EvaluationCallback, is_due, metric_prefix, sum_over_processes, to_floats
from superblock.evaluation.metrics import LN2, LanguageModelLoss, PositionLoss, perplexity
from superblock.models.batch import TokenScores


class Perplexity(EvaluationCallback):
    """Records `train/loss` as the mean since the last record, and `val/`, `final/val_`, `test/` over whole splits.

    Args:
        train_bytes_per_token: bytes of raw text per token of the training split, for `train/bits_per_byte`.
    """

    def __init__(self, *, train_bytes_per_token: float) -> None:
        super().__init__()
        self.train_bytes_per_token = train_bytes_per_token
        self._sums: dict[str, Tensor] = {}
        self._counts: dict[str, int] = {}
        self.reset()

    def reset(self) -> None:
        self._losses: dict[str, LanguageModelLoss] = {}
        self._positions = PositionLoss()

    def add(self, scores: Mapping[str, TokenScores]) -> None:
        for name, score in scores.items():
            if name not in self._losses:
                self._losses[name] = LanguageModelLoss().to(score.nll_BT.device)
            self._losses[name].update(score)
        self._positions.to(scores[MAIN].nll_BT.device).update(scores[MAIN])

    def values(self, module: Any, split: str, *, whole: bool) -> dict[str, float]:
        values: dict[str, float] = {}
        for name, metric in self._losses.items():
            prefix, totals = metric_prefix(name), metric.compute()
            values[f"{prefix}loss"] = totals.loss
            if name == MAIN:
                values["perplexity"] = totals.perplexity
            if name == MAIN or name.startswith("exit/"):  # later offsets cannot predict the first tokens of a document
                num_bytes = module.bytes_of_scored_tokens(split, totals.tokens)
                values[f"{prefix}bits_per_byte"] = totals.bits_per_byte(num_bytes)
        if whole:
            values |= {f"position_{i}/loss": loss for i, loss in enumerate(self._positions.compute(), start=1)}
        return values

    def on_validation_epoch_end(self, trainer: Trainer, pl_module: Any) -> None:
        super().on_validation_epoch_end(trainer, pl_module)
        if trainer.sanity_checking or trainer.state.fn != "fit":
            return
        pl_module.val_bits_per_byte = self.results["val/bits_per_byte"]  # what checkpoints are ranked by
        if trainer.is_global_zero:  # recorded at the same steps, so that charts can show quality over tokens
            pl_module.tracker.metrics({"val/tokens": float(pl_module.tokens_seen)}, step=pl_module.step)

    def on_train_batch_end(self, trainer: Trainer, pl_module: Any, outputs: Any, batch: Any, batch_idx: int) -> None:
        for name, loss in pl_module.last_losses.items():
            value = loss.detach().double()
            self._sums[name] = self._sums[name].to(value.device) + value if name in self._sums else value
            self._counts[name] = self._counts.get(name, 0) + 1
        if is_due(pl_module):
            self._record(trainer, pl_module)

    def _record(self, trainer: Trainer, module: Any) -> None:
        means = to_floats(sum_over_processes({name: total / self._counts[name] for name, total in self._sums.items()}))
        self._sums, self._counts = {}, {}
        values = {f"train/{metric_prefix(name)}loss": mean for name, mean in means.items()}
        if MAIN in means:
            values["train/perplexity"] = perplexity(means[MAIN])
            values["train/bits_per_byte"] = means[MAIN] / LN2 / self.train_bytes_per_token
        values |= {"train/learning_rate": float(module.last_learning_rate), "train/tokens": float(module.tokens_seen)}
        self.results.update(values)
        if trainer.is_global_zero:
            module.tracker.metrics(values, step=module.step)

    def on_train_end(self, trainer: Trainer, pl_module: Any) -> None:
        best = pl_module.best_val_bits_per_byte
        if best is not None and trainer.is_global_zero:
            pl_module.tracker.result({"best/val_bits_per_byte": best})

    def on_exception(self, trainer: Trainer, pl_module: Any, exception: BaseException) -> None:
        self.on_train_end(trainer, pl_module)  # what an interrupted run reached counts too

    def state_dict(self) -> dict[str, Any]:
        return {"sums": to_floats(self._sums), "counts": dict(self._counts)}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self._sums = {name: torch.tensor(v, dtype=torch.float64) for name, v in state_dict["sums"].items()}
        self._counts = dict(state_dict["counts"])
