"""What is read from run folders, from MLflow and from records, and what is left out of a report."""

import json
import os
import shutil
import sqlite3
import sys
from collections.abc import Iterator
from contextlib import closing, contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from synthetic_runs import COMMIT, MACHINE, Synthetic, write_history, write_pipeline, write_probes, write_run

from superblock.config.report import ReportConfig, SelectConfig
from superblock.config.tracking import TrackingConfig
from superblock.reporting import collect_store, run_facts
from superblock.reporting.analysis import analyse
from superblock.reporting.benchmarked import probe_rows
from superblock.reporting.collect import collect
from superblock.reporting.collect_folders import read_spool
from superblock.reporting.facts import Facts, RunFacts
from superblock.reporting.harnessed import harness_rows
from superblock.reporting.thinning import MOST, chosen, thin
from superblock.tracking.mlflow_sender import deliver
from superblock.tracking.spool import Spool, metric_history
from superblock.tracking.stored_runs import ClientStore, DatabaseStore
from superblock.tracking.versions import StoreAway

RUNS = Path("runs")


def silent(line: str) -> None:
    assert "\n" not in line


def facts(**changes: Any) -> Facts:
    return collect(replace(ReportConfig(), **changes), say=silent)


def by_name(found: Facts) -> dict[str, RunFacts]:
    return {run.name: run for run in found.runs}


def test_a_run_is_read_whole() -> None:
    run = Synthetic(stage="mvp2", seed=3, language=True)
    parent = Synthetic(seed=3, started=run.started - 100)
    write_run(RUNS, run, [parent])
    [found] = facts().runs
    assert (found.stage, found.scale, found.arm, found.seed) == ("mvp2", "mini", "default", 3)
    assert (found.status, found.commit, found.machine, found.superblocks) == ("FINISHED", COMMIT, MACHINE, 3)
    assert found.lineage == (parent.name, run.name)
    assert found.results["test/bits_per_byte"] == run.bits
    assert found.results["lineage/tokens"] == run.tokens + parent.tokens
    assert found.results["reference/xz"] == 1.654
    assert found.results["experts/layer_6/min_load"] == 0.6
    assert found.curves["exits/bits_per_byte"].steps == (1, 2, 3)
    assert found.curves["exits/trained"].values == (parent.bits,)
    assert len(found.curves["train/bits_per_byte"].steps) == 60
    assert found.prediction["bits_per_byte"]["value"] == pytest.approx(run.bits * 0.99)
    assert {one["name"] for one in found.statements} >= {"finite_loss", "cost_predicted"}
    assert found.samples is not None and "def f3" in found.samples
    assert [one["name"] for one in found.language["positions"]] == ["1-16", "17-64", "65-128"]
    assert found.data.startswith("standard library")


def test_nothing_is_found_where_nothing_is() -> None:
    found = facts()
    assert (found.runs, found.records, found.problems) == ((), (), ())


def test_only_finished_runs_count_and_the_others_are_told() -> None:
    write_pipeline(RUNS, seeds=[1], stages=["mvp1"])
    for number, status in enumerate(("FAILED", "KILLED", "INTERRUPTED", "INTERRUPTED")):
        write_run(RUNS, Synthetic(seed=10 + number, status=status))
    for folder in RUNS.glob("*-s1[23]-*"):  # another machine's process, silent for long
        status = json.loads((folder / "status.json").read_text())
        (folder / "status.json").write_text(json.dumps(status | {"host": "elsewhere"}))
        os.utime(folder / "spool.jsonl", (0, 0))
    found = facts()
    assert [run.seed for run in found.runs] == [1]
    words = " ".join(found.problems)
    assert "Failed, so not counted: mvp1-mini-s10" in words
    assert "Stopped, so not counted: mvp1-mini-s11" in words
    assert "Interrupted, so not counted: mvp1-mini-s12" in words and "mvp1-mini-s13" in words


@pytest.mark.parametrize("file", ["run.json", "summary.json", "statements.json", "language.json"])
@pytest.mark.parametrize("content", ["{", "[1]", ""])
def test_an_unreadable_file_is_named_and_no_more(file: str, content: str) -> None:
    write_pipeline(RUNS, seeds=[1, 2], stages=["mvp1"], language=True)
    broken = sorted(RUNS.glob("mvp1-*"))[0]
    (broken / file).write_text(content)
    found = facts()
    assert any(str(broken / file) in problem for problem in found.problems)
    assert len(found.runs) == (1 if file == "run.json" else 2)


