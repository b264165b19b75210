"""The gate `resume`: forty steps at once against twenty, a checkpoint, and twenty more by a second start."""

import copy
import logging
import tempfile
import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
import torch
from torch import Tensor

from superblock.callbacks.checkpointing import Checkpointing
from superblock.config.budget import Budget
from superblock.config.growth import StatementConfig
from superblock.config.run import RunConfig
from superblock.data.corpus import Corpus
from superblock.staging.evidence import Evidence, Finding, Missing
from superblock.tracking.run import Tracker
from superblock.training.checkpoint import read_optimizer_states, read_weights
from superblock.training.data_module import PackedDataModule
from superblock.training.interruption import Interruption
from superblock.training.lineage import Parent
from superblock.training.loop import PRECISIONS
from superblock.training.manifest import checkpoints_folder
from superblock.training.module import LanguageModelModule
from superblock.training.strategies import build_strategy, resolve_accelerator

STEPS, CUT = 40, 20
SEQUENCES = 2


def resume(evidence: Evidence, asked: StatementConfig) -> Finding:
    """The run's own model, optimizer and data, in small batches and a folder that is removed.

    It begins as the run did: from its parent where there is one, else from fresh weights.
    """
    config = small_run(evidence.config)
    parent = _parent(evidence)
    wanted = "the same weights, optimizer state and losses, bit for bit"
    with tempfile.TemporaryDirectory(prefix="superblock-resume-") as folder, _deterministic():
        whole, again = Path(folder) / "whole", Path(folder) / "resumed"
        losses = _train(config, evidence.corpus, whole, parent, None)
        resumed = _train(config, evidence.corpus, again, None, _checkpoint(whole, CUT))
        faults = list(_differences(_checkpoint(whole, STEPS), _checkpoint(again, STEPS)))
    steps = f"{STEPS} steps at once, and {CUT} with {STEPS - CUT} resumed"
    other = [step for step in range(CUT, STEPS) if losses.get(step) != resumed.get(step)]
    if other:
        faults.insert(0, f"losses differ from step {other[0] + 1} on")
    if faults:
        more = f" and {len(faults) - 3} more" if len(faults) > 3 else ""
        return Finding(False, f"{steps}: {', '.join(faults[:3])}{more}", wanted, float(len(faults)))
    return Finding(True, f"{steps}, end in the same bits", wanted, 0.0)


def _parent(evidence: Evidence) -> Parent | None:
    try:
        return None if evidence.parent_name is None else evidence.parent
    except Missing:  # gone since: fresh weights prove resuming as well
        return None


def small_run(config: RunConfig) -> RunConfig:
    """The same model, optimizer and data in a run of 40 small steps, of one process."""
    config = copy.deepcopy(config)
    config.resume = "none"
    config.data.workers = 0
    trainer = config.trainer
    trainer.budget, trainer.checkpoint_every, trainer.keep_last = f"{STEPS} steps", f"{CUT} steps", 2
    trainer.batch_size, trainer.micro_batches = SEQUENCES, 1
    trainer.strategy, trainer.compile = "single", False  # compiling would take longer than the steps
    return config


class _Losses(pl.Callback):
    """Every loss of every step, by the step's number from 0."""

    def __init__(self) -> None:
        self.of_step: dict[int, dict[str, float]] = {}

    def on_train_batch_end(self, trainer: pl.Trainer, module: Any, *_: Any) -> None:
        self.of_step[module.step - 1] = {name: float(loss) for name, loss in module.last_losses.items()}


def _train(
    config: RunConfig, corpus: Corpus, folder: Path, parent: Parent | None, resume_from: Path | None
) -> dict[int, dict[str, float]]:
    """Trains as `training.loop` does, without what is shown, measured and recorded; the losses of its steps."""
    accelerator = resolve_accelerator(config.trainer.accelerator)
    tracker = Tracker(folder, None, None, 0)  # records nothing
    data = PackedDataModule(corpus, config, rank=0, world_size=1)
    module = LanguageModelModule(
        config, data, tracker, world_size=1, resume_from=resume_from, parent=parent, report=lambda text: None
    )
    losses, interruption = _Losses(), Interruption()
    checkpointing = Checkpointing(
        folder,
        every=Budget.parse(config.trainer.checkpoint_every),
        keep_last=config.trainer.keep_last,
        config=asdict(config),
        tokenizer=corpus.tokenizer_path,
        interruption=interruption,
        stateful={},
    )
    with _quiet():
        trainer = pl.Trainer(
            accelerator=accelerator,
            devices=1,
            strategy=build_strategy("single", accelerator, config.trainer.precision),
            precision=PRECISIONS[config.trainer.precision],  # type: ignore[arg-type]
            max_epochs=1,
            callbacks=[losses, checkpointing],
            limit_val_batches=0,
            logger=False,
            enable_checkpointing=False,
            enable_progress_bar=False,
            enable_model_summary=False,
            use_distributed_sampler=False,
            default_root_dir=folder,
        )
        trainer.fit(module, datamodule=data)
    if trainer.interrupted:  # Lightning ends quietly after Ctrl-C
        raise KeyboardInterrupt
    return losses.of_step


def _checkpoint(folder: Path, step: int) -> Path:
    return checkpoints_folder(folder) / f"step-{step:07d}"


def _differences(a: Path, b: Path) -> Iterator[str]:
    """What two checkpoints do not have in common, in words."""
    yield from (f"weights of {name}" for name in _unequal(read_weights(a), read_weights(b)))
    there, here = read_optimizer_states(a), read_optimizer_states(b)
    for name in sorted(there.keys() | here.keys()):
        for key in _unequal(there.get(name, {}), here.get(name, {})):
            yield f"{key} of {name}"


def _unequal(a: Mapping[str, Tensor], b: Mapping[str, Tensor]) -> list[str]:
    """Names of tensors that are missing on one side or differ in a bit."""
    missing = a.keys() ^ b.keys()
    return sorted(missing | {name for name in a.keys() & b.keys() if not _same_bits(a[name], b[name])})


def _same_bits(a: Tensor, b: Tensor) -> bool:
    """Also where both are NaN, and not where 0 has another sign."""
    return a.shape == b.shape and a.dtype == b.dtype and _bits(a).equal(_bits(b))


def _bits(tensor: Tensor) -> Tensor:
    return tensor.detach().contiguous().flatten().view(torch.uint8)


@contextmanager
def _deterministic() -> Iterator[None]:
    """On a GPU some sums depend on the order of threads unless torch is told to fix it; on a processor none does."""
    before, warn_only = (
        torch.are_deterministic_algorithms_enabled(),
        torch.is_deterministic_algorithms_warn_only_enabled(),
    )
    if torch.cuda.is_available():
        torch.use_deterministic_algorithms(True, warn_only=True)
    try:
        yield
    finally:
        torch.use_deterministic_algorithms(before, warn_only=warn_only)


@contextmanager
def _quiet() -> Iterator[None]:
    """Lightning says nothing about choices that were made on purpose."""
    loggers = [logging.getLogger(name) for name in ("lightning.pytorch", "lightning.fabric")]
    levels = [logger.level for logger in loggers]
    for logger in loggers:
        logger.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        for logger, level in zip(loggers, levels, strict=True):
            logger.setLevel(level)
