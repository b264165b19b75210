"""A finished run's model, evaluated as the smaller model that ends at one of its exits. Nothing is trained."""

import os
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
from rich import box
from rich.padding import Padding
from rich.table import Table
from torch import nn

from superblock.config.fields import ConfigError, closest, restore
from superblock.config.run import RunConfig
from superblock.data.corpus import Corpus
from superblock.data.token_file import TokenFile
from superblock.evaluation.finished import open_finished
from superblock.evaluation.metrics import LanguageModelLoss, TopKAccuracy
from superblock.evaluation.scoring import SPLITS, scored
from superblock.evaluation.summary import SplitResult, wide_console
from superblock.generation.session import load_checkpoint
from superblock.tracking.runs import RunRecord, find_run, list_runs, runs_root
from superblock.training.checkpoint import load_config, tokenizer_path


def evaluate_at(checkpoint: Path, corpus: Corpus, exit_at: int) -> dict[str, SplitResult]:
    """The whole validation and test split, scored by the model inside a checkpoint that ends at an exit.

    Sequences and precision are those of the run's own test, so the results compare with its.

    Args:
        checkpoint: one folder below `checkpoints` of a run.
        corpus: what the run was trained on.
        exit_at: number of superblocks; all of them is the model itself.

    Raises:
        ConfigError: if the checkpoint cannot be used, has no such exit, or has another tokenizer than the corpus.
    """
    if tokenizer_path(checkpoint).read_bytes() != corpus.tokenizer_path.read_bytes():
        raise ConfigError(f"exit_at={exit_at}: {checkpoint} was trained with another tokenizer than that of this text")
    config: RunConfig = restore(RunConfig, load_config(checkpoint), "config")
    session = load_checkpoint(checkpoint, exit_at)
    return {
        name: _evaluate(session.model, session.device, getattr(corpus, part), config) for name, part in SPLITS.items()
    }


def _evaluate(model: nn.Module, device: torch.device, part: TokenFile, config: RunConfig) -> SplitResult:
    loss, accuracy = LanguageModelLoss().to(device), TopKAccuracy((1,)).to(device)
    for one in scored(model, device, part, config):
        loss.update(one.scores)
        accuracy.update(one.scores)
    totals = loss.compute()
    bits = totals.bits_per_byte(part.num_bytes * totals.tokens / len(part))
    return SplitResult(totals.perplexity, bits, accuracy.compute()[1])


# -- the command ------------------------------------------------------------------------------------------------------


def evaluate_finished(config: RunConfig, *, say: Callable[[str], None]) -> dict[str, SplitResult]:
    """What `run resume=<run> exit_at=<superblocks>` does: shows the exit's results beside the whole model's.

    Args:
        config: only `resume`, `exit_at` and the number of threads count; all else is the run's own.
        say: shows a line.

    Raises:
        ConfigError: if there is no such run, it has not finished, its text has changed, or it has no such exit.
    """
    assert config.exit_at is not None
    if int(os.environ.get("WORLD_SIZE", "1")) > 1:
        raise ConfigError(f"exit_at={config.exit_at}: an exit is evaluated in one process; start it without torchrun")
    run = open_finished(_finished(config), f"resume={config.resume}", threads=config.trainer.threads, say=say)
    results = evaluate_at(run.checkpoint, run.corpus, config.exit_at)
    depth = run.config.model.num_superblocks
    say(f"{run.record.name} ({run.checkpoint.name}) at exit {config.exit_at} of {depth}")
    wide_console().print(Padding(_table(results, run.record.summary.get("splits", {})), (1, 0, 0, 2), expand=False))
    return results


def _finished(config: RunConfig) -> RunRecord:
    record = find_run(config.resume)
    if record is None:
        hint = f"; did you mean {close[0]}?" if (close := closest(config.resume, _names())) else ""
        raise ConfigError(f"resume={config.resume}: there is no such run below {runs_root().resolve()}{hint}")
    if record.status != "FINISHED":
        raise ConfigError(
            f"exit_at={config.exit_at}: exits are evaluated of finished runs, and {record.name} is "
            f"{record.status.lower()}; finish it first with resume={record.name} alone"
        )
    return record


def _names() -> list[str]:
    return [run.name for run in list_runs()]


def _table(results: Mapping[str, SplitResult], whole: Mapping[str, Mapping[str, Any]]) -> Table:
    """One row per split: the exit's perplexity, accuracy and bits per byte, the whole model's bits, and the distance."""
    table = Table(box=box.SIMPLE_HEAD, show_edge=False, pad_edge=False, collapse_padding=True)
    table.add_column("split", no_wrap=True)
    for title in ("perplexity", "top-1", "bits/byte", "whole model", "more"):
        table.add_column(title, justify="right", no_wrap=True)
    for split, result in results.items():
        cells = [f"{result.perplexity:,.2f}", f"{result.accuracy_top1:.1%}", f"{result.bits_per_byte:.4f}"]
        if bits := whole.get(split, {}).get("bits_per_byte"):
            cells += [f"{bits:.4f}", f"{result.bits_per_byte / bits - 1:+.2%}"]
        table.add_row(split, *cells)
    return table
