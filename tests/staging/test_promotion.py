"""Promotion in a real local registry: what is registered, who finds it, and what a kill or an absent store leaves."""

import copy
import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from mlflow import MlflowClient

from superblock.config.fields import ConfigError
from superblock.config.run import GenerateConfig, RunConfig
from superblock.data.corpus import Corpus
from superblock.generation.command import generate
from superblock.generation.find import find_checkpoint
from superblock.staging import promotion
from superblock.staging.promotion import find_promoted, promote, refuse, refuse_other_parent
from superblock.staging.statements import Outcome, Statements
from superblock.tracking.files import read_json, write_json
from superblock.tracking.runs import RunRecord, read_run
from superblock.training.lineage import find_parent

PASSED = Outcome("below_trigram", "gate", "passed", "1.9 bits", "below 2.1 bits", "else counting would do")
CLAIM = Outcome("beats_scratch", "claim", "undecided", "0.01", "above 0", "growth should pay", 0.01, -0.1, 0.1)
FAILED = Outcome("dead_experts", "gate", "failed", "2 of 8", "none", "they cost and do nothing")
CONFIGS: dict[str, RunConfig] = {}
"""By run: to compose one takes a second."""


@pytest.fixture(scope="module")
def database(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A migrated one: that takes seconds."""
    from mlflow.store.tracking.sqlalchemy_store import SqlAlchemyStore

    folder = tmp_path_factory.mktemp("database")
    SqlAlchemyStore(f"sqlite:///{folder}/mlflow.db", (folder / "artifacts").as_uri())
    return folder / "mlflow.db"


@pytest.fixture(autouse=True)
def _keep_environment() -> Iterator[None]:
    before = dict(os.environ)
    yield
    os.environ.clear()
    os.environ.update(before)


class Place:
    """Two runs of the fixture `stages` and the registry of this folder."""

    def __init__(self, stages: Any) -> None:
        self.stages, self.said = stages, list[str]()

    def config(self, name: str, store: str = "sqlite", **changes: Any) -> RunConfig:
        if name not in CONFIGS:
            CONFIGS[name] = self.stages.config(name)
        config = copy.deepcopy(CONFIGS[name])
        tracking = replace(config.tracking, store=store, uri=None, timeout_seconds=60.0, flush_seconds=0.05)
        return replace(config, tracking=replace(tracking, **changes))

    def promote(self, name: str, store: str = "sqlite", **changes: Any) -> promotion.Promoted:
        run = self.stages.record(name)
        return promote(
            run, Statements(name, [PASSED, CLAIM]), self.config(name, store, **changes), say=self.said.append
        )

    def find(self, name: str, store: str = "sqlite", **changes: Any) -> promotion.Promoted | None:
        config = self.config(name, store, **changes)
        return find_promoted(config.stage.name, config, seed=config.seed, say=self.said.append)

    @property
    def client(self) -> MlflowClient:
        return MlflowClient(tracking_uri=f"sqlite:///{Path.cwd()}/mlflow.db")

    def copy(self, name: str, new: str, seed: int) -> RunRecord:
        """The same as another run of its own, with another seed."""
        shutil.copytree(f"runs/{name}", f"runs/{new}")
        for file in ("delivered.json", "promotion.json"):
            Path(f"runs/{new}/{file}").unlink(missing_ok=True)
        known = read_json(Path(f"runs/{new}/run.json"))
        for key in ("mlflow_run_id", "tracking_uri"):
            known.pop(key, None)
        write_json(Path(f"runs/{new}/run.json"), known | {"uid": f"uid-{new}", "name": new, "seed": seed})
        record = read_run(Path(f"runs/{new}"))
        assert record is not None
        return record


@pytest.fixture
def place(stages: Any, database: Path) -> Place:
    shutil.copy(database, "mlflow.db")
    return Place(stages)


def model_files() -> list[Path]:
    return sorted(path for path in Path("runs/artifacts").rglob("*") if "models" in path.parts and path.is_file())


def test_two_stages_are_registered_with_their_lineage(place: Place) -> None:
    first, second = place.promote("first"), place.promote("second")
    client, runs = place.client, {name: place.stages.record(name) for name in ("first", "second")}
    assert (first.version, first.alias, second.version, second.superblocks) == (1, "promoted", 1, 3)
    assert client.get_registered_model("mvp2-mini").aliases == {"promoted": 1, "promoted-s1": 1}
    assert client.get_registered_model("mvp2-mini").tags == {"stage": "mvp2", "scale": "mini"}
    version = client.get_model_version_by_alias("mvp2-mini", "promoted")
    expected = {
        "stage": "mvp2", "scale": "mini", "seed": "1", "run": "second", "parent": "first", "parent_version": "1",
        "growth": "identity", "superblocks": "3", "d_model": "32", "checkpoint": "step-0000012",
        "mlflow_run_id": str(runs["second"].mlflow_run_id), "fingerprint": runs["second"].fingerprint,
        "data_digest": runs["second"].summary["data_digest"],
        "test_bits_per_byte": str(runs["second"].summary["splits"]["test"]["bits_per_byte"]),
    }  # fmt: skip
    assert expected.items() <= version.tags.items()
    assert float(version.tags["lineage_flops"]) == pytest.approx(runs["second"].summary["lineage_flops"], rel=1e-5)
    assert version.tags["code_commit"] and len(version.tags["tokenizer_digest"]) == 64
    assert version.run_id == runs["second"].mlflow_run_id and version.status == "READY"
    assert "| below_trigram | 1.9 bits | below 2.1 bits |" in str(version.description)
    assert "1 (`first`, scratch" in str(version.description) and "3 (`second`, identity" in str(version.description)
    [logged] = client.search_logged_models([client.get_run(version.run_id).info.experiment_id], "name = 'mvp2-mini'")
    assert logged.source_run_id == version.run_id and [m.key for m in logged.metrics] == ["test/bits_per_byte"]

    run = client.get_run(version.run_id)
    assert run.info.status == "FINISHED" and run.data.tags["promotion"] == "promoted"
    assert "Promoted as **mvp2-mini version 1**" in run.data.tags["mlflow.note.content"]
    record = read_json(Path("runs/second/promotion.json"))
    assert (record["promoted"], record["model"], record["version"]) == (True, "mvp2-mini", 1)
    assert not list(Path("runs").glob("*/.tmp-*"))


def test_it_serves_without_pickle(place: Place, monkeypatch: pytest.MonkeyPatch) -> None:
    place.promote("first")
    names = {path.name for path in model_files()}
    assert {
        "MLmodel",
        "serving_model.py",
        "weights.safetensors",
        "config.json",
        "tokenizer.json",
        "lineage.json",
    } <= names
    assert not [name for name in names if name.endswith((".pkl", ".pt", ".bin", ".pickle"))]
    requirements = next(path for path in model_files() if path.name == "requirements.txt").read_text()
    assert "torch" in requirements and "superblock" not in requirements  # it is in no index
    monkeypatch.setenv("MLFLOW_ALLOW_PICKLE_DESERIALIZATION", "false")
    import mlflow

    monkeypatch.chdir(Path("runs"))  # nothing but the registry tells it where the files are
    before = mlflow.get_tracking_uri()
    mlflow.set_tracking_uri(f"sqlite:///{Path.cwd().parent}/mlflow.db")
    try:
        model = mlflow.pyfunc.load_model("models:/mvp1-mini@promoted", model_config={"max_tokens": 5})
    finally:
        mlflow.set_tracking_uri(before)
    texts = model.predict(["def f", "import "])
    assert [text[:7] for text in texts] == ["def f" + texts[0][5:7], "import "]
    assert texts == model.predict(["def f", "import "]) and len(texts[1]) > len("import ")
    assert [kind.type.name for kind in model.metadata.signature.inputs] == ["string"]
    assert model.input_example == ["def main("]


def test_promoting_again_makes_no_second_version(place: Place) -> None:
    assert place.promote("first").version == 1
    note = place.client.get_run(place.stages.record("first").mlflow_run_id).data.tags["mlflow.note.content"]
    files = model_files()
    assert place.promote("first").version == 1
    assert model_files() == files
    assert place.client.get_run(place.stages.record("first").mlflow_run_id).data.tags["mlflow.note.content"] == note


@pytest.mark.parametrize(
    "moment", ["log_model_artifacts", "create_model_version", "set_registered_model_alias", "noted"]
)
def test_killed_while_promoting_it_is_finished_the_next_time(
    place: Place, monkeypatch: pytest.MonkeyPatch, moment: str
) -> None:
    def kill(*_: Any, **__: Any) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patched, pytest.raises(KeyboardInterrupt):
        patched.setattr(*((promotion, "write_json") if moment == "noted" else (MlflowClient, moment)), kill)
        place.promote("first")
    assert not Path("runs/first/promotion.json").exists()
    assert (place.find("first") is not None) == (moment == "noted")
    assert place.promote("first").version == 1
    client = place.client
    assert len(client.search_model_versions("name='mvp1-mini'")) == 1
    assert client.get_registered_model("mvp1-mini").aliases == {"promoted": 1, "promoted-s1": 1}
    experiment = client.get_experiment_by_name("superblock")
    assert experiment is not None
    logged = client.search_logged_models([experiment.experiment_id])
    assert sorted((one.name, str(one.status)) for one in logged) == [("first", "READY"), ("mvp1-mini", "READY")]
    assert not list(Path("runs/first").glob(".tmp-*"))


def test_aliases_decide_wherever_they_were_moved_to(place: Place) -> None:
    place.promote("first")
    other = place.copy("first", "other", seed=3)
    config = replace(place.config("first"), seed=3)
    assert promote(other, Statements("other", [PASSED]), config, say=place.said.append).version == 2

    def found(seed: int | None) -> tuple[str, str] | None:
        one = find_promoted("mvp1", config, seed=seed)
        return (one.run, one.alias) if one else None

    assert (found(None), found(1), found(3), found(9)) == (
        ("other", "promoted"), ("first", "promoted-s1"), ("other", "promoted-s3"), ("other", "promoted"),
    )  # fmt: skip
    place.client.set_registered_model_alias("mvp1-mini", "promoted", "1")
    place.client.delete_registered_model_alias("mvp1-mini", "promoted-s3")
    assert (found(None), found(3)) == (("first", "promoted"), ("first", "promoted"))
    place.client.delete_registered_model_alias("mvp1-mini", "promoted")
    assert found(3) is None
    place.client.delete_model_version("mvp1-mini", "1")
    assert found(1) is None
    assert find_checkpoint("models:/mvp1-mini/2").promoted is not None


def test_without_the_run_the_registered_files_serve(
    place: Place, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    own = place.promote("first")
    assert own.checkpoint.parts[:2] == ("runs", "first") and own.has_optimizer
    shutil.move("runs/first", "elsewhere")
    found = place.find("first")
    assert found is not None and found.folder == Path("runs/.registry/mvp1-mini-v1") == found.checkpoint
    assert not found.has_optimizer and found.lineage == own.lineage and found.data_digest == own.data_digest
    parent = find_parent(replace(place.config("second"), parent=str(found.folder)))
    assert parent is not None and (parent.run, parent.lineage[-1].run) == ("first", "first")

    shutil.move("runs/artifacts", "no-artifacts")  # copied once, the store's files are not needed again
    generate(GenerateConfig(run="mvp1@promoted", max_tokens=3, prompt="x"))
    out, err = capsys.readouterr()
    assert out.startswith("x") and err.startswith("generate: mvp1-mini version 1 (run first)\n")
    shutil.rmtree("runs/.registry")
    with pytest.raises(ConfigError, match="mvp1-mini version 1: its files cannot be had"):
        place.find("first")
    assert list(Path("runs/.registry").iterdir()) == []


def test_a_copy_from_another_registry_is_replaced(place: Place) -> None:
    place.promote("first")
    shutil.rmtree("runs/first")
    found = place.find("first")
    assert found is not None
    lineage = found.checkpoint / "lineage.json"
    lineage.write_text(json.dumps(read_json(lineage) | {"mlflow_run_id": "of a store that was deleted"}))
    again = place.find("first")
    assert again is not None and read_json(lineage)["mlflow_run_id"] != "of a store that was deleted"
    weights = found.checkpoint / "weights.safetensors"
    weights.write_bytes(weights.read_bytes()[:-1])
    with pytest.raises(ConfigError, match="is not whole"):
        place.find("first")


def test_a_refusal_is_recorded_and_ends_a_promotion(place: Place) -> None:
    place.promote("first")
    refuse(
        place.stages.record("first"),
        Statements("first", [PASSED, FAILED]),
        place.config("first"),
        say=place.said.append,
    )
    record = read_json(Path("runs/first/promotion.json"))
    assert record["promoted"] is False and [one["name"] for one in record["failures"]] == ["dead_experts"]
    run = place.client.get_run(place.stages.record("first").mlflow_run_id)
    assert run.data.tags["promotion"] == "refused"
    assert run.data.tags["promotion.reason"] == "dead_experts: measured 2 of 8, must be none"
    note = run.data.tags["mlflow.note.content"]
    assert "Not promoted" in note and "Promoted as" not in note and run.info.status == "FINISHED"
    assert place.client.get_model_version("mvp1-mini", "1").tags["promotion"] == "refused"
    assert place.find("first") is None and "withdrew mvp1-mini version 1" in place.said[-1]
    assert place.promote("first").version == 1 and place.find("first") is not None
    assert place.client.get_model_version("mvp1-mini", "1").tags["promotion"] == "promoted"


def test_a_store_that_is_away_leaves_nothing_half_done(place: Place) -> None:
    away = {"store": "server", "uri": "http://127.0.0.1:9", "timeout_seconds": 0.2}
    with pytest.raises(ConfigError, match="first passed its gates and could not be registered as mvp1-mini"):
        place.promote("first", **away)
    assert not Path("runs/first/promotion.json").exists()
    place.promote("first")
    found = place.find("first", **away)
    assert found is not None and (found.run, found.version) == ("first", 1)
    assert "going by the runs' own promotion.json" in place.said[-1]
    Path("mlflow.db").write_bytes(b"this is no database" * 99)
    assert place.find("first") is not None
    assert "mlflow.db cannot be read" in place.said[-1]


def test_without_tracking_the_runs_own_files_decide(place: Place) -> None:
    Path("mlflow.db").unlink()
    assert place.find("first", "none") is None and place.find("first") is None
    place.promote("first", "none")
    place.promote("second", "none")
    found = place.find("first", "none")
    assert found is not None and (found.run, found.version, found.has_optimizer) == ("first", None, True)
    other = place.copy("first", "other", seed=3)
    config = replace(place.config("first", "none"), seed=3)
    promote(other, Statements("other", [PASSED]), config, say=place.said.append)
    runs = [find_promoted("mvp1", config, seed=seed) for seed in (None, 1, 3, 9)]
    assert [one.run for one in runs if one] == ["other", "first", "other", "other"]
    refuse(other, Statements("other", [FAILED]), config, say=place.said.append)
    assert [one.run for one in (find_promoted("mvp1", config, seed=s) for s in (None, 3)) if one] == ["first", "first"]
    shutil.rmtree("runs/first/checkpoints")
    with pytest.raises(ConfigError, match="the checkpoint of its run first is gone"):
        find_promoted("mvp1", config)
    assert not Path("mlflow.db").exists() and place.find("first") is None


def test_a_run_without_a_whole_checkpoint_is_not_promoted(place: Place) -> None:
    next(Path("runs/first/checkpoints").glob("step-*/manifest.json")).unlink()
    with pytest.raises(ConfigError, match="first cannot be promoted without a whole checkpoint"):
        place.promote("first", "none")
    with pytest.raises(AssertionError):
        promote(place.stages.record("second"), Statements("second", [FAILED]), place.config("second"), say=print)


def test_generate_finds_addresses_and_names_what_there_is(place: Place, superblock: Callable[..., Any]) -> None:
    place.promote("first")
    for address in ("mvp1@promoted", "mvp1-mini@promoted-s1", "models:/mvp1-mini@promoted", "models:/mvp1-mini/1"):
        found = find_checkpoint(address)
        assert found.run is not None and found.run.name == "first"
        assert found.describe().startswith("first (mvp1-mini version 1, stage mvp1, scale mini, step-0000012, test ")
    answer = superblock("generate", "run=mvp3@promoted")
    assert answer.status == 2
    assert "promoted are mvp1-mini@promoted, mvp1-mini@promoted-s1" in answer.err
    Path("mlflow.db").unlink()
    answer = superblock("generate", "run=mvp3@promoted")
    assert "nothing is promoted in sqlite:///" in answer.err and "stage=all" in answer.err
    assert superblock("generate", "run=mvp1@promoted", "tracking=none", "max_tokens=2").status == 0


def test_it_is_found_without_torch_and_mlflow(place: Place) -> None:
    place.promote("first")
    shutil.rmtree("runs/first")
    code = (
        "import sys; from superblock.generation.find import find_checkpoint; found = find_checkpoint('mvp1@promoted'); "
        "print(found.checkpoint); assert not {'torch', 'mlflow', 'lightning'} & set(sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.stdout.strip() == str(Path("runs/.registry/mvp1-mini-v1")), done.stderr


# -- parents ----------------------------------------------------------------------------------------------------------


@pytest.fixture
def corpus(stages: Any) -> Corpus:
    """What is compared of the corpus that both runs read."""
    folder = Path("corpus")
    folder.mkdir()
    record = stages.record("first")
    shutil.copy(next((record.folder / "checkpoints").glob("step-*/tokenizer.json")), folder)
    write_json(folder / "corpus.json", {"digest": record.summary["data_digest"]})
    return Corpus(folder)


def change(config: RunConfig, key: str, value: Any) -> RunConfig:
    section, _, name = key.rpartition(".")
    target: Any = config
    for part in section.split("."):
        target = getattr(target, part)
    setattr(target, name, value)
    return config


def test_a_parent_that_fits_is_not_refused(place: Place, corpus: Corpus) -> None:
    parent = place.promote("first", "none")
    refuse_other_parent(parent, place.config("second"), corpus=corpus)
    refuse_other_parent(parent, place.config("second"))
    other = change(change(place.config("second"), "optim.name", "muon"), "growth.optimizer", False)
    refuse_other_parent(parent, other, corpus=corpus)


@pytest.mark.parametrize(
    ("key", "value", "words"),
    [
        ("model.d_model", 64, r"model\.d_model=64: the parent has 32"),
        ("model.num_superblocks", 1, r"model\.num_superblocks=1: must be above the parent's 1"),
        ("model.gqa.num_heads", 4, r"model\.gqa\.num_heads=4: the parent has 2"),
        ("data.vocab_size", 320, r"data\.vocab_size is 320, the parent's was 512"),
        ("optim.name", "muon", r"optim\.name is muon, the parent's was adamw(.|\n)*growth\.optimizer=false"),
    ],
)
def test_another_setting_is_refused_in_words(place: Place, corpus: Corpus, key: str, value: Any, words: str) -> None:
    parent = place.promote("first", "none")
    with pytest.raises(ConfigError, match=words) as refusal:
        refuse_other_parent(parent, change(place.config("second"), key, value), corpus=corpus)
    assert "mvp1-mini@promoted (run first)" in str(refusal.value) and "parent=none" in str(refusal.value)
    assert len(str(refusal.value).splitlines()) <= 4


def test_another_text_or_tokenizer_is_refused_in_words(place: Place, corpus: Corpus) -> None:
    parent, config = place.promote("first", "none"), place.config("second")
    with (corpus.folder / "tokenizer.json").open("a") as file:
        file.write("\n")
    with pytest.raises(ConfigError, match=r"the tokenizer \(SHA-256\) is [0-9a-f]{16}, it was [0-9a-f]{16}"):
        refuse_other_parent(parent, config, corpus=corpus)
    write_json(corpus.folder / "corpus.json", {"digest": "another"})
    with pytest.raises(ConfigError, match="digest of the text\\) is another, it was"):
        refuse_other_parent(parent, config, corpus=Corpus(corpus.folder))
