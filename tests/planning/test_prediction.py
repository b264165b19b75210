"""Predictions from run folders: what is chosen, what is said, and the committed record of four real stages."""

import json
import time
from collections.abc import Callable
from copy import deepcopy
from pathlib import Path
from typing import Any

import pytest

from superblock.planning import finished as past
from superblock.planning.prediction import QUANTITIES, Prediction, afterwards, predict, target
from superblock.tracking.identity import compared_settings
from superblock.tracking.runs import RunRecord, list_runs, read_run

Compose = Callable[..., Any]
Finish = Callable[..., Path]
COMPOSED: dict[tuple[str, ...], Any] = {}


def recorded(config: Any, **changes: Any) -> dict[str, Any]:
    """The summary of a run of this configuration that did as expected."""
    at = target(config, None)
    steps = changes.pop("steps", 400)
    tokens = steps * at.tokens_per_step
    return {
        "stage": at.stage, "scale": at.scale, "steps": steps, "tokens": tokens, "minutes": steps * at.flops_per_token * 1e-10,
        "parameters_total": at.total, "parameters_active": at.active, "flops": tokens * at.flops_per_token,
        "peak_memory_bytes": 900_000_000 + int(30 * at.total), "data_digest": "d1",
        "splits": {"test": {"perplexity": 20.0, "bits_per_byte": 1.8}}, **changes,
    }  # fmt: skip


def here(config: Any) -> dict[str, str]:
    """The compared settings, and the threads, as a run of this configuration records them."""
    return compared_settings(config) | {"threads": past.this_machine(config.trainer.threads)["threads"]}


def this_hardware() -> dict[str, Any]:
    known = {key: value for key, value in past.this_machine(None).items() if key != "threads"}
    return {"gpus": [], **known}


@pytest.fixture
def stage(compose: Compose) -> Callable[..., Any]:
    """The configuration of a stage at scale mini; composing takes Hydra half a second, so each is kept."""

    def make(name: str, *words: str) -> Any:
        if (name, *words) not in COMPOSED:
            budget = ["trainer.budget=400steps"] if name == "mvp1" else []  # as long as `recorded` says it took
            COMPOSED[name, *words] = compose("run", f"stage={name}", "scale=mini", *budget, *words)
        return deepcopy(COMPOSED[name, *words])

    return make


@pytest.fixture
def done(finish: Finish) -> Callable[..., RunRecord]:
    """Finishes a run of a configuration and returns its record."""

    def write(name: str, config: Any, *, settings: dict[str, str] | None = None, **changes: Any) -> RunRecord:
        options = {key: changes.pop(key) for key in ("began", "took", "machine", "curve", "starts") if key in changes}
        options.setdefault("machine", this_hardware())
        folder = finish(name, recorded(config, **changes), settings=here(config) | (settings or {}), **options)
        record = read_run(folder)
        assert record is not None
        return record

    return write


def test_nothing_fits_without_a_finished_run(stage: Callable[..., Any], done: Callable[..., RunRecord]) -> None:
    config = stage("mvp2")
    assert predict(config, [], parent=None) == "no finished and tested run on this text at scale=mini"
    run = done("first", stage("mvp1"))
    (run.folder / "status.json").write_text('{"status": "FAILED", "time": 1}')
    assert isinstance(predict(config, list_runs(), parent=None), str)


def test_a_prediction_of_the_next_stage(stage: Callable[..., Any], done: Callable[..., RunRecord]) -> None:
    done("first", stage("mvp1"), minutes_in_all=6.0)
    config = stage("mvp2")
    found = predict(config, list_runs(), parent=None)
    assert isinstance(found, Prediction)
    assert found.steps.value == found.steps.low == found.steps.high == 300  # the stage's budget at mini
    assert found.tokens.value == 300 * 16 * 128
    assert found.flops.value == pytest.approx(found.tokens.value * target(config, None).flops_per_token)
    assert found.lineage_flops == found.flops
    for name in QUANTITIES:
        estimate = getattr(found, name)
        assert estimate.low <= estimate.value <= estimate.high
    assert found.minutes.low < found.minutes.value < found.minutes_in_all.value
    assert found.confidence == 0.8 and found.runs == ("first",)
    assert "80% intervals from one finished configuration (1 superblocks)" in found.words


def test_json_round_trip(stage: Callable[..., Any], done: Callable[..., RunRecord]) -> None:
    done("first", stage("mvp1"))
    found = predict(stage("mvp2"), list_runs(), parent=None)
    assert isinstance(found, Prediction)
    plain = json.loads(json.dumps(found.to_dict()))
    assert Prediction.from_dict(plain) == found
    assert set(plain) == {*QUANTITIES, "confidence", "runs", "words"}
    assert set(plain["minutes"]) == {"value", "low", "high"}


