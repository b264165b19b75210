"""The probes from the command to the record: every task trains, a finished run is never done again, processes share."""

import json
import threading
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from superblock.benchmarks.probes import runs as probe_runs_module
from superblock.benchmarks.probes import training
from superblock.benchmarks.probes.arms import model_config
from superblock.benchmarks.probes.catalogue import TASKS
from superblock.benchmarks.probes.command import run
from superblock.benchmarks.probes.results import scaled
from superblock.benchmarks.probes.runs import probe_runs
from superblock.benchmarks.probes.task import Examples, Level, Recipe, Task
from superblock.benchmarks.probes.training import STOP_AFTER, Outcome, run_probe
from superblock.cli.app import compose_run
from superblock.config.benchmark import BenchmarkConfig, SuiteConfig
from superblock.config.fields import ConfigError, validate
from superblock.config.probes import ARMS, PROBES, ProbesConfig
from superblock.config.tracking import TrackingConfig
from superblock.models.formulas import count
from superblock.tracking.provenance import Code
from superblock.tracking.runs import read_run
from superblock.tracking.spool import last_values, metric_history


def settings(**probes: Any) -> BenchmarkConfig:
    tracking = TrackingConfig(store="none", system_metrics=False)
    return BenchmarkConfig(
        suite=SuiteConfig("probes"), tracking=tracking, threads=1, quick=True, name="mine", minutes=60,
        probes=ProbesConfig(**({"tasks": ["parity"], "arms": ["attention", "hybrid"], "seeds": [1]} | probes)),
    )  # fmt: skip


def record() -> dict[str, Any]:
    return json.loads(Path("runs/benchmarks/mine/probes.json").read_text())


