"""The curve of a model's exits: quality and speed over the superblocks used."""

from typing import Any

from lightning.pytorch import Callback, Trainer
from torch.distributed.tensor import DTensor

from superblock.callbacks.base import metric_prefix
from superblock.callbacks.perplexity import Perplexity
from superblock.evaluation.exits import exit_speeds, known_exits
from superblock.evaluation.metrics import perplexity
from superblock.models.language_model import SuperblockModel

TOKENS = 1024
"""Of the batch that speed is measured with on a processor: enough for its kernels, and a fraction of a second."""


class ExitCurve(Callback):
    """After the test, records `exits/bits_per_byte`, `exits/perplexity` and `exits/tokens_per_second` with the number of
    superblocks as their step; takes a second or two. The speed of a sharded model is left out: its parts answer only
    together, through the whole.

    Args:
        perplexity: has the results of the test.
    """

    def __init__(self, perplexity: Perplexity) -> None:
        self._perplexity = perplexity
        self.results: dict[str, dict[str, float]] = {}
        """By number of superblocks, the exits that learnt and the model itself; empty without exits or test."""

    def on_test_end(self, trainer: Trainer, pl_module: Any) -> None:
        model = pl_module.model
        if not trainer.is_global_zero or not isinstance(model, SuperblockModel):
            return
        exits = known_exits(model)
        speeds = {} if any(isinstance(p, DTensor) for p in model.parameters()) else self._speeds(trainer, pl_module)
        for s in exits:
            prefix = "test/" + ("" if s == exits[-1] else metric_prefix(f"exit/{s}"))
            tested = self._perplexity.results
            values = {
                "bits_per_byte": tested[f"{prefix}bits_per_byte"],
                "perplexity": perplexity(tested[f"{prefix}loss"]),
            }
            values |= {"tokens_per_second": speeds[s]} if s in speeds else {}
            self.results[str(s)] = values
            pl_module.tracker.metrics({f"exits/{name}": value for name, value in values.items()}, step=s)

    def _speeds(self, trainer: Trainer, module: Any) -> dict[int, float]:
        most, T = module.config.evaluation.batch_size, module.config.data.sequence_length
        rows = most if module.device.type == "cuda" else max(1, min(most, TOKENS // T))
        with trainer.precision_plugin.test_step_context():
            return exit_speeds(module.model, module.data.few(rows).to(module.device), known_exits(module.model))
