"""The spool: what is written is read, whatever happened in between."""

import json
import math
import os
import signal
import subprocess
import sys
import threading
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from superblock.tracking.spool import (
    MAX_KEY,
    Spool,
    clean_key,
    cut,
    last_values,
    metric_history,
    read_spool,
    scan,
)


def test_round_trip(tmp_path: Path) -> None:
    spool = Spool(tmp_path)
    spool.metrics({"train/loss": 2.5, "train/odd": math.inf, "train/nan": math.nan}, step=3)
    spool.append("params", {"values": {"seed": "1"}})
    spool.append("params", {"values": {"seed": "2", "größe": "ü\n"}})
    spool.close()
    spool.metrics({"late": 1.0}, step=4)  # after the end: ignored, never an error

    events = read_spool(tmp_path)
    assert [e.kind for e in events] == ["metrics", "params", "params"]
    values = events[0].data["values"]
    assert values["train/loss"] == 2.5 and values["train/odd"] == math.inf and math.isnan(values["train/nan"])
    assert events[0].count() == 3 and events[0].time > 1_600_000_000_000
    assert last_values(tmp_path, "params") == {"seed": "2", "größe": "ü\n"}
    for line in spool.path.read_text().splitlines():
        json.loads(line, parse_constant=lambda name: pytest.fail(f"{name} is not JSON"))


def test_offsets_resume_a_scan(tmp_path: Path) -> None:
    spool = Spool(tmp_path)
    for step in range(5):
        spool.metrics({"a": step}, step)
    events = list(scan(spool.path))
    assert [e.data["step"] for e in scan(spool.path, events[2].end)] == [3, 4]
    assert [e.data["step"] for e in scan(spool.path, 0, events[1].end)] == [0, 1]


@pytest.mark.parametrize("cut_bytes", [1, 2, 10])
def test_torn_last_line(tmp_path: Path, cut_bytes: int) -> None:
    spool = Spool(tmp_path)
    spool.metrics({"a": 1}, 1)
    spool.metrics({"a": 2}, 2)
    spool.close()
    os.truncate(spool.path, spool.path.stat().st_size - cut_bytes)
    assert [e.data["step"] for e in read_spool(tmp_path)] == [1]

    again = Spool(tmp_path)
    again.metrics({"a": 3}, 3)
    # A line that lacks its newline alone is whole after all.
    assert [e.data["step"] for e in read_spool(tmp_path)] == ([1, 2, 3] if cut_bytes == 1 else [1, 3])


def test_killed_writer_loses_nothing_it_returned_from(tmp_path: Path) -> None:
    code = (
        "import sys; from pathlib import Path; from superblock.tracking.spool import Spool\n"
        "s = Spool(Path(sys.argv[1])); i = 0\n"
        "while True:\n    s.metrics({'a': i}, i); print(i, flush=True); i += 1\n"
    )
    child = subprocess.Popen([sys.executable, "-c", code, str(tmp_path)], stdout=subprocess.PIPE, text=True)
    assert child.stdout
    while int(child.stdout.readline()) < 200:
        pass
    child.send_signal(signal.SIGKILL)
    last = 200 + len(child.stdout.read().splitlines())
    child.wait()
    steps = [e.data["step"] for e in read_spool(tmp_path)]
    assert steps == list(range(len(steps))) and len(steps) >= last


def test_rewind_leaves_each_step_once(tmp_path: Path) -> None:
    spool = Spool(tmp_path)
    for step in range(1, 8):
        spool.metrics({"train/loss": step}, step)
    spool.metrics({"system/cpu": 50}, 9)
    spool.rewind(4)
    for step in range(5, 7):
        spool.metrics({"train/loss": 10 * step}, step)
    spool.rewind(5)
    spool.metrics({"train/loss": 600}, 6)
    history = metric_history(tmp_path)
    assert history["train/loss"] == [(1, 1), (2, 2), (3, 3), (4, 4), (5, 50), (6, 600)]
    assert history["system/cpu"] == [(9, 50)]  # a sample of the machine is not a training step


@settings(deadline=None)
@given(st.lists(st.tuples(st.booleans(), st.integers(0, 12)), max_size=25))
def test_rewind_against_model(tmp_path_factory: pytest.TempPathFactory, actions: list[tuple[bool, int]]) -> None:
    folder = tmp_path_factory.mktemp("spool")
    spool, expected = Spool(folder), {}
    for number, (is_metric, step) in enumerate(actions):
        if is_metric:
            spool.metrics({"a": number}, step)
            expected[step] = number
        else:
            spool.rewind(step)
            expected = {k: v for k, v in expected.items() if k <= step}
    assert metric_history(folder).get("a", []) == sorted(expected.items())


def test_threads_do_not_mix_lines(tmp_path: Path) -> None:
    spool = Spool(tmp_path)
    work = [threading.Thread(target=lambda: [spool.metrics({"k" * 200: i}, i) for i in range(200)]) for _ in range(4)]
    for thread in work:
        thread.start()
    for thread in work:
        thread.join()
    assert len(read_spool(tmp_path)) == 800


def test_full_disk_is_reported_once_and_survived(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    spool = Spool(tmp_path)
    spool.metrics({"a": 1}, 1)
    real, spool._file = spool._file, open("/dev/full", "wb", buffering=0)  # noqa: SIM115
    spool.metrics({"a": 2}, 2)
    spool.metrics({"a": 3}, 3)
    spool._file.close()
    spool._file = real
    spool.metrics({"a": 4}, 4)
    assert spool.lost == 2 and capsys.readouterr().err.count("cannot write") == 1
    assert [e.data["step"] for e in read_spool(tmp_path)] == [1, 4]


@pytest.mark.parametrize(
    ("key", "expected"),
    [
        ("train/loss", "train/loss"),
        ("bits@byte:x", "bits_byte_x"),
        ("/a//b/../c/", "a/b/c"),
        ("", "_"),
        ("..", "_"),
        ("a=b,c", "a_b_c"),
    ],
)
def test_clean_key(key: str, expected: str) -> None:
    assert clean_key(key) == expected


@settings(deadline=None)  # the first call imports MLflow
@given(st.text(max_size=400))
def test_clean_key_is_always_accepted_by_mlflow(key: str) -> None:
    from mlflow.utils.validation import _validate_metric_name

    name = clean_key(key)
    _validate_metric_name(name)
    assert 0 < len(name) <= MAX_KEY and clean_key(name) == name


def test_long_keys_stay_different() -> None:
    assert clean_key("a" * 300 + "1") != clean_key("a" * 300 + "2")


def test_cut() -> None:
    assert cut("abc", 10) == "abc" and cut("a" * 20, 10) == "aaaaaa ..."