def test_a_budget_in_minutes_becomes_steps(stage: Callable[..., Any], done: Callable[..., RunRecord]) -> None:
    first = done("first", stage("mvp1", "trainer.budget=4minutes"), minutes=3.8)
    per_step = first.summary["minutes"] / first.summary["steps"]
    few, many = (
        predict(stage("mvp1", f"trainer.budget={minutes}minutes"), list_runs(), parent=None) for minutes in (2, 20)
    )
    assert isinstance(few, Prediction) and isinstance(many, Prediction)
    assert 1.6 < few.minutes.value < 2.3
    assert few.steps.value == pytest.approx(few.minutes.value / per_step, rel=0.1)
    assert many.steps.value == pytest.approx(10 * few.steps.value, rel=0.02)
    assert many.bits_per_byte.value < few.bits_per_byte.value


def test_a_grown_run_carries_its_lineage(stage: Callable[..., Any], done: Callable[..., RunRecord]) -> None:
    parent = done("first", stage("mvp1"))
    config = stage("mvp2", "parent=first")
    grown, scratch = (predict(config, list_runs(), parent=each) for each in (parent, None))
    assert isinstance(grown, Prediction) and isinstance(scratch, Prediction)
    assert grown.lineage_flops.value == pytest.approx(grown.flops.value + parent.summary["flops"])
    assert grown.bits_per_byte.value < scratch.bits_per_byte.value
    control = predict(stage("mvp2", "parent=first", "growth.method=none"), list_runs(), parent=parent)
    assert isinstance(control, Prediction) and control.lineage_flops == control.flops
    lineage = [{"superblocks": s, "tokens": 1e6, "flops": 1e13} for s in (1, 3)]
    second = done("second", config, lineage=lineage)
    third = predict(stage("mvp3", "parent=second"), list_runs(), parent=second)
    assert isinstance(third, Prediction)
    assert third.lineage_flops.value == pytest.approx(third.flops.value + 2e13)


def test_time_is_taken_from_this_machine_and_quality_from_anywhere(
    stage: Callable[..., Any], done: Callable[..., RunRecord]
) -> None:
    done("away", stage("mvp1"), machine={"cpu": "another", "cores": 64, "memory_gib": 512, "gpus": []}, minutes=0.01)
    alone = predict(stage("mvp1"), list_runs(), parent=None)
    assert isinstance(alone, Prediction) and "times are from another" in alone.words
    assert alone.minutes.high > 3 * alone.minutes.low
    near = done("near", stage("mvp1"))
    both = predict(stage("mvp1"), list_runs(), parent=None)
    assert isinstance(both, Prediction) and set(both.runs) == {"away", "near"}
    assert "another" not in both.words
    assert both.minutes.value == pytest.approx(near.summary["minutes"], rel=0.05)


def test_other_threads_are_another_machine(stage: Callable[..., Any], done: Callable[..., RunRecord]) -> None:
    done("first", stage("mvp1", "trainer.threads=1"), settings={"threads": "1"})
    found = predict(stage("mvp2", "trainer.threads=3"), list_runs(), parent=None)
    assert isinstance(found, Prediction) and "another" in found.words
    same = predict(stage("mvp2", "trainer.threads=1"), list_runs(), parent=None)
    assert isinstance(same, Prediction) and "another" not in same.words


def test_other_text_and_other_recipes(stage: Callable[..., Any], done: Callable[..., RunRecord]) -> None:
    done("plain", stage("mvp1"))
    muon = stage("mvp1", "optim=muon")
    done("muon", muon, splits={"test": {"perplexity": 9.0, "bits_per_byte": 1.1}})
    found, of_muon = (predict(config, list_runs(), parent=None) for config in (stage("mvp1"), muon))
    assert isinstance(found, Prediction) and isinstance(of_muon, Prediction)
    assert found.bits_per_byte.contains(1.8) and not found.bits_per_byte.contains(1.1)
    assert of_muon.bits_per_byte.contains(1.1)
    odd = predict(stage("mvp1", "optim.learning_rate=0.5"), list_runs(), parent=None)
    assert isinstance(odd, Prediction) and "other settings (optim.name, optim.learning_rate)" in odd.words
    assert odd.bits_per_byte == of_muon.bits_per_byte  # the newest recipe's, not a mean of two
    other = stage("mvp1", "data=text", "data.path=/somewhere")
    assert isinstance(predict(other, list_runs(), parent=None), str)


