"""The command, from what is typed to what it leaves behind."""

import json
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from superblock.benchmarks.records import COMPLETE, PARTIAL, Record
from superblock.benchmarks.speed import command
from superblock.tracking.provenance import Code
from superblock.tracking.runs import list_runs
from superblock.tracking.spool import last_values, metric_history


def record_of(root: Path) -> Record:
    [path] = root.glob("runs/benchmarks/*/speed.json")
    record = Record.load(path)
    assert record is not None
    return record


def test_some_cases(superblock: Callable, tiny: tuple[str, ...], tmp_path: Path) -> None:
    answer = superblock("benchmark", *tiny, "cases=part/norm|train/*|around/loader", "suite=speed")
    assert answer.status == 0, answer.out + answer.err
    lines = answer.out.splitlines()
    assert lines[0].startswith("suite speed at scale least: 3 of 3 cases to run; in runs/benchmarks/speed-least-2")
    assert "1 threads; matrix products: bf16" in answer.out and "on a quiet machine" in answer.out
    assert "train/s1/b1-t32" in answer.out and "record: runs/benchmarks/" in answer.out

    record = record_of(tmp_path)
    assert record.status == COMPLETE and not record.failed and not record.skipped
    assert list(record.cases) == ["train/s1/b1-t32", "part/norm", "around/loader"]
    assert record.settings["scale"]["d_model"] == 32 and "tracking" not in record.settings
    assert record.process["threads"] == 1 and record.limits["fp32"] > 0
    assert record.provenance["versions"]["torch"] and record.provenance["hardware"]["fingerprint"] == record.machine
    ours = record.cases["train/s1/b1-t32"]["variants"]["superblock-fp32"]
    assert len(ours["seconds"]) == 2 and ours["ratio"]["median"] > 0 and ours["matmul_share"] > 0
    assert record.cases["train/s1/b1-t32"]["largest_difference"] < 1e-3

    [folder] = tmp_path.glob("runs/benchmarks/*")
    history = metric_history(folder)
    assert history["speed/train/s1/b1-t32/superblock-fp32/ms"] == [(0, ours["ms"]["median"])]
    tags = last_values(folder, "tags")
    assert tags["suite"] == "speed" and tags["scale"] == "least" and tags["fingerprint"] == record.fingerprint
    assert "stage" not in tags and last_values(folder, "params")["speed.part_tokens"] == "64"
    assert list_runs() == []  # nothing that `generate` or `resume` could take for a training


