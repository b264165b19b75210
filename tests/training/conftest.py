"""A small real corpus and a small model, so that a whole run takes seconds."""

import sys
import sysconfig
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parent))  # small_training; pytest's importlib mode leaves the path alone

SMALL = (
    "scale=mini", "data=text", "data.vocab_size=512", "data.sequence_length=32", "data.test_percent=15", "data.val_percent=15",
    "model.d_model=32", "model.vocab_size=512", "model.max_sequence_length=32", "model.gdn.num_key_heads=1",
    "model.gdn.num_value_heads=2", "model.gdn.key_dim=16", "model.gdn.value_dim=16", "model.gqa.num_heads=2",
    "model.gqa.num_kv_heads=1", "model.gqa.head_dim=16", "model.moe.num_experts=4", "model.moe.d_expert=16",
    "model.moe.d_shared=16", "model.mtp.d_hidden=16", "model.mtp.d_block=32", "trainer.batch_size=4", "trainer.precision=fp32",
    "trainer.budget=12steps", "trainer.log_every=1", "evaluation.every=4", "evaluation.val_sequences=8", "evaluation.sample_tokens=8",
    "tracking=none", "tracking.system_metrics=false", "trainer.threads=1",
)  # fmt: skip
"""Overrides of a run that ends in a few seconds."""


@pytest.fixture(scope="session")
def text_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A few hundred kilobytes of the standard library's source, as files of a user's own."""
    folder = tmp_path_factory.mktemp("text")
    library = Path(sysconfig.get_path("stdlib"))
    for path in sorted([*library.glob("json/*.py"), *library.glob("email/*.py")]):
        (folder / f"{path.parent.name}_{path.name}").write_text(path.read_text("utf-8"), "utf-8")
    return folder


@pytest.fixture
def small(text_folder: Path) -> Callable[..., list[str]]:
    """Overrides of a small run, with more behind them."""

    def overrides(*more: str) -> list[str]:
        return [*SMALL, f"data.path={text_folder}", *more]

    return overrides


@pytest.fixture
def group_of_one() -> Iterator[None]:
    """A process group that needs no other process and no network."""
    import torch.distributed as dist

    dist.init_process_group("gloo", store=dist.HashStore(), rank=0, world_size=1)
    yield
    dist.destroy_process_group()
