"""What a pipeline does with each stage, given what is already there; training and measuring are stood in for."""

import shutil
from collections.abc import Callable
from copy import deepcopy
from dataclasses import asdict, replace
from functools import cache
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from superblock.cli.app import compose_run
from superblock.config.fields import ConfigError
from superblock.config.run import RunConfig, fingerprint
from superblock.staging import lookup, parents, pipeline
from superblock.staging.promotion import Promoted
from superblock.staging.statements import Outcome, Statements
from superblock.tracking.files import read_json, write_json

STAGES = ("mvp1", "mvp2", "mvp3")


class World:
    """Runs on disk without training, promotions without MLflow, gates that pass unless told otherwise."""

    def __init__(self) -> None:
        self.events: list[str] = []
        self.promoted: dict[str, Promoted] = {}
        self.fail: str | None = None
        self.interrupt: str | None = None
        self.said: list[str] = []
        self.text_of: dict[str, str] = {}
        self.count = 0

    def train(self, config: RunConfig, **rest: Any) -> Any:
        name = config.resume if config.resume != "none" else f"{config.stage.name}-{self.count}"
        self.count += 1
        self.events.append(f"{'continue' if config.resume != 'none' else 'train'} {name} from {config.parent}")
        interrupted = self.interrupt == config.stage.name
        self.write(name, config, "KILLED" if interrupted else "FINISHED")
        if interrupted:
            self.interrupt = None
            raise SystemExit(130)
        return type("Summary", (), {"name": name})

    def write(self, name: str, config: RunConfig, status: str) -> None:
        folder = Path("runs") / name
        folder.mkdir(parents=True, exist_ok=True)
        mark = fingerprint(replace(config, resume="none"))
        known = {"uid": name, "stage": config.stage.name, "scale": config.scale.name, "fingerprint": mark}
        write_json(folder / "run.json", known | {"seed": config.seed, "started": float(self.count)})
        write_json(folder / "status.json", {"status": status})
        write_json(folder / "config.json", asdict(config))
        if status == "FINISHED":
            write_json(folder / "summary.json", {"splits": {"test": {"bits_per_byte": 1.5}}, "lineage_flops": 2e15})

    def evaluate(self, run: Any, config: RunConfig, **rest: Any) -> Statements:
        self.events.append(f"check {run.name}")
        bad = self.fail == config.stage.name
        gate = Outcome("bits_per_byte", "gate", "failed" if bad else "passed", "1.9", "at most 1.7", "why it matters")
        return Statements(run.name, [gate])

    def promote(self, run: Any, statements: Statements, config: RunConfig, **rest: Any) -> Promoted:
        self.events.append(f"promote {run.name}")
        found = Promoted(
            stage=config.stage.name, scale=config.scale.name, run=run.name, folder=run.folder, checkpoint=run.folder,
            version=1, alias="promoted", seed=config.seed, fingerprint=run.fingerprint, data_digest="d",
            superblocks=config.stage.superblocks, lineage=(),
        )  # fmt: skip
        self.promoted[config.stage.name] = found
        write_json(run.folder / "promotion.json", {"promoted": True})
        return found

    def refuse(self, run: Any, *rest: Any, **more: Any) -> None:
        self.events.append(f"refuse {run.name}")

    def find(self, stage: str, config: RunConfig, **rest: Any) -> Promoted | None:
        return self.promoted.get(stage)


@pytest.fixture
def world(monkeypatch: pytest.MonkeyPatch) -> World:
    world = World()
    for name in ("train", "evaluate", "promote", "refuse"):
        monkeypatch.setattr(pipeline, name, getattr(world, name))
    corpus = SimpleNamespace(digest="d")
    monkeypatch.setattr(pipeline, "prepare", lambda *args, **rest: corpus)
    for module in (pipeline, parents, lookup):  # a run's folder stands for its checkpoint
        monkeypatch.setattr(module, "newest_whole", lambda folder: (folder, []))
    for module in (pipeline, parents):
        monkeypatch.setattr(module, "load_config", lambda folder: read_json(folder / "config.json"))
    monkeypatch.setattr(lookup, "load_progress", lambda folder: {"data_digest": world.text_of.get(folder.name, "d")})
    monkeypatch.setattr(pipeline, "predict", lambda *args, **rest: None)
    monkeypatch.setattr(lookup, "find_promoted", world.find)
    monkeypatch.setattr(parents, "find_promoted", world.find)
    monkeypatch.setattr(parents, "refuse_other_parent", lambda *args, **rest: None)
    return world


