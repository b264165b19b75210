"""The closing summary, with everything known and with little."""

import dataclasses
import io
from pathlib import Path

import pytest
from rich.console import Console

from superblock.evaluation.summary import RunSummary, SplitResult, next_commands, render, short


@pytest.fixture
def summary() -> RunSummary:
    references = {"unigram": 2.9, "trigram": 1.674, "xz": 1.586, "best mvp1": 1.40}
    return RunSummary(
        name="mvp2-tiny-1",
        stage="mvp2",
        scale="tiny",
        steps=1200,
        tokens=2_457_600,
        minutes=6.93,
        parameters_total=7_540_000,
        parameters_active=3_210_000,
        splits={
            "validation": SplitResult(13.91, 1.511, 0.471, {"unigram": 2.8}),
            "test": SplitResult(14.25, 1.523, 0.468, references),
        },
        tokens_per_second=9876.5,
        flops_per_second=1.5e11,
        matmul_share=0.31,
        peak_memory_bytes=1_500_000_000,
        checkpoint="runs/mvp2-tiny-1/checkpoints/step-1200",
        next_stage="mvp3",
    )


def text_of(summary: RunSummary, *, encoding: str = "utf-8", width: int = 140) -> str:
    file = io.TextIOWrapper(io.BytesIO(), encoding=encoding)
    render(summary, Console(file=file, width=width))
    file.seek(0)
    return file.read()


def test_everything_known(summary: RunSummary) -> None:
    text = text_of(summary)
    for piece in (
        "mvp2-tiny-1",
        "7.54M total, 3.21M active",
        "1,200 steps, 2.46M tokens, 6.9 minutes",
        "9,876 tokens/s",
    ):
        assert piece in text
    for piece in ("150 GFLOP/s", "31% of", "1.40 GiB", "step-1200", "xz -9e", "46.8%", "14.25", "1.523", "best mvp1"):
        assert piece in text
    test_row = next(line for line in text.splitlines() if line.strip().startswith("test"))
    assert "✓ 1.674" in test_row and "✓ 1.586" in test_row  # 1.523 is below both
    assert "1.400" in test_row and "✓ 1.400" not in test_row  # and above the previous stage
    assert max(map(len, text.splitlines())) <= 100


def test_exits_are_shown_where_there_are_several(summary: RunSummary) -> None:
    assert "exit_at" not in text_of(summary)
    summary.exits = {str(s): {"bits_per_byte": 1.6 - s / 100, "perplexity": 9.0} for s in (1, 2, 3)}
    text = text_of(summary)
    assert "exit_at" in text
    assert "1.570" in text
    assert "1.580" not in text  # no stage ends at two superblocks


def test_plain_ascii_where_the_output_knows_no_more(summary: RunSummary) -> None:
    text = text_of(summary, encoding="ascii")
    text.encode("ascii")
    assert "* 1.674" in text


def test_narrow_output_keeps_every_number(summary: RunSummary) -> None:
    text = text_of(summary, width=80)
    assert max(map(len, text.splitlines())) <= 80
    assert all(word in text for word in ("perplexity", "validation", "✓ 1.586", "1.523", "best mvp1"))
    assert "…" not in text


def test_little_known() -> None:
    summary = RunSummary("r", "mvp1", "mini", 5, 640, 0.1, 900, 800)
    text = text_of(summary)
    assert "5 steps" in text and "900 total" in text
    for missing in ("None", "nan", "speed", "memory", "checkpoint", "perplexity"):
        assert missing not in text


def test_a_reference_that_could_not_be_computed_is_left_empty(summary: RunSummary) -> None:
    summary.splits["test"].references["xz"] = float("nan")
    assert "nan" not in text_of(summary)


def test_next_commands(summary: RunSummary) -> None:
    assert next_commands(summary) == [
        "superblock ui",
        'superblock generate run=mvp2-tiny-1 prompt="def "',
        "superblock run stage=mvp3",
    ]
    small = dataclasses.replace(summary, scale="mini")
    assert next_commands(small)[-1] == "superblock run stage=mvp3 scale=mini"
    assert len(next_commands(dataclasses.replace(summary, next_stage=None))) == 2


def test_json_round_trip(summary: RunSummary, tmp_path: Path) -> None:
    path = tmp_path / "summary.json"
    for written in (summary, RunSummary("r", "mvp1", "mini", 5, 640, 0.1, 900, 800)):
        written.save(path)
        assert RunSummary.load(path) == written
    assert [p.name for p in tmp_path.iterdir()] == ["summary.json"]


@pytest.mark.parametrize(("value", "expected"), [(812, "812"), (7_540_000, "7.54M"), (235_366_983_936, "235.37B")])
def test_short_numbers(value: float, expected: str) -> None:
    assert short(value) == expected


def predicted(value: float, low: float, high: float) -> dict[str, float]:
    return {"value": value, "low": low, "high": high}


def test_predicted_beside_measured(summary: RunSummary) -> None:
    summary.minutes_in_all = 8.5
    summary.prediction = {
        "bits_per_byte": predicted(1.5, 1.45, 1.55),
        "minutes": predicted(6.0, 5.5, 6.5),
        "minutes_in_all": predicted(8.0, 7.0, 9.0),
        "memory_bytes": predicted(1.5e9, 1.25 * 2**30, 1.5 * 2**30),
        "confidence": 0.8,
        "runs": ["mvp1-tiny-1"],
        "words": "",
    }
    text = text_of(summary)
    rows = {line.split("  ")[0]: line.split() for line in map(str.strip, text.splitlines())}
    assert rows["bits per byte"][3:] == ["1.500", "1.450", "–", "1.550", "✓", "1.523"]
    assert rows["minutes of training"][3:] == ["6.0", "5.5", "–", "6.5", "6.9"]  # outside
    assert rows["minutes in all"][-2:] == ["✓", "8.5"]
    assert rows["memory, GiB"][-2:] == ["✓", "1.40"]
    assert "in the 80% interval" in text
    assert max(map(len, text.splitlines())) <= 100
    text_of(summary, encoding="ascii").encode("ascii")


def test_what_was_not_measured_is_not_compared(summary: RunSummary) -> None:
    summary.prediction = {"bits_per_byte": predicted(1.5, 1.4, 1.6), "minutes": predicted(6, 5, 7), "confidence": 0.8}
    summary.splits = {}
    text = text_of(summary)
    assert "minutes of training" in text and "predicted" in text
    assert "bits per byte" not in text
    summary.prediction = None
    assert "predicted" not in text_of(summary)
