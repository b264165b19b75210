"""What surrounds a training step: the loader, and Lightning's loop with all callbacks and tracking."""

import contextlib
import io
import json
import os
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple
from weakref import finalize

import numpy as np
import torch

from superblock.benchmarks.speed.cases import Case
from superblock.benchmarks.speed.work import Variant, Work
from superblock.benchmarks.timing import Call
from superblock.config.benchmark import BenchmarkConfig
from superblock.config.data import DataConfig
from superblock.config.evaluation import EvaluationConfig
from superblock.config.model import ModelConfig
from superblock.config.run import RunConfig
from superblock.config.tracking import TrackingConfig
from superblock.config.trainer import TrainerConfig
from superblock.data.loader import training_loader
from superblock.data.token_file import TokenFile

STEPS = 200
"""Of a whole run."""
VOCABULARY = 512


def loader(config: BenchmarkConfig, case: Case) -> Work:
    """`around/loader`: batches of packed documents from a memory-mapped file of two million tokens."""
    return Work((Variant("loader", lambda: _loader(config, case)),))


def _loader(config: BenchmarkConfig, case: Case) -> Call:
    folder = tempfile.TemporaryDirectory(prefix="superblock-")
    tokens = np.random.default_rng(config.seed).integers(1, config.scale.vocab_size, 2_000_000)
    tokens[::700] = 0
    tokens.astype(np.uint32).tofile(Path(folder.name) / "train.bin")
    meta = {"num_tokens": len(tokens), "num_bytes": 3 * len(tokens), "documents": 1, "dtype": "uint32",
            "vocab_size": config.scale.vocab_size, "end_of_text": 0}  # fmt: skip
    (Path(folder.name) / "train.json").write_text(json.dumps(meta), "utf-8")
    batches = iter(
        training_loader(
            TokenFile(Path(folder.name), "train"),
            sequence_length=case.tokens,
            batch_size=case.batch,
            seed=config.seed,
            first_step=0,
            num_steps=10_000_000,
        )
    )

    def call() -> None:
        next(batches)

    finalize(call, folder.cleanup)
    return call


def surroundings(config: BenchmarkConfig, case: Case) -> Work:
    """`around/step`: time per step of a whole run, beside what its own stopwatch says of its training steps alone.

    Few tokens make the step short, so that what surrounds it shows; it costs the same around a long one. Delivery to
    MLflow is left out: it runs in a thread of lowest priority, and mostly waits.
    """
    return Work((
        Variant("whole-run", lambda: lambda: _run(config, case).whole),
        Variant("training-step", lambda: lambda: _run(config, case).inside, baseline=True),
    ))  # fmt: skip


class _Seconds(NamedTuple):
    """Per step of a run."""

    whole: float
    """From its second step on: loop, callbacks, tracking, loader and step."""
    inside: float
    """Forward, backward, clipping and optimizer."""


def _run(config: BenchmarkConfig, case: Case) -> _Seconds:
    from superblock.training.loop import train

    with _elsewhere() as folder:
        (folder / "text").mkdir()
        for number in range(40):
            words = " ".join(f"def f{number}_{i}(x{i}): return x{i} * {i * number}" for i in range(200))
            (folder / "text" / f"{number}.py").write_text(words, "utf-8")
        summary = train(_run_config(config, case, folder))
    assert summary is not None and summary.tokens_per_second
    return _Seconds(case.tokens_per_call / summary.tokens_per_second, 60 * summary.minutes / summary.steps)


def _steps(config: BenchmarkConfig) -> int:
    return STEPS // 10 if config.quick else STEPS


def _model(config: BenchmarkConfig, case: Case) -> ModelConfig:
    """Of the scale's width, but without heads, which learn only in a part of a run."""
    from superblock.benchmarks.speed.cases import model_config

    model = model_config(config.scale, 1, case.tokens)
    model.vocab_size = max(VOCABULARY, model.vocab_size)
    return model


def _run_config(config: BenchmarkConfig, case: Case, folder: Path) -> RunConfig:
    return RunConfig(
        scale=config.scale,
        model=_model(config, case),
        data=DataConfig(
            source="text", path=str(folder / "text"), vocab_size=VOCABULARY, sequence_length=case.tokens,
            val_percent=20, test_percent=20, cache_dir=str(folder / "cache"),
        ),
        trainer=TrainerConfig(
            budget=f"{_steps(config)} steps", batch_size=case.batch, threads=torch.get_num_threads(),
            precision="bf16" if "bf16" in config.speed.precisions else "fp32", accelerator="cpu", strategy="single",
            checkpoint_every="1 hours",
        ),
        tracking=TrackingConfig(store="none"),
        evaluation=EvaluationConfig(every=1_000_000, test=False, samples=0, reference_points=False),
        seed=config.seed,
    )  # fmt: skip


@contextlib.contextmanager
def _elsewhere() -> Iterator[Path]:
    """A temporary current folder, and silence."""
    with (
        tempfile.TemporaryDirectory(prefix="superblock-") as folder,
        contextlib.chdir(folder),
        contextlib.redirect_stdout(io.StringIO()),
        contextlib.redirect_stderr(io.StringIO()),
    ):
        yield Path(os.getcwd())