@pytest.fixture(autouse=True)
def _one_state_of_the_code(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("superblock.tracking.provenance.code_state", lambda: Code("c" * 40, "main"))


@pytest.mark.parametrize("name", PROBES)
def test_every_task_trains_every_arm_that_it_is_about(name: str) -> None:
    task = TASKS[name]().shortened(steps=2, examples=2)
    for arm in task.arms:
        outcome = run_probe(task, arm, 1)
        assert outcome.steps == 2 and 0 <= outcome.score <= 1 and outcome.loss > 0
        assert list(outcome.levels) == [level.name for level in task.levels]
        assert outcome.parameters == count(model_config(task, arm)).total


def test_arms_have_nearly_the_same_number_of_parameters() -> None:
    for make in TASKS.values():
        sizes = [count(model_config(make(), arm)).total for arm in ARMS]
        assert max(sizes) < 1.08 * min(sizes)


def test_only_the_positive_arms_have_no_negative_eigenvalues() -> None:
    switched = {arm: model_config(TASKS["parity"](), arm).gdn.negative_eigenvalues for arm in ARMS}
    assert [arm for arm, on in switched.items() if not on] == ["deltanet-positive", "hybrid-positive"]


def echo(rng: Any, B: int) -> Examples:
    """Asks for the token that is there, which any model learns at once."""
    ids = rng.integers(0, 8, (B, 8))
    return Examples(ids, ids.copy())


def test_a_model_learns_and_stops_once_it_has_learnt() -> None:
    level = Level("length=8", echo, 64, scored=True, trained=True)
    recipe = Recipe(steps=2000, learning_rate=1e-2, seconds=1, weight_decay=0.0)
    task = replace(TASKS["parity"](), batches=(echo,), batch_tokens=256, levels=(level,), recipe=recipe)
    outcome = run_probe(task, "attention", 1)
    assert outcome.score > 0.99 and outcome.steps < 2000
    assert len([accuracy for _, accuracy in outcome.curve if accuracy >= 0.99]) >= STOP_AFTER
    again = run_probe(replace(task, recipe=replace(recipe, steps=20, stop=None)), "attention", 1)
    same = run_probe(replace(task, recipe=replace(recipe, steps=20, stop=None)), "attention", 1)
    other = run_probe(replace(task, recipe=replace(recipe, steps=20, stop=None)), "attention", 2)
    assert again.loss == same.loss != other.loss


def test_a_guess_scores_chance() -> None:
    import numpy as np
    import torch
    from torch import nn

    class Guess(nn.Module):
        def forward(self, ids: torch.Tensor) -> Any:
            logits = torch.rand(*ids.shape, 2, generator=torch.Generator().manual_seed(1))
            return type("Output", (), {"logits_BTV": logits})

    task = TASKS["parity"]()
    for level in task.levels:
        assert training.test(Guess(), level.draw, 128, 1) == pytest.approx(task.chance, abs=0.03)
    assert scaled(0.5, 0.5) == 0 and scaled(1.0, 0.5) == 1 and np.isclose(scaled(0.75, 0.5), 0.5)


def test_what_the_suite_runs() -> None:
    validate(config := replace(settings(), probes=ProbesConfig(), quick=False))
    names = [run.name for run in probe_runs(config)]
    assert len(names) == len(set(names)) == 3 * (3 + 5 + 3)
    assert (
        names[0] == "mqar/attention/s1"
        and "parity/hybrid-positive/s3" in names
        and "mqar/hybrid-positive/s1" not in names
    )
    minutes = sum(run.task.recipe.seconds for run in probe_runs(config)) / 60
    assert minutes <= 60, "two processes must be done within 45 minutes, with a reserve"
    for bad in ({"tasks": []}, {"seeds": [1, 1]}, {"arms": ["attention", "attention"]}, {"tasks": ["sorting"]}):
        with pytest.raises(ConfigError, match=f"probes.{next(iter(bad))}"):
            validate(settings(**bad))


def test_the_record_and_the_runs_beside_it(capsys: pytest.CaptureFixture[str]) -> None:
    assert run(settings(), compose_run) == 0
    saved = record()
    assert saved["schema"] == "superblock.probes/1" and saved["suite"] == "probes" and saved["status"] == "complete"
    assert (
        saved["commit"] == "c" * 40
        and saved["machine"]
        and saved["provenance"]
        and saved["finished"] > saved["started"]
    )
    entry = saved["runs"]["parity/hybrid/s1"]
    assert (entry["task"], entry["arm"], entry["seed"], entry["score_name"]) == ("parity", "hybrid", 1, "accuracy")
    assert entry["chance"] == 0.5 and list(entry["levels"]) == ["length=40", "length=64", "length=128", "length=256"]
    assert (
        entry["steps"] == 3
        and entry["parameters"] > 50_000
        and entry["seconds"] > 0
        and "DeltaNet" in entry["published"]
    )
    cell = saved["results"]["cells"]["parity"]["hybrid"]
    assert cell["mean"] == pytest.approx(entry["score"]) and cell["low"] is None
    folder = Path("runs/benchmarks/mine/runs/parity-hybrid-s1")
    found = read_run(folder)
    assert found is not None and found.status == "FINISHED"
    tags, metrics = last_values(folder, "tags"), metric_history(folder)
    assert (tags["suite"], tags["task"], tags["arm"], tags["seed"]) == ("probes", "parity", "hybrid", "1")
    assert [step for step, _ in metrics["probe/parity/levels"]] == [40, 64, 128, 256]
    assert metrics["probe/parity/score"] == [(0, pytest.approx(entry["score"], abs=1e-6))]
    said = capsys.readouterr().out
    assert (
        "2 of 2 runs to do" in said
        and "parity/hybrid/s1" in said
        and "every run is done" in said
        and "smoke test" in said
    )
    assert Path("runs/benchmarks/mine/probes.svg").exists() and Path("runs/benchmarks/mine/probes.png").exists()


class Counting:
    """Stands in for the training: notes what it was asked for and answers at once."""

    def __init__(self, before: Callable[[Task, str, int], object] = lambda *run: None) -> None:
        self.asked: list[tuple[str, str, int]] = []
        self.before = before
        self.lock = threading.Lock()

    def __call__(self, task: Task, arm: str, seed: int) -> Outcome:
        with self.lock:
            self.asked.append((task.name, arm, seed))
        self.before(task, arm, seed)
        return Outcome(0.75, {level.name: 0.75 for level in task.levels}, 3, 1000, 0.1, [(3, 0.7)], 0.1, 0.1)


def counting(monkeypatch: pytest.MonkeyPatch, **options: Any) -> Counting:
    stand_in = Counting(**options)
    monkeypatch.setattr(training, "run_probe", stand_in)
    return stand_in


def test_what_is_recorded_is_not_done_again(monkeypatch: pytest.MonkeyPatch) -> None:
    first = counting(monkeypatch)
    assert run(settings(), compose_run) == 0 and len(first.asked) == 2
    second = counting(monkeypatch)
    assert run(settings(), compose_run) == 0 and not second.asked
    assert run(settings(tasks=["parity", "mqar"]), compose_run) == 0
    assert second.asked == [("mqar", "attention", 1), ("mqar", "hybrid", 1)] and len(record()["runs"]) == 4
    config = settings()
    config.quick = False
    with pytest.raises(ConfigError, match="other settings"):
        run(config, compose_run)


def test_a_stopped_run_begins_again(monkeypatch: pytest.MonkeyPatch) -> None:
    def stop(task: Task, arm: str, seed: int) -> None:
        if arm == "hybrid":
            raise KeyboardInterrupt

    counting(monkeypatch, before=stop)
    with pytest.raises(KeyboardInterrupt):
        run(settings(), compose_run)
    assert list(record()["runs"]) == ["parity/attention/s1"] and record()["status"] == "partial"
    second = counting(monkeypatch)
    assert run(settings(), compose_run) == 0 and second.asked == [("parity", "hybrid", 1)]


def test_a_failure_is_told_and_the_others_go_on(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def fail(task: Task, arm: str, seed: int) -> None:
        if arm == "attention":
            raise FloatingPointError("the loss of step 3 is nan")

    counting(monkeypatch, before=fail)
    assert run(settings(), compose_run) == 1
    assert (
        list(record()["runs"]) == ["parity/hybrid/s1"]
        and "step 3" in record()["failed"]["parity/attention/s1"]["reason"]
    )
    assert "failed: FloatingPointError" in capsys.readouterr().out
    counting(monkeypatch)
    assert run(settings(), compose_run) == 0 and not record()["failed"]


def test_two_at_once_do_every_run_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(probe_runs_module, "PAUSE", 0.01)
    together = threading.Barrier(2, timeout=30)

    def wait(task: Task, arm: str, seed: int) -> None:
        if (arm, seed) in (("attention", 1), ("hybrid", 1)):
            together.wait()  # each of the two has one of the first two runs

    stand_in = counting(monkeypatch, before=wait)
    statuses: list[int] = []
    config = settings(seeds=[1])
    threads = [threading.Thread(target=lambda: statuses.append(run(config, compose_run))) for _ in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    assert statuses == [0, 0] and sorted(stand_in.asked) == [("parity", "attention", 1), ("parity", "hybrid", 1)]


def test_published_outcomes_are_judged_with_three_seeds(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(training, "run_probe", lambda task, arm, seed: Outcome(
        {"attention": 0.51, "deltanet": 0.999, "deltanet-positive": 0.8}[arm] + 0.0001 * seed,
        {level.name: 0.5 for level in task.levels}, 3, 1000, 0.1, [(3, 0.7)],
    ))  # fmt: skip
    config = settings(arms=["attention", "deltanet", "deltanet-positive"], seeds=[1, 2])
    config.quick = False
    run(config, compose_run)
    assert all(line.startswith(("open", "parity: here")) for line in record()["says"])
    config.probes.seeds = [1, 2, 3]
    run(config, compose_run)
    said = record()["says"][:3]
    assert said[0].startswith("as published: parity: attention fails at lengths beyond training: mean 0.510 [")
    assert said[1].startswith("NOT as published: parity: deltanet-positive fails") and "n = 3" in said[1]
    assert said[2].startswith("as published: parity: deltanet, with negative eigenvalues, solves it there, best seed ")
    assert ": mean 0.999" in said[2]
