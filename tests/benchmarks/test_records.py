"""The file a benchmark leaves: what stands in it, and that it is read back or refused."""

import json
from pathlib import Path

import pytest

from superblock.benchmarks.records import COMPLETE, SCHEMA, Measured, Record, case_entry, metrics
from superblock.benchmarks.screen import milliseconds, remarks, summary_line, table
from superblock.benchmarks.timing import Timing
from superblock.tracking.spool import clean_key

LIMITS = {"bf16": 400e9, "fp32": 100e9}


def entry() -> dict:
    measured = {
        "superblock-bf16": Measured(Timing([0.1, 0.2, 0.1], disturbed=2), "bf16", False, (100, 600)),
        "transformers-bf16": Measured(Timing([0.4, 0.6, 0.5]), "bf16", True, (150, 1000)),
        "transformers-fp32": Measured(Timing([0.5, 0.9, 0.7], kept_disturbed=1), "fp32", True),
    }
    return case_entry({"kind": "train"}, measured, tokens=1000, flops=2e10, limits=LIMITS, error=1e-6, seconds=3.21)


def test_numbers_of_a_case() -> None:
    found = entry()
    assert found["fastest_baseline"] == "transformers-bf16" and found["largest_difference"] == 1e-6
    assert (found["disturbed"], found["kept_disturbed"]) == (2, 1)
    ours = found["variants"]["superblock-bf16"]
    assert ours["ms"] == pytest.approx({"median": 100, "min": 100, "max": 200, "deviation": 0})
    assert ours["tokens_per_second"] == pytest.approx(10_000)
    assert ours["matmul_share"] == pytest.approx(2e10 / 0.1 / 400e9)
    assert ours["ratio"]["median"] == pytest.approx(4.0) and ours["ratio"]["min"] == pytest.approx(3.0)
    assert ours["beyond_baseline_ms"] == pytest.approx(-400)
    assert ours["memory_ratio"] == pytest.approx(0.6)
    assert found["variants"]["transformers-fp32"]["ratio"] is None
    assert found["variants"]["transformers-fp32"]["matmul_share"] == pytest.approx(2e10 / 0.7 / 100e9)


def test_without_a_peer_there_is_no_ratio() -> None:
    alone = case_entry(
        {}, {"a": Measured(Timing([1.0]), "fp32", False)}, tokens=0, flops=None, limits={}, error=None, seconds=1
    )
    assert alone["fastest_baseline"] is None and alone["variants"]["a"]["ratio"] is None
    assert alone["variants"]["a"]["tokens_per_second"] is None
    assert "x of" not in summary_line("c", alone)


def test_metrics_are_single_results_with_names_that_mlflow_takes() -> None:
    values = metrics("train/s1/b4-t512", entry())
    assert values["speed/train/s1/b4-t512/superblock-bf16/ms"] == pytest.approx(100)
    assert values["speed/train/s1/b4-t512/superblock-bf16/ratio"] == pytest.approx(4)
    assert values["speed/train/s1/b4-t512/superblock-bf16/memory_ratio"] == pytest.approx(0.6)
    assert "speed/train/s1/b4-t512/transformers-bf16/ratio" not in values
    assert all(clean_key(key) == key for key in values)


def make(**changes: object) -> Record:
    record = Record("speed", "unit", "f" * 16, "m" * 8, "c" * 40, {"repeats": 5})
    for key, value in changes.items():
        setattr(record, key, value)
    return record


def test_the_file(tmp_path: Path) -> None:
    path = tmp_path / "deep" / "speed.json"
    record = make(cases={"train/s1/b4-t512": entry()}, limits=LIMITS, status=COMPLETE)
    record.save(path)
    assert Record.load(path) == record
    data = json.loads(path.read_text())
    assert data["schema"] == SCHEMA and [p.name for p in path.parent.iterdir()] == ["speed.json"]
    assert set(data) >= {
        "suite",
        "machine",
        "commit",
        "settings",
        "process",
        "limits",
        "contention",
        "cases",
        "provenance",
    }


@pytest.mark.parametrize(
    "text", ["", "[]", '{"schema": "superblock.benchmark/0"}', json.dumps({"schema": SCHEMA, "new": 1})]
)
def test_another_file_is_no_record(tmp_path: Path, text: str) -> None:
    path = tmp_path / "speed.json"
    path.write_text(text)
    assert Record.load(path) is None


def test_what_is_shown() -> None:
    record = make(cases={"train/s1/b4-t512": entry()}, limits=LIMITS, failed={"part/moe": "AssertionError: differs"})
    record.skipped = {"decode/s3/c512": "after minutes=1"}
    record.contention = {"disturbed": 2, "kept_disturbed": 1, "samples": 9}
    assert table(record).row_count == 3
    line = summary_line("train/s1/b4-t512", record.cases["train/s1/b4-t512"])
    assert "superblock-bf16 100 ms, 4.00x of transformers-bf16, 0.60 of its memory" in line.replace("100.0", "100")
    assert "2 disturbed samples repeated; 1 stayed disturbed" in line
    text = "\n".join(remarks(record))
    assert "2 samples repeated" in text and "failed: part/moe: AssertionError: differs" in text
    assert "not run: decode/s3/c512 (after minutes=1)" in text
    record.contention = {"blind": True}
    assert "cannot be told" in "\n".join(remarks(record))


@pytest.mark.parametrize(
    ("value", "text"), [(0.01234, "0.0123"), (1.234, "1.23"), (123.45, "123.5"), (1234.5, "1,234")]
)
def test_milliseconds(value: float, text: str) -> None:
    assert milliseconds(value) == text
