"""What surrounds a training step: the loader, and Lightning's loop with all callbacks and tracking."""

import contextlib
import io
import json
import os
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
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
    """`around/step`: a step within a whole run, beside the bare step of the same model on as few tokens.

    Few tokens make the step short, so that what surrounds it shows; it costs the same around a long one. Delivery to
    MLflow is left out: it runs in a thread of lowest priority, and mostly waits.
    """
    return Work((
        Variant("whole-run", lambda: lambda: _run(config, case)),
        Variant("bare-step", lambda: _bare(config, case), baseline=True),
    ))  # fmt: skip


def _run(config: BenchmarkConfig, case: Case) -> float:
    """Seconds per step of a run from its second step on, by its own record."""
    from superblock.training.loop import train

    with _elsewhere() as folder:
        (folder / "text").mkdir()
        for number in range(40):
            words = " ".join(f"def f{number}_{i}(x{i}): return x{i} * {i * number}" for i in range(200))
            (folder / "text" / f"{number}.py").write_text(words, "utf-8")
        summary = train(_run_config(config, case, folder))
    assert summary is not None and summary.tokens_per_second
    return case.tokens_per_call / summary.tokens_per_second


def _bare(config: BenchmarkConfig, case: Case) -> Call:
    from superblock.benchmarks.speed.training import step
    from superblock.kernels.packing import PackInfo
    from superblock.models.language_model import build_model

    model = build_model(_model(config, case), seed=config.seed).train()
    shape = (case.batch, case.tokens)
    ids_BT = torch.randint(0, VOCABULARY, shape, generator=torch.Generator().manual_seed(config.seed))
    pack = PackInfo.dense(*shape)

    def loss() -> torch.Tensor:
        losses = model(ids_BT, pack, ids_BT).losses
        total: torch.Tensor = sum(term.weight * term.total / term.count for term in losses.values())
        return total

    bf16 = "bf16" in config.speed.precisions
    once = step(loss, torch.optim.AdamW(model.parameters(), lr=1e-5, fused=True), bf16)

    def call() -> float:
        """As many steps in a row as the run has, in the same state of the machine."""
        start = time.perf_counter()
        for _ in range(_steps(config)):
            once()
        return (time.perf_counter() - start) / _steps(config)

    return call


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