def test_the_newest_text_counts_where_a_corpus_has_changed(
    stage: Callable[..., Any], done: Callable[..., RunRecord]
) -> None:
    done("old", stage("mvp1"), data_digest="d0", splits={"test": {"perplexity": 9.0, "bits_per_byte": 3.0}})
    done("new", stage("mvp1"), began=100.0)
    found = predict(stage("mvp1"), list_runs(), parent=None)
    assert isinstance(found, Prediction) and found.bits_per_byte.contains(1.8)


def test_seeds_of_one_configuration_are_one_point(stage: Callable[..., Any], done: Callable[..., RunRecord]) -> None:
    """Five seeds say how seeds scatter, not how the law is off: the interval must not shrink to theirs."""
    done("s0", stage("mvp1"))
    one = predict(stage("mvp2"), list_runs(), parent=None)
    for i in range(1, 5):
        done(f"s{i}", stage("mvp1", f"seed={i + 1}"))
    five = predict(stage("mvp2"), list_runs(), parent=None)
    assert isinstance(one, Prediction) and isinstance(five, Prediction)
    assert five.bits_per_byte.high - five.bits_per_byte.low == pytest.approx(
        one.bits_per_byte.high - one.bits_per_byte.low
    )


def test_curves_and_resumed_runs_are_read_with_care(stage: Callable[..., Any], done: Callable[..., RunRecord]) -> None:
    splits = {name: {"perplexity": 20.0, "bits_per_byte": 1.8} for name in ("validation", "test")}
    curve = {step: 1.8 * (step / 400) ** -0.2 for step in (10, 80, 160, 240, 320, 395)}
    run = done("first", stage("mvp1"), splits=splits, curve=curve, starts=2, minutes_in_all=0.5)
    [read] = past.read_finished([run])
    assert [round(share, 2) for share, *_ in read.curve] == [0.2, 0.4, 0.6, 0.8]  # neither the warm-up nor the end
    assert read.curve[0][1] == pytest.approx(0.2**-0.2)
    assert read.curve[0][2] == 1 and read.curve[-1][2] < 0.5  # the learning rate has decayed since
    assert read.minutes_in_all is None  # of the last start alone
    assert isinstance(predict(stage("mvp2"), list_runs(), parent=None), Prediction)


def test_a_torn_spool_and_a_missing_one_are_no_error(stage: Callable[..., Any], done: Callable[..., RunRecord]) -> None:
    run = done("first", stage("mvp1"))
    with open(run.folder / "spool.jsonl", "a") as file:
        file.write('{"kind":"metrics","time":3,"step":9,"values":{"val/bits_per_byte":')
    assert isinstance(predict(stage("mvp2"), [run], parent=None), Prediction)
    (run.folder / "spool.jsonl").unlink()
    assert isinstance(predict(stage("mvp2"), [run], parent=None), Prediction)


def test_a_family_of_your_own_is_not_predicted(stage: Callable[..., Any], done: Callable[..., RunRecord]) -> None:
    done("first", stage("mvp1"))
    config = stage("mvp1")
    config.model.family = "gru"
    assert "family of your own" in str(predict(config, list_runs(), parent=None))


def test_the_four_recorded_stages(four_stages: list[str]) -> None:
    """Each stage from those before it, as it would have been predicted: what came lies inside, but for one in five or so."""
    runs = past.read_finished(list_runs())
    assert [run.name for run in runs] == four_stages
    assert afterwards(runs[0], runs) is None
    inside, widths = [], []
    for run in runs[1:]:
        found = afterwards(run, runs)
        assert found is not None and run.loss is not None and run.memory_bytes is not None
        inside += [
            found.bits_per_byte.contains(run.loss),
            found.minutes.contains(run.minutes),
            found.memory_bytes.contains(run.memory_bytes),
        ]
        widths.append((found.bits_per_byte.high - found.bits_per_byte.low) / run.loss)
        assert found.memory_bytes.value == pytest.approx(run.memory_bytes, rel=0.1)
    assert sum(inside) >= 7
    assert widths[0] == max(widths) and widths[0] < 0.25


def test_a_hundred_runs_take_less_than_a_second(stage: Callable[..., Any], done: Callable[..., RunRecord]) -> None:
    for name in ("mvp1", "mvp2", "mvp3", "mvp4"):
        config = stage(name)
        for i in range(25):
            done(f"{name}-{i}", config, settings={"trainer.budget": f"{500 + i} steps"}, steps=500 + i)
    records = list_runs()
    assert len(records) == 100
    config = stage("mvp4")
    predict(config, records[:2], parent=None)
    start = time.process_time()
    assert isinstance(predict(config, records, parent=None), Prediction)
    assert time.process_time() - start < 1.0