def test_files_of_another_shape_are_no_reason_to_stop() -> None:
    [folder] = write_pipeline(RUNS, seeds=[1], stages=["mvp1"])
    (folder / "summary.json").write_text(
        '{"splits": 3, "exits": [], "lineage": "x", "prediction": {"minutes": {"value": "a"}}}'
    )
    (folder / "statements.json").write_text('{"outcomes": {"a": 1}}')
    [found] = facts().runs
    assert (found.statements, found.prediction, found.lineage) == ((), {}, (found.name,))


@pytest.mark.parametrize(
    ("file", "part", "content"),
    [
        ("summary.json", "lineage", [{}]), ("summary.json", "lineage", ["x"]), ("summary.json", "lineage", [{"run": "a"}]),
        ("summary.json", "exits", {"1": 5}), ("summary.json", "exits", {"²": {}}), ("statements.json", "outcomes", ["x"]),
        ("language.json", "positions", ["x"]), ("language.json", "packages", [{"bits_per_byte": 1.0, "bytes": 3}]),
        ("language.json", "positions", {"name": "x"}), ("language.json", "packages", 3),
    ],
)  # fmt: skip
def test_a_part_of_another_kind_is_named_and_the_report_is_made(file: str, part: str, content: object) -> None:
    folder, _ = write_pipeline(RUNS, seeds=[1, 2], stages=["mvp1"], language=True)
    _changed(folder / file, **{part: content})
    found = facts()
    assert len(found.runs) == 2 and analyse(found, ReportConfig(), None).groups
    assert list(found.problems) == (
        [] if "²" in str(content) else [f"{folder.name}: {part} in {file} not of the expected kind and left out"]
    )


def test_a_number_beyond_all_numbers_costs_its_run_alone() -> None:
    folder, _ = write_pipeline(RUNS, seeds=[1, 2], stages=["mvp1"])
    _changed(folder / "summary.json", tokens=10**400)
    found = facts()
    assert [run.seed for run in found.runs] == [2]
    assert [f"{folder.name} cannot be understood" in problem for problem in found.problems] == [True]


def test_a_result_that_is_no_number_is_told() -> None:
    [folder] = write_pipeline(RUNS, seeds=[1], stages=["mvp1"])
    with open(folder / "spool.jsonl", "a") as spool:
        spool.write('{"kind":"metrics","time":1,"step":0,"values":{"test/bits_per_byte":"low"}}\n')
    found = facts()
    assert "test/bits_per_byte" not in found.runs[0].results and "test/bits_per_byte" in found.problems[0]


def test_sizes_that_are_no_numbers_are_no_shares() -> None:
    [folder] = write_pipeline(RUNS, seeds=[1], stages=["mvp1"], language=True)
    _changed(folder / "language.json", packages=[{"name": "a", "bits_per_byte": 1.0, "bytes": "many"}])
    [group] = analyse(facts(), ReportConfig(), None).groups
    assert [(one.name, one.share) for one in group.packages] == [("a", None)]


@pytest.mark.parametrize("kind", ["params", "tags"])
def test_a_spool_of_another_kind_costs_its_run_alone(kind: str) -> None:
    folder, _ = write_pipeline(RUNS, seeds=[1, 2], stages=["mvp1"])
    with open(folder / "spool.jsonl", "a") as spool:
        spool.write(json.dumps({"kind": kind, "time": 1, "values": ["x"]}) + "\n")
    found = facts()
    assert [run.seed for run in found.runs] == [2]
    assert [str(folder) in problem for problem in found.problems] == [True]


def test_labels_that_are_no_words_are_words() -> None:
    [folder] = write_pipeline(RUNS, seeds=[1], stages=["mvp1"])
    with open(folder / "spool.jsonl", "a") as spool:
        spool.write(json.dumps({"kind": "tags", "time": 1, "values": {"seed": 7}}) + "\n")
        spool.write(json.dumps({"kind": "params", "time": 1, "values": {"model.num_superblocks": 1, "x": 3}}) + "\n")
    [run] = facts().runs
    assert (run.seed, run.settings["x"]) == (7, "3")


