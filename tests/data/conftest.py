"""Small made-up texts, and a corpus prepared from them once for the session."""

import random
from pathlib import Path

import pytest

from superblock.config.data import DataConfig
from superblock.data.corpus import Corpus, prepare

WORDS = [
    "the",
    "a",
    "cat",
    "dog",
    "tree",
    "river",
    "stone",
    "über",
    "日本",
    "naïve",
    "🙂",
    "x",
    "=",
    "f(1)",
    "return",
    "None",
    "if",
    "else",
    "for",
    "in",
    "range",
]


def made_up(seed: int, lines: int = 40) -> str:
    """A text with structure, accents, ideographs and an emoji."""
    draw = random.Random(seed)
    return "".join(
        " " * draw.choice((0, 4)) + " ".join(draw.choices(WORDS, k=draw.randint(1, 12))) + "\n" for _ in range(lines)
    )


@pytest.fixture(scope="session")
def texts() -> list[str]:
    return [made_up(seed, lines=20 + seed % 30) for seed in range(150)]


@pytest.fixture(scope="session")
def text_folder(tmp_path_factory: pytest.TempPathFactory, texts: list[str]) -> Path:
    folder = tmp_path_factory.mktemp("texts")
    for number, text in enumerate(texts):
        path = folder / f"part{number % 3}" / f"{number:03}.txt"
        path.parent.mkdir(exist_ok=True)
        path.write_bytes(text.encode())
    return folder


@pytest.fixture(scope="session")
def corpus(tmp_path_factory: pytest.TempPathFactory, text_folder: Path) -> Corpus:
    config = DataConfig(
        source="text", path=str(text_folder), vocab_size=320, sequence_length=16, val_percent=10, test_percent=20,
        cache_dir=str(tmp_path_factory.mktemp("cache")),
    )  # fmt: skip
    return prepare(config, report=lambda line: None)
