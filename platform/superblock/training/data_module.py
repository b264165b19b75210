"""The loaders of one run, as a Lightning data module."""

import lightning.pytorch as pl
from torch.utils.data import DataLoader

from superblock.config.run import RunConfig
from superblock.data.corpus import Corpus
from superblock.data.loader import evaluation_loader, training_loader
from superblock.data.token_file import TokenFile
from superblock.models.batch import Batch


class PackedDataModule(pl.LightningDataModule):
    """Packed documents of a prepared corpus.

    The training order is a pure function of (seed, step), so `first_step` is all that a resumed run needs, on any
    number of processes.
    """

    def __init__(self, corpus: Corpus, config: RunConfig, *, rank: int, world_size: int) -> None:
        super().__init__()
        self.corpus, self.config = corpus, config
        self.rank, self.world_size = rank, world_size
        self.skipped = 0
        """Sequences that the run's ancestors have read."""
        self.first_step = 0
        self.total_steps = 0
        self.whole_validation = False

    def batches(self, first_step: int, num_steps: int) -> DataLoader[Batch]:
        """The training batches of steps `first_step` to `first_step + num_steps`."""
        data, trainer = self.config.data, self.config.trainer
        return training_loader(
            self.corpus.train,
            sequence_length=data.sequence_length,
            batch_size=trainer.batch_size,
            seed=self.config.seed,
            first_step=first_step,
            num_steps=num_steps,
            skipped=self.skipped,
            rank=self.rank,
            world_size=self.world_size,
            workers=data.workers,
        )

    def train_dataloader(self) -> DataLoader[Batch]:
        """What is left of the run."""
        return self.batches(self.first_step, self.total_steps - self.first_step)

    def val_dataloader(self) -> DataLoader[Batch]:
        """The validation split: a fixed part of it during training, the whole at the end."""
        return self._evaluation(
            self.corpus.val, None if self.whole_validation else self.config.evaluation.val_sequences
        )

    def test_dataloader(self) -> DataLoader[Batch]:
        """The whole test split."""
        return self._evaluation(self.corpus.test, None)

    def few(self, sequences: int) -> Batch:
        """The same sequences of the validation split each time, for a look at a model before it is trained."""
        T = self.config.data.sequence_length
        loader = evaluation_loader(self.corpus.val, sequence_length=T, batch_size=sequences, limit=sequences)
        batch: Batch = next(iter(loader))
        return batch

    def _evaluation(self, tokens: TokenFile, limit: int | None) -> DataLoader[Batch]:
        return evaluation_loader(
            tokens,
            sequence_length=self.config.data.sequence_length,
            batch_size=self.config.evaluation.batch_size,
            limit=limit,
            rank=self.rank,
            world_size=self.world_size,
        )