def test_a_spool_that_is_gone_is_told() -> None:
    [folder] = write_pipeline(RUNS, seeds=[1], stages=["mvp1"])
    (folder / "spool.jsonl").unlink()
    found = facts()
    assert any("spool.jsonl is missing" in problem for problem in found.problems)
    assert by_name(found)[folder.name].stage == "mvp1"


def test_values_that_are_not_finite_are_left_out_and_told() -> None:
    folder = write_run(RUNS, Synthetic(diverged=True))
    spool = Spool(folder)
    spool.metrics({"test/bits_per_byte": float("nan"), "final/tokens_per_second": float("inf")}, 0)
    spool.close()
    found = facts()
    [run] = found.runs
    assert "test/bits_per_byte" not in run.results and "final/tokens_per_second" not in run.results
    assert any("diverged" in problem for problem in found.problems)
    assert any("test/bits_per_byte, final/tokens_per_second are not finite" in problem for problem in found.problems)
    assert max(run.curves["train/bits_per_byte"].steps) < 600  # the second half is not a number


def test_what_was_asked_for_is_selected() -> None:
    write_pipeline(RUNS, seeds=[1, 2], stages=["mvp1", "mvp2"])
    write_run(RUNS, Synthetic(scale="tiny", seed=1, started=Synthetic().started - 10 * 86400))
    write_run(RUNS, Synthetic(arm="muon", seed=1, started=Synthetic().started - 86400))

    def seen(**select: Any) -> set[tuple[str, str, str, int]]:
        config = ReportConfig()
        config.select = replace(config.select, **select)
        return {(run.scale, run.stage, run.arm, run.seed) for run in collect(config, say=silent).runs}

    assert {scale for scale, *_ in seen()} == {"mini"}
    assert seen(scale="tiny") == {("tiny", "mvp1", "default", 1)}
    assert seen(stages=["mvp2"]) == {("mini", "mvp2", "default", 1), ("mini", "mvp2", "default", 2)}
    assert seen(arms=["muon"]) == {("mini", "mvp1", "muon", 1)}
    assert seen(seeds=[2], stages=["mvp1"]) == {("mini", "mvp1", "default", 2)}
    assert ("mini", "mvp1", "muon", 1) not in seen(days=0.5)
    assert seen(scale="small") == set()


@pytest.mark.parametrize(
    ("select", "words"),
    [
        ({"scale": "mni"}, "there are finished runs of scale mini; stages mvp1, mvp2 (did you mean mini?)"),
        ({"stages": ["mvp9"]}, "there are finished runs of scale mini; stages mvp1, mvp2 (did you mean mvp2?)"),
        ({"seeds": [7]}, "there are finished runs of scale mini; stages mvp1, mvp2; seeds 1, 2"),
        ({"stages": ["mvp1"]}, ""),
    ],
)
def test_where_nothing_is_asked_for_it_is_told_what_there_is(select: dict[str, Any], words: str) -> None:
    write_pipeline(RUNS, seeds=[1, 2], stages=["mvp1", "mvp2"])
    found = facts(select=SelectConfig(**select))
    assert found.others == words and bool(found.runs) == (words == "")


def test_runs_of_benchmarks_are_no_stages() -> None:
    folder = write_run(RUNS, Synthetic())
    spool = Spool(folder)
    spool.append("tags", {"values": {"suite": "growth"}})
    spool.close()
    assert facts().runs == ()


# -- spools -----------------------------------------------------------------------------------------------------------


