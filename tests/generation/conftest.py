"""A small model that has learnt nothing, its tokenizer, and runs with checkpoints of it."""

from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path

import pytest
import torch
from tokenizers import Tokenizer

from superblock.config.model import AttentionConfig, DeltaNetConfig, ModelConfig, MoEConfig, MTPConfig
from superblock.data import tokenizer as byte_level
from superblock.models.language_model import SuperblockModel, build_model
from superblock.tracking.files import write_json
from superblock.training import checkpoint

CORPUS = ["def f(x):\n    return x\n", "größe naïve 東京 🎉 – ok", "import os, sys\n\n\nclass A:\n    pass\n"]
CONFIG = ModelConfig(
    d_model=48,
    vocab_size=384,  # more rows than the tokenizer has tokens
    num_superblocks=2,
    max_sequence_length=32,
    init_std=0.3,  # far from uniform, so that a wrong token is seen
    gdn=DeltaNetConfig(num_key_heads=2, num_value_heads=4, key_dim=16, value_dim=16, chunk_size=8),
    gqa=AttentionConfig(num_heads=4, num_kv_heads=2, head_dim=16, window=20),
    moe=MoEConfig(num_experts=4, top_k=2, d_expert=32, d_shared=16),
    mtp=MTPConfig(d_hidden=16),
)


@pytest.fixture(scope="session")
def tokenizer() -> Tokenizer:
    return byte_level.train(CORPUS, 320)


@pytest.fixture(scope="session")
def model() -> SuperblockModel:
    return build_model(CONFIG, seed=11)


@pytest.fixture
def make_run(tmp_path: Path, tokenizer: Tokenizer, model: SuperblockModel) -> Callable[..., Path]:
    """Writes a finished run below `runs/` of the test's folder."""

    def make(name: str, *, stage: str = "mvp1", started: float = 0.0, steps: tuple[int, ...] = (7,)) -> Path:
        folder = tmp_path / "runs" / name
        identity = {"uid": name, "started": started, "stage": stage, "scale": "mini", "mlflow_run_id": f"abc{name}"}
        folder.mkdir(parents=True)
        write_json(folder / "run.json", identity)
        write_json(folder / "status.json", {"status": "FINISHED"})
        write_json(folder / "summary.json", {"splits": {"test": {"bits_per_byte": 2.3456}}})
        tokenizer.save(str(tmp_path / "tokenizer.json"))
        optimizer = torch.optim.AdamW(model.parameters())
        for step in steps:
            checkpoint.save(
                folder,
                model=model,
                optimizer=optimizer,
                progress={"step": step},
                config={"model": asdict(CONFIG)},
                tokenizer=tmp_path / "tokenizer.json",
            )
        return folder

    return make