@cache
def composed(*words: str) -> RunConfig:
    """Composing takes a third of a second, and every test asks for the same."""
    return compose_run(words)


@pytest.fixture
def configs() -> Callable[..., list[RunConfig]]:
    def make(*words: str, stages: tuple[str, ...] = STAGES) -> list[RunConfig]:
        return [deepcopy(composed("scale=mini", f"stage={stage}", *words)) for stage in stages]

    return make


def run(world: World, configs: list[RunConfig]) -> int:
    world.events.clear()
    command = "python -m platform.run stage=all" if len(configs) > 1 else None
    return pipeline.run_stages(
        configs, compose=lambda words: composed(*words), say=world.said.append, continue_with=command
    )


def test_each_stage_grows_from_the_one_before(world: World, configs: Callable) -> None:
    assert run(world, list(reversed(configs()))) == 0
    assert world.events == [
        "train mvp1-0 from none", "check mvp1-0", "promote mvp1-0",
        "train mvp2-1 from mvp1-0", "check mvp2-1", "promote mvp2-1",
        "train mvp3-2 from mvp2-1", "check mvp3-2", "promote mvp3-2",
    ]  # fmt: skip


def test_a_complete_pipeline_has_nothing_to_do(
    world: World, configs: Callable, capsys: pytest.CaptureFixture[str]
) -> None:
    run(world, configs())
    assert run(world, configs()) == 0
    assert world.events == [] and "nothing to do" in world.said[-1]
    assert capsys.readouterr().out.count("already promoted") >= 3


def test_a_promoted_model_whose_run_is_gone_is_kept(world: World, configs: Callable) -> None:
    run(world, configs())
    shutil.rmtree(Path("runs") / "mvp1-0")
    assert run(world, configs()) == 0 and world.events == []


def test_another_seed_is_another_pipeline(world: World, configs: Callable) -> None:
    run(world, configs())
    assert run(world, configs("seed=2")) == 0
    assert len(world.events) == 9
    assert pipeline.pipeline_name(configs()) != pipeline.pipeline_name(configs("seed=2"))
    assert pipeline.pipeline_name(configs()) == pipeline.pipeline_name(configs())


def test_a_failed_gate_stops_it_and_is_explained(world: World, configs: Callable) -> None:
    world.fail = "mvp2"
    assert run(world, configs()) == pipeline.REFUSED
    assert world.events[-2:] == ["check mvp2-1", "refuse mvp2-1"] and not any("mvp3" in e for e in world.events)
    text = world.said[-1]
    assert "mvp2 is not promoted" in text and "measured 1.9; must be at most 1.7" in text and "why it matters" in text
    assert "python -m platform.run stage=all" in text and "remove runs/mvp2-1" in text
    world.fail = None
    assert run(world, configs()) == 0  # the gate is measured again, nothing is trained twice
    assert world.events[:2] == ["check mvp2-1", "promote mvp2-1"]


def test_an_interrupted_stage_is_continued(world: World, configs: Callable) -> None:
    world.interrupt = "mvp2"
    with pytest.raises(SystemExit):
        run(world, configs())
    assert run(world, configs()) == 0
    assert world.events[0] == "continue mvp2-1 from mvp1-0"


def test_a_new_parent_means_training_anew(world: World, configs: Callable) -> None:
    run(world, configs())
    world.promoted["mvp1"] = replace(world.promoted["mvp1"], run="another", fingerprint="x")
    Path("runs/another").mkdir()
    run(world, configs())
    # mvp1's own run is finished, so it is judged again and promoted again, and what grew from it stands
    assert world.events == ["check mvp1-0", "promote mvp1-0"]


def test_resume_auto_means_the_interrupted_one(world: World, configs: Callable) -> None:
    [config] = configs(stages=("mvp1",))
    run(world, [config])
    world.interrupt = "mvp1"
    with pytest.raises(SystemExit):
        run(world, [config])
    assert run(world, [replace(config, resume="auto")]) == 0
    assert world.events[0].startswith("continue")


