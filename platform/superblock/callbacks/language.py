"""The test's scores by context and by package, as `language.json` of the run."""

from typing import Any

from lightning.pytorch import Callback, Trainer

from superblock.callbacks.base import MAIN
from superblock.data.corpus import Corpus
from superblock.evaluation.language import describe, record
from superblock.evaluation.slices import Layout, SlicedScores
from superblock.models.batch import ModelOutput


class LanguageSlices(Callback):
    """Adds up what the test scores anyway, so it costs next to nothing; see `evaluation.language`.

    Args:
        corpus: what is tested on.
        sequence_length: tokens of a sequence of the test.
    """

    def __init__(self, corpus: Corpus, sequence_length: int) -> None:
        self._corpus, self._length = corpus, sequence_length

    def on_test_epoch_start(self, trainer: Trainer, pl_module: Any) -> None:
        self._layout = Layout.of(self._corpus.test, self._length)
        self._scores = SlicedScores(self._layout, self._corpus.token_bytes).to(pl_module.device)

    def on_test_batch_end(
        self, trainer: Trainer, pl_module: Any, outputs: Any, batch: Any, batch_idx: int, dataloader_idx: int = 0
    ) -> None:
        assert isinstance(outputs, ModelOutput)
        rows = len(batch.input_ids_BT)  # equal in all batches, and every process has its part of each step
        first = (batch_idx * trainer.world_size + trainer.global_rank) * rows
        self._scores.update(outputs.scores[MAIN], batch, first)

    def on_test_epoch_end(self, trainer: Trainer, pl_module: Any) -> None:
        sums = self._scores.compute()
        del self._scores
        if not trainer.is_global_zero:
            return
        found = describe(
            sums, self._layout, self._corpus.test, split="test", step=pl_module.step, digest=self._corpus.digest,
            trained_length=self._length,
        )  # fmt: skip
        record(found, pl_module.tracker.run_folder, pl_module.tracker)