def test_what_a_rewind_made_void_is_void_here_too(tmp_path: Path) -> None:
    spool = Spool(tmp_path)
    for step in range(1, 21):
        spool.metrics({"train/bits_per_byte": 3.0, "train/tokens": 10.0 * step}, step)
        spool.metrics({"experts/layer_1/min_load": step / 100}, step)
    spool.rewind(5)
    for step in range(6, 11):
        spool.metrics({"train/bits_per_byte": 2.0, "train/tokens": 10.0 * step}, step)
    spool.metrics({"test/bits_per_byte": 1.5}, 0)
    spool.close()
    with open(spool.path, "ab") as file:
        file.write(b'{"kind":"metrics","time":1,"step":11,"values":{"train/bits_per_byte":1')  # killed in the middle
    found = read_spool(spool.path)
    series = found.curves["train/bits_per_byte"]
    expected = metric_history(spool.path)["train/bits_per_byte"]
    assert list(zip(series.steps, series.values, strict=True)) == expected
    assert found.latest == {"experts/layer_1/min_load": 0.05, "train/tokens": 100.0, "test/bits_per_byte": 1.5}


def test_a_long_spool_is_thinned_to_points_of_its_own(tmp_path: Path) -> None:
    folder = write_run(tmp_path, Synthetic(points=3000))
    found = read_spool(folder / "spool.jsonl").curves["train/bits_per_byte"]
    whole = dict(metric_history(folder)["train/bits_per_byte"])
    assert len(found.steps) == MOST
    assert (found.steps[0], found.steps[-1]) == (min(whole), max(whole))
    assert all(whole[step] == value for step, value in zip(found.steps, found.values, strict=True))


@given(count=st.integers(0, 5000), most=st.integers(2, 400))
def test_thinning_keeps_the_ends_and_the_order(count: int, most: int) -> None:
    kept = list(chosen(count, most))
    assert len(kept) == min(count, most) == len(set(kept))
    assert kept == sorted(kept)
    assert not kept or (kept[0], kept[-1]) == (0, count - 1)


@given(st.lists(st.floats(), max_size=50))
def test_a_series_is_finite(values: list[float]) -> None:
    series = thin(list(enumerate(values)))
    assert all(abs(value) < float("inf") for value in series.values)
    assert len(series.steps) == len(series.values)


# -- MLflow -----------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def stored(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with two runs, and with them in a local store."""
    folder, config = tmp_path_factory.mktemp("stored"), TrackingConfig(flush_seconds=0.01)
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        write_pipeline(RUNS, seeds=[1], stages=["mvp1", "mvp2"], language=True, points=300)
        spool = Spool(sorted(RUNS.glob("mvp1*"))[0])
        spool.metrics({"train/bits_per_byte": float("nan")}, 599)
        spool.close()
        for run in sorted(RUNS.glob("mvp*")):
            assert deliver(run, config, timeout=60) == 0
    return folder


@contextmanager
def moved_away(path: Path) -> Iterator[None]:
    path.rename(aside := path.absolute().parent.parent / "aside")
    yield
    aside.rename(path)