def test_one_stage_alone_is_always_trained(world: World, configs: Callable) -> None:
    [config] = configs(stages=("mvp1",))
    run(world, [config])
    run(world, [config])
    assert world.events == ["train mvp1-1 from none", "check mvp1-1", "promote mvp1-1"]


def test_a_finished_run_is_judged_again_without_training(world: World, configs: Callable) -> None:
    [config] = configs(stages=("mvp1",))
    run(world, [config])
    assert run(world, [replace(config, resume="mvp1-0")]) == 0
    assert world.events == ["check mvp1-0", "promote mvp1-0"]


def test_a_budget_of_ones_own_is_not_promoted_unless_asked(world: World, configs: Callable) -> None:
    [config] = configs("trainer.budget=3steps", stages=("mvp1",))
    assert run(world, [config]) == 0 and world.events == ["train mvp1-0 from none"]
    run(world, [replace(config, promote=True)])
    assert "promote mvp1-1" in world.events
    [untested] = configs("evaluation.test=false", stages=("mvp1",))
    assert not pipeline.wants_promotion(untested)
    [refused] = configs("promote=false", stages=("mvp1",))
    assert not pipeline.wants_promotion(refused) and not pipeline.wants_promotion(refused, together=True)
    assert pipeline.wants_promotion(config, together=True)
    [other] = configs("model.family=gru", stages=("mvp1",))
    assert not pipeline.wants_promotion(other)


def test_a_named_run_is_judged_as_it_was_trained_whatever_else_was_typed(
    world: World, configs: Callable, monkeypatch: pytest.MonkeyPatch
) -> None:
    first, second, _ = configs()
    run(world, [first, second])
    judged: list[RunConfig] = []
    evaluate = world.evaluate

    def look(record: Any, config: RunConfig, **rest: Any) -> Statements:
        judged.append(config)
        return evaluate(record, config, **rest)

    monkeypatch.setattr(pipeline, "evaluate", look)
    [other] = configs("scale=tiny", stages=("mvp1",))
    assert run(world, [replace(other, resume="mvp2-1")]) == 0
    assert world.events == ["check mvp2-1", "promote mvp2-1"]
    assert (judged[0].scale.name, judged[0].stage.name, judged[0].parent) == ("mini", "mvp2", "mvp1-0")
    second.stage.gates["finite_loss"].because = "another reason"
    run(world, [replace(second, resume="mvp2-1")])
    assert judged[1].stage.gates["finite_loss"].because == "another reason"


def test_gates_need_a_test(world: World, configs: Callable) -> None:
    with pytest.raises(ConfigError, match=r"evaluation\.test=false: the gates of a stage need its test"):
        run(world, configs("evaluation.test=false"))


def test_runs_on_another_text_do_not_count(world: World, configs: Callable) -> None:
    run(world, configs())
    world.text_of["mvp1-0"] = "older"
    world.promoted["mvp1"] = replace(world.promoted["mvp1"], data_digest="older")
    run(world, configs())
    assert world.events[0].startswith("train mvp1-") and len(world.events) == 9


def test_what_another_command_trains_is_left_to_it(world: World, configs: Callable) -> None:
    first = configs()[0]
    world.write("elsewhere", replace(first, parent="none"), "RUNNING")
    owner = {"status": "RUNNING", "host": "another machine", "pid": 1, "process_started": 0.0}
    write_json(Path("runs/elsewhere/status.json"), owner)
    Path("runs/elsewhere/spool.jsonl").write_text("")
    with pytest.raises(ConfigError, match="elsewhere is being trained by another command"):
        run(world, configs())


def test_a_promotion_that_was_killed_halfway_is_completed(world: World, configs: Callable) -> None:
    run(world, configs())
    (Path("runs") / "mvp2-1" / "promotion.json").unlink()
    assert run(world, configs()) == 0
    assert world.events == ["check mvp2-1", "promote mvp2-1"]


def test_a_pipeline_grows_from_its_own_stages(world: World, configs: Callable) -> None:
    """Another pipeline of the same seed, with other settings, has promoted its stages in the meantime."""
    run(world, configs())
    assert run(world, configs("optim=muon")) == 0
    assert [event for event in world.events if event.startswith("train")][1].endswith("from mvp1-3")
    world.events.clear()
    run(world, configs())
    assert "train" not in " ".join(world.events)