def test_a_case_that_fails_does_not_stop_the_others_and_is_tried_again(
    superblock: Callable, tiny: tuple[str, ...], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # somebody may commit between the two starts, and times of two commits are not put together
    monkeypatch.setattr("superblock.tracking.provenance.code_state", lambda: Code("c" * 40, "main"))
    right, measured = command.measure_case, []

    def measure(bench: command.Bench, case: command.Case) -> dict:
        measured.append(case.name)
        if case.kind == "norm":
            raise AssertionError("the output differs\nfrom the peer's")
        return right(bench, case)

    words = ("benchmark", *tiny, "cases=part/norm|part/convolution|part/optimizer")
    monkeypatch.setattr(command, "measure_case", measure)
    answer = superblock(*words)
    assert answer.status == 1
    assert "failed: AssertionError: the output differs from the peer's" in answer.out and "resume=true" in answer.out
    record = record_of(tmp_path)
    assert record.status == PARTIAL and list(record.failed) == ["part/norm"]
    assert list(record.cases) == ["part/convolution", "part/optimizer"]

    monkeypatch.setattr(command, "measure_case", lambda bench, case: measured.append(case.name) or right(bench, case))
    measured.clear()
    answer = superblock(*words, "resume=true")
    assert answer.status == 0 and measured == ["part/norm"]
    assert f"continuing {record.name}: 2 cases are done" in answer.out
    again = record_of(tmp_path)
    assert again.status == COMPLETE and again.failed == {} and len(again.cases) == 3 and again.started == record.started
    assert again.cases["part/optimizer"] == record.cases["part/optimizer"]

    measured.clear()
    again.status = PARTIAL
    again.save(next(tmp_path.glob("runs/benchmarks/*/speed.json")))
    monkeypatch.setattr("superblock.tracking.provenance.code_state", lambda: Code("d" * 40, "main"))
    answer = superblock(*words[:-1], "cases=part/norm", "resume=true")  # another configuration, and another commit
    assert answer.status == 0 and "no unfinished benchmark of this configuration" in answer.out


def test_ctrl_c_keeps_what_is_done(
    superblock: Callable, tiny: tuple[str, ...], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    right = command.measure_case

    def measure(bench: command.Bench, case: command.Case) -> dict:
        if case.kind == "optimizer":
            raise KeyboardInterrupt
        return right(bench, case)

    monkeypatch.setattr(command, "measure_case", measure)
    answer = superblock("benchmark", *tiny, "cases=part/norm|part/optimizer")
    assert answer.status == 130 and "what is done is recorded" in answer.out and answer.err == ""
    assert list(record_of(tmp_path).cases) == ["part/norm"]


def test_no_case_begins_after_the_time(superblock: Callable, tiny: tuple[str, ...], tmp_path: Path) -> None:
    answer = superblock("benchmark", *tiny, "cases=part/norm", "minutes=1e-9")
    assert answer.status == 0 and "not run: part/norm (after minutes=1e-09)" in answer.out
    assert record_of(tmp_path).status == PARTIAL


def test_without_transformers(
    superblock: Callable, tiny: tuple[str, ...], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("superblock.benchmarks.speed.work.has_peer", lambda: False)
    monkeypatch.setattr("superblock.benchmarks.speed.parts.has_peer", lambda: False)
    answer = superblock("benchmark", *tiny, "cases=part/norm")
    assert answer.status == 0 and "-e '.[test]'" in answer.out
    assert list(record_of(tmp_path).cases["part/norm"]["variants"]) == ["superblock-bf16", "superblock-fp32"]


@pytest.mark.parametrize(
    ("word", "text"),
    [
        ("cases=part/mo", "cases=part/mo: part/mo is none of train/s1/b1-t32"),
        ("suite=langauge", "(did you mean suite=language?)"),
        ("speed.peers=[int8]", "speed.peers=int8: must be one of bf16, fp32, bf16-eager"),
        (
            "speed.superblocks=4",
            "speed.superblocks=4: must be a list of whole numbers such as [1] or [1,2], at least 1",
        ),
        ("repeats=0", "repeats=0: must be at least 1"),
        ("superblocks=[1]", "did you mean speed.superblocks or exits.superblocks?"),
        ("name=a b", "name=a b: must be letters"),
        ("suite=growth resume=true", "resume=True: is not needed: suite=growth always goes on"),
        ("suite=growth seed=2", "seed=2: has no effect with suite=growth; see growth.seeds"),
        ("suite=growth growth.seeds=[1,1]", "growth.seeds=[1, 1]: must name at least one seed, each once"),
        (
            "suite=growth growth.extra_seeds=[9]",
            "growth.extra_seeds=[9]: must be different ones of seeds=[1, 2, 3, 4, 5]",
        ),
        ("suite=exits exits.superblocks=[4]", "exits.superblocks=[4]: must be [3], [6] or [3,6]"),
        ("suite=exits name=a-name-that-is-longer-than-thirty-six-signs", "must have at most 36 signs"),
        ("tracking.uri=http://x", "tracking.uri=http://x: tracking=sqlite needs a file"),
    ],
)
def test_what_cannot_work_is_said_before_anything_is_written(
    superblock: Callable, tiny: tuple[str, ...], tmp_path: Path, word: str, text: str
) -> None:
    typed = word.split(" ") if word.startswith("suite=") else [word]
    keys = {part for text in typed for part in (text.partition("=")[0], text.partition("=")[0].partition(".")[0])}
    answer = superblock("benchmark", *(w for w in tiny if w.partition("=")[0] not in keys), *typed)
    assert answer.status == 2 and text in answer.err and len(answer.err.splitlines()) <= 4
    assert not list(tmp_path.glob("**/*.json"))


def test_a_name_is_given_once(superblock: Callable, tiny: tuple[str, ...], tmp_path: Path) -> None:
    folder = tmp_path / "runs" / "benchmarks" / "mine"
    folder.mkdir(parents=True)
    (folder / "speed.json").write_text("{}")
    answer = superblock("benchmark", *tiny, "name=mine")
    assert answer.status == 2 and "name=mine: runs/benchmarks/mine already holds a benchmark" in answer.err


def test_under_torchrun(superblock: Callable, tiny: tuple[str, ...], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WORLD_SIZE", "2")
    answer = superblock("benchmark", *tiny)
    assert answer.status == 2 and "start it without torchrun" in answer.err


@pytest.mark.slow
def test_a_smoke_pass_of_every_case(superblock: Callable, tiny: tuple[str, ...], tmp_path: Path) -> None:
    began = time.perf_counter()
    answer = superblock("benchmark", *tiny)
    assert answer.status == 0, answer.out
    record = record_of(tmp_path)
    assert {case.split("/")[0] for case in record.cases} == {"train", "part", "prefill", "decode", "around"}
    assert "for loop, callbacks, tracking and loader" in answer.out
    assert time.perf_counter() - began < 300
    json.dumps(record.cases, allow_nan=False)
