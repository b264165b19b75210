"""`superblock plan`: what it says, that every shipped configuration is counted exactly, and that `check` can fail."""

import re
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest

from superblock.models.formulas import Counts, count
from superblock.planning import plan
from superblock.planning.plan import differences, hardware, short, si

STAGES = ("mvp1", "mvp2", "mvp3", "mvp4")
SCALES = ("mini", "tiny", "small", "base", "full")


def test_the_full_model_is_235_billion_parameters(superblock: Callable[..., Any]) -> None:
    answer = superblock("plan", "stage=mvp4", "scale=full")
    assert answer.status == 0
    assert answer.out.startswith("235.37B parameters, 21.04B active per token\n")
    for part in (
        "235,366,983,936",
        "21,044,119,296",
        "101 named layers = 2 + 12 x 8 + 3",
        "471 GB",
        "3.77 TB",
        "Nobody has trained",
    ):
        assert part in answer.out
    assert "at least 48 devices of 80 GB" in " ".join(answer.out.split())
    assert max(map(len, answer.out.splitlines())) <= plan.WIDTH


def test_a_small_model_fits_a_laptop_and_has_a_budget(superblock: Callable[..., Any]) -> None:
    answer = superblock("plan", "stage=mvp2", "scale=tiny")
    assert "A laptop trains it" in answer.out
    assert "Nobody" not in answer.out
    assert "29 named layers = 2 + 3 x 8 + 3" in answer.out
    assert "for the stage's" in superblock("plan", "stage=mvp2", "scale=base").out


def test_rows_add_up(superblock: Callable[..., Any]) -> None:
    rows = re.findall(r"([\d,]{3,}) +[\d.]+%", superblock("plan", "stage=mvp3", "scale=small").out)
    *parts, together = (int(row.replace(",", "")) for row in rows)
    assert sum(parts) == together


@pytest.mark.parametrize("scale", SCALES)
@pytest.mark.parametrize("stage", STAGES)
def test_every_shipped_configuration_is_counted_exactly(compose: Callable[..., Any], stage: str, scale: str) -> None:
    from superblock.models.language_model import build_model

    config = compose("plan", f"stage={stage}", f"scale={scale}").model
    sizes = {name: p.numel() for name, p in build_model(config, seed=0, device="meta").named_parameters()}
    assert list(differences(count(config), sizes)) == []
    assert count(config).total == sum(sizes.values())


def test_check_compares_with_the_built_model(superblock: Callable[..., Any]) -> None:
    answer = superblock("plan", "scale=mini", "check=true")
    assert answer.status == 0
    assert "check: the built model has the same" in answer.out


def test_check_names_what_differs(superblock: Callable[..., Any], monkeypatch: pytest.MonkeyPatch) -> None:
    def wrong(config: Any) -> Counts:
        rows = count(config).rows
        return Counts(config, (replace(rows[0], parameters=rows[0].parameters + 5), rows[1], *rows[3:]))

    monkeypatch.setattr(plan, "count", wrong)
    answer = superblock("plan", "scale=mini", "check=true")
    assert answer.status == 1
    assert re.search(r"check: Embedding: [\d,]+ by formula, [\d,]+ built, -5\n", answer.err)
    assert re.search(r"check: superblocks\.0\.layers\.0\.mixer\.\S+: [\d,]+ built, in no row", answer.err)


@pytest.mark.parametrize(
    ("parameters", "words"),
    [
        (1e6, "A laptop trains it"),
        (1e9, "One device of 80 GB trains it"),
        (20e9, "at least 4 devices of 80 GB"),
        (20e9, "needs 1 for"),
    ],
)
def test_hardware_in_words(parameters: float, words: str, compose: Callable[..., Any]) -> None:
    counts = count(compose("plan").model)
    row = replace(counts.rows[0], parameters=int(parameters))
    assert words in hardware(Counts(counts.config, (row,)))


def test_numbers_keep_three_digits() -> None:
    assert [si(v, "B") for v in (812, 1e3, 42_649, 3.766e12)] == ["812 B", "1.00 kB", "42.6 kB", "3.77 TB"]
    assert [short(v) for v in (812, 7_540_000, 235.37e9)] == ["812", "7.54M", "235.37B"]


def test_counting_needs_neither_torch_nor_patience() -> None:
    """A second and a half from enter is the limit on an idle machine; twice that where other tests run beside it."""
    code = (
        "import sys; sys.argv = ['superblock', 'plan', 'stage=mvp4', 'scale=full']\n"
        "from superblock.cli.__main__ import main; main(); assert 'torch' not in sys.modules"
    )
    start = time.perf_counter()
    subprocess.run([sys.executable, "-c", code], check=True, capture_output=True)
    assert time.perf_counter() - start < 3.0