def test_nothing_is_called_promoted_that_is_not(world: World, configs: Callable) -> None:
    assert run(world, configs("promote=false")) == 0
    assert not any("promoted" in line and "every" in line for line in world.said)


def test_gates_need_one_process(configs: Callable, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WORLD_SIZE", "2")
    assert not pipeline.wants_promotion(configs("promote=true")[0])


# -- parents ------------------------------------------------------------------------------------------------------


def test_without_a_promoted_parent(world: World, configs: Callable) -> None:
    _, second, _ = configs()
    assert parents.resolve_parent(second, world.said.append).config.parent == "none"
    assert "no promoted mvp1 at scale mini: training mvp2 from scratch" in world.said[-1]
    with pytest.raises(ConfigError, match=r"parent=required: there is no promoted mvp1.*\n.*stage=mvp1 scale=mini"):
        parents.resolve_parent(replace(second, parent="required"), world.said.append)
    with pytest.raises(ConfigError, match="is the first"):
        parents.resolve_parent(replace(configs()[0], parent="required"), world.said.append)


def test_a_parent_that_does_not_fit(world: World, configs: Callable, monkeypatch: pytest.MonkeyPatch) -> None:
    first, second, _ = configs()
    run(world, [first])

    def refuse(*args: Any) -> None:
        raise ConfigError("parent mvp1-0: model.d_model=256: the parent has 128\nwrite parent=none")

    monkeypatch.setattr(parents, "refuse_other_parent", refuse)
    assert parents.resolve_parent(second, world.said.append).config.parent == "none"
    assert "does not fit" in world.said[-1] and "the parent has 128" in world.said[-1]
    with pytest.raises(ConfigError, match="the parent has 128"):
        parents.resolve_parent(replace(second, parent="required"), world.said.append)


def test_what_was_written_is_kept(world: World, configs: Callable) -> None:
    _, second, _ = configs("parent=some-run")
    assert parents.resolve_parent(second, world.said.append).config.parent == "some-run"
    _, second, _ = configs("growth.method=none")
    assert parents.resolve_parent(second, world.said.append).config.parent == "none"


def test_a_downloaded_parent_keeps_its_runs_name(world: World, configs: Callable) -> None:
    """Its files are found wherever they are; the name is what makes a configuration the same."""
    first, second, _ = configs()
    run(world, [first])
    elsewhere = replace(world.promoted["mvp1"], run="on-another-machine", folder=Path("runs/.registry/mvp1-mini-v1"))
    world.promoted["mvp1"] = elsewhere
    found = parents.resolve_parent(second, world.said.append)
    assert found.config.parent == "on-another-machine" and found.promoted == elsewhere
    assert found.parent_record is None


def test_the_first_of_several_has_no_parent_to_require(world: World, configs: Callable) -> None:
    assert run(world, configs("parent=required")) == 0
    assert world.events[0] == "train mvp1-0 from none" and "train mvp2-1 from mvp1-0" in world.events


# -- the table ----------------------------------------------------------------------------------------------------


def test_the_table_says_where_each_stage_is() -> None:
    from rich.console import Console

    from superblock.staging.screen import PROMOTED, Board, Row

    console = Console(width=100, record=True, file=open("/dev/null", "w"))  # noqa: SIM115
    board = Board([Row("mvp1", 1, 5.0), Row("mvp2", 3, 7.0), Row("mvp3", 6, None)], console)
    board.begin("mvp1")
    board.training(120.0)
    assert board.seconds_left() is None  # nobody knows how long mvp3 takes
    board.rows["mvp3"].minutes = 10.0
    assert board.seconds_left() == pytest.approx(120 + 17 * 60, abs=1)
    board.rows["mvp1"].bits_per_byte, board.rows["mvp1"].lineage_flops = 1.331, 2.5e15
    board.end("mvp1", PROMOTED, "mvp1-tiny@promoted version 1")
    board.rows["mvp2"].parent = "mvp1-tiny-s1"
    board.begin("mvp2")
    text = console.export_text()
    for words in ("running", "waiting", "promoted", "1.331", "2.50P", "about 7:00", "from mvp1-tiny-s1", "left in all"):
        assert words in text, words