def test_both_sources_tell_the_same(stored: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Also where MLflow's client is asked, as of a server."""
    monkeypatch.chdir(stored)
    here, there = facts(source="spool"), facts(source="mlflow")
    assert here.runs == there.runs
    assert len(here.runs) == 2 and all(run.mlflow_run_id and run.language and run.statements for run in here.runs)
    monkeypatch.setattr(collect_store, "run_store", ClientStore)
    assert facts(source="mlflow").runs == here.runs


def test_auto_takes_from_mlflow_what_has_no_folder(stored: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(stored)
    whole = facts(source="auto")
    assert whole.source == "the folders below runs/"
    with moved_away(sorted(RUNS.glob("mvp2*"))[0]):
        assert len(facts(source="spool").runs) == 1
        found = facts(source="auto")
    assert by_name(found) == by_name(whole)
    assert found.source == "the folders below runs/ and MLflow at mlflow.db"


def test_a_store_without_its_artifacts_gives_what_it_has(stored: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(stored)
    with moved_away(RUNS / "artifacts"):
        found = facts(source="mlflow").runs
    assert len(found) == 2
    for run in found:
        assert run.results["test/bits_per_byte"] > 1 and run.curves["val/bits_per_byte"].steps
        assert (run.statements, run.samples, run.language) == ((), None, {})


def test_a_damaged_store_costs_no_folder(stored: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Bad pages show when rows are read, after the store was opened."""
    whole = (stored / "mlflow.db").read_bytes()
    page = int.from_bytes(whole[16:18], "big")
    shutil.copytree(stored / RUNS, tmp_path / RUNS)
    monkeypatch.chdir(tmp_path)
    with closing(sqlite3.connect(stored / "mlflow.db")) as connection:
        roots = connection.execute("SELECT rootpage FROM sqlite_master WHERE name IN ('runs', 'latest_metrics')")
        damaged = bytearray(whole)
        for (root,) in roots:
            damaged[(root - 1) * page : root * page] = b"\xff" * page
    Path("mlflow.db").write_bytes(damaged)
    found = facts(source="auto")
    assert len(found.runs) == 2
    assert any("mlflow.db cannot be read" in problem for problem in found.problems)


@pytest.mark.parametrize("client", [False, True])
def test_an_artifact_that_cannot_be_read_costs_no_run(
    client: bool, stored: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(stored)
    whole = facts(source="mlflow")
    broken = next(path for path in (RUNS / "artifacts").rglob("samples.md"))
    table = broken.parent / "statements.json"
    texts = broken.read_bytes(), table.read_bytes()
    if client:
        monkeypatch.setattr(collect_store, "run_store", ClientStore)
    broken.write_bytes(b"\xff" + texts[0])
    table.unlink()
    table.mkdir()
    try:
        found = facts(source="mlflow")
    finally:
        table.rmdir()
        broken.write_bytes(texts[0])
        table.write_bytes(texts[1])
    assert len(found.runs) == 2 and all(run.samples for run in found.runs)
    assert [bool(run.statements) for run in found.runs].count(False) == 1
    assert sum("statements.json" in problem and "missing here" in problem for problem in found.problems) == 1
    assert facts(source="mlflow").runs == whole.runs


def test_a_store_that_stops_answering_is_not_asked_for_ever(stored: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(stored)
    asked = []

    def away(self: DatabaseStore, run: object, name: str) -> str | None:
        asked.append(name)
        raise StoreAway("it does not answer")

    monkeypatch.setattr(DatabaseStore, "artifact", away)
    monkeypatch.setattr(DatabaseStore, "history", away)
    found = facts(source="mlflow")
    assert len(found.runs) == 2 and all(
        run.results and not run.curves["train/bits_per_byte"].steps for run in found.runs
    )
    assert len(asked) == 3 == len(found.problems) and "nothing more is asked" in found.problems[-1]


def test_folders_are_read_without_mlflow() -> None:
    """Importing it takes seconds."""
    write_pipeline(RUNS, seeds=[1], stages=["mvp1"])
    loaded = sys.modules.pop("mlflow", None)
    try:
        facts()
        assert "mlflow" not in sys.modules
    finally:
        if loaded is not None:
            sys.modules["mlflow"] = loaded


def test_a_store_that_is_not_there_is_told_only_where_it_was_asked_for() -> None:
    write_pipeline(RUNS, seeds=[1], stages=["mvp1"])
    assert facts(source="auto").problems == ()
    assert "mlflow.db is not there" in facts(source="mlflow").problems[0]
    assert not Path("mlflow.db").exists()


@pytest.mark.parametrize("content", [b"not a database at all, but long enough to look at" * 40, b""])
def test_a_store_that_cannot_be_read_is_told(content: bytes) -> None:
    write_pipeline(RUNS, seeds=[1], stages=["mvp1"])
    Path("mlflow.db").write_bytes(content)
    found = facts(source="auto")
    assert len(found.runs) == 1
    assert Path("mlflow.db").read_bytes() == content
    if content:
        assert "mlflow.db cannot be read" in found.problems[0]


# -- records ----------------------------------------------------------------------------------------------------------


def test_the_newest_record_of_each_suite_counts(root: Path) -> None:
    write_probes(Path("runs/benchmarks/first/probes.json"), started=1000.0)
    write_probes(Path("runs/benchmarks/second/probes.json"), started=2000.0)
    named = root / "reports" / "records" / "2026-11-21-speed.json"
    found = facts(records=["runs/benchmarks", str(named)])
    assert [(record.suite, record.started) for record in found.records if record.suite == "probes"] == [
        ("probes", 2000.0)
    ]
    assert [record.suite for record in found.records] == ["probes", "speed"]
    assert found.records[1].hardware == "2 x AMD EPYC, 24 GiB, no GPU" and found.problems == ()


def test_ablations_of_several_names_are_several(root: Path) -> None:
    source = json.loads((root / "reports" / "records" / "2026-11-21-growth.json").read_text())
    for name in ("wiring", "ratio"):
        path = Path(f"runs/benchmarks/{name}/ablation.json")
        path.parent.mkdir(parents=True)
        path.write_text(json.dumps(source | {"suite": "ablation", "name": name, "results": {}}))
    assert [record.name for record in facts().records] == ["ratio", "wiring"]


def test_records_that_cannot_be_read_are_named() -> None:
    folder = Path("runs/benchmarks/x")
    folder.mkdir(parents=True)
    (folder / "speed.json").write_text("{")
    (folder / "probes.json").write_text('{"schema": "superblock.probes/9"}')
    (folder / "growth.json").write_text('{"schema": "superblock.ablation/1", "suite": "growth"}')
    (folder / "notes.json").write_text('{"mine": 1}')
    Path("alone.json").write_text("{}")
    found = facts(records=["runs/benchmarks", "alone.json", "absent.json"])
    assert found.records == ()
    words = "\n".join(found.problems)
    for expected in ("speed.json cannot be read", "probes.json is no record", "growth.json is not a whole record",
                     "alone.json is no record", "absent.json cannot be read"):  # fmt: skip
        assert expected in words
    assert "notes.json" not in words


def test_a_record_whose_rows_cannot_be_made_is_named(root: Path) -> None:
    speed = json.loads((root / "reports" / "records" / "2026-11-21-speed.json").read_text())
    case = json.loads(json.dumps(next(iter(speed["cases"].values()))))
    for variant in case["variants"].values():
        variant["ms"] = None
    broken = {
        "ms": speed | {"cases": {"a": case}}, "provenance": speed | {"provenance": "x"}, "cases": speed | {"cases": [1]},
        "runs": {**speed, "schema": "superblock.probes/1", "runs": {"a": 3}},
        "results": {**speed, "schema": "superblock.ablation/1", "suite": "growth", "results": {"methods": {"a": 1}}},
    }  # fmt: skip
    Path("records").mkdir()
    for name, content in broken.items():
        Path("records", f"{name}.json").write_text(json.dumps(content))
    found = facts(records=["records"])
    assert found.records == () and len(found.problems) == len(broken)
    for name in broken:
        assert any(f"{name}.json is not a whole record" in problem for problem in found.problems)


def test_an_unfinished_record_is_used_and_said() -> None:
    path = write_probes(Path("runs/benchmarks/p/probes.json"))
    path.write_text(path.read_text().replace('"complete"', '"partial"'))
    found = facts()
    assert len(found.records) == 1 and "is not finished" in found.problems[0]


def test_a_smoke_pass_hides_no_record() -> None:
    whole = write_probes(Path("runs/benchmarks/whole/probes.json"), started=1000.0)
    _changed(write_probes(Path("runs/benchmarks/smoke/probes.json"), started=2000.0), settings={"quick": True})
    found = facts()
    assert [record.started for record in found.records] == [1000.0]
    assert found.problems == ("Smoke passes (quick=true), so not shown: probes",)
    whole.unlink()
    assert facts().records == ()


def test_a_finished_record_is_preferred_to_a_newer_one_that_is_not(root: Path) -> None:
    speed = (root / "reports" / "records" / "2026-11-21-speed.json").read_text()
    for name, started in (("first", 1000.0), ("second", 2000.0), ("third", 3000.0)):
        path = Path(f"runs/benchmarks/{name}/speed.json")
        path.parent.mkdir(parents=True)
        path.write_text(speed)
        _changed(path, name=name, started=started, status="partial" if name == "third" else "complete")
    found = facts()
    assert [record.name for record in found.records] == ["second"]
    assert found.problems == ("The record third of suite=speed is not finished; second is shown",)


def test_cases_that_only_an_older_record_has_are_named(root: Path) -> None:
    content = json.loads((root / "reports" / "records" / "2026-11-21-speed.json").read_text())
    few = dict(list(content["cases"].items())[1:])
    for name, started, cases in (("all", 1000.0, content["cases"]), ("few", 2000.0, few)):
        Path(name).mkdir()
        Path(name, "speed.json").write_text(json.dumps({**content, "name": name, "started": started, "cases": cases}))
    found = facts(records=["all", "few"])
    assert [record.name for record in found.records] == ["few"]
    assert found.problems == (f"suite=speed: {next(iter(content['cases']))} only in speed/all, not in speed/few",)


def test_probes_come_from_the_newest_record_that_has_them() -> None:
    """The records' names hold the commit: one task after a commit must not hide the others."""
    for name, started in (("probes-a", 1000.0), ("probes-b", 2000.0), ("probes-c", 3000.0)):
        path = write_probes(Path(f"runs/benchmarks/{name}/probes.json"), started=started)
        runs = json.loads(path.read_text())["runs"]
        kept = {key: run for key, run in runs.items() if name != "probes-c" or run["task"] == "parity"}
        _changed(path, name=name, runs=kept)
    found = facts()
    assert [record.name for record in found.records] == ["probes-b", "probes-c"]
    rows = probe_rows(found.records)
    assert len(rows) == 8 == len({(row.task, row.arm) for row in rows})
    assert {(row.task, row.record) for row in rows} == {("parity", "probes/probes-c"), ("mqar", "probes/probes-b")}
    [words] = found.problems
    assert "mqar (attention), mqar (deltanet)" in words and "from probes/probes-b; probes/probes-c has none" in words


def _changed(path: Path, **changes: Any) -> None:
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


def test_history_is_collected_whole() -> None:
    write_history(RUNS, times=4, seeds=[1, 2])
    found = facts()
    assert len(found.runs) == 8
    assert [run.started for run in found.runs] == sorted(run.started for run in found.runs)


def test_the_harness_is_shown_for_each_model_and_a_part_beside_the_whole() -> None:
    def write(name: str, run: str, started: float, value: float, limit: int | None = None) -> None:
        metrics = {"acc": {"value": value, "stderr": 0.1}, "perplexity": {"value": 9.0, "stderr": None},
                   "word_perplexity": {"value": float("inf"), "stderr": None}}  # fmt: skip
        tasks = {"brackets": {"metrics": metrics, "examples": limit or 300, "version": 1, "shots": 0, "chance": 0.25}}
        content = {"schema": "superblock.harness/1", "suite": "harness", "name": name, "run": run, "started": started,
                   "finished": started + 1, "settings": {"limit": limit}, "tasks": tasks}  # fmt: skip
        path = Path("runs/benchmarks") / name / "harness.json"
        path.parent.mkdir(parents=True)
        path.write_text(json.dumps(content))

    write("old", "a", 1.0, 0.1)
    write("new", "a", 2.0, 0.2)
    write("part", "a", 3.0, 0.3, 5)
    write("other", "b", 4.0, 0.4)
    found = facts(records=["runs/benchmarks"])
    assert [record.name for record in found.records] == ["new", "part", "other"] and found.problems == ()
    rows = harness_rows(found.records)
    assert [(row.run, row.value, row.limit, row.chance, row.examples) for row in rows if row.metric == "acc"] == [
        ("a", 0.2, None, 0.25, 300), ("a", 0.3, 5, 0.25, 5), ("b", 0.4, None, 0.25, 300),
    ]  # fmt: skip
    assert {(row.metric, row.stderr, row.chance) for row in rows} == {("acc", 0.1, 0.25), ("perplexity", None, None)}
    assert analyse(found, ReportConfig(), None).harness == rows


@pytest.mark.parametrize(
    ("recorded", "shown"),
    [
        ("superblock stage=all scale=mini", "superblock run stage=all scale=mini"),
        ("superblock --multirun stage=mvp1,mvp2", "superblock run --multirun stage=mvp1,mvp2"),
        ("superblock run stage=mvp1", "superblock run stage=mvp1"),
        ("superblock run", "superblock run"),
        ("python -m platform.run stage=mvp1", "python -m platform.run stage=mvp1"),
        ("", ""),
    ],
)
def test_commands_recorded_without_their_name_get_it(recorded: str, shown: str) -> None:
    told = run_facts.Told(name="a", status="FINISHED", started=0.0, ended=None, tags={"mlflow.source.name": recorded})
    assert run_facts.run_facts(told).command == shown
