"""Small stages trained, measured, promoted and grown for real, in this process, with a real MLflow store."""

import json
import sqlite3
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from superblock.config.growth import StatementConfig
from superblock.config.run import RunConfig
from superblock.staging.pipeline import REFUSED, run_stages
from superblock.tracking.runs import list_runs

Compose = Callable[..., Any]
GATES = ("finite_loss", "no_dead_experts", "growth_exact")
"""Of the stages' own, those that a model of a few steps can pass."""


def pipeline_of(compose: Compose, *names: str) -> list[RunConfig]:
    words = ("tracking=sqlite", "promote=true", "evaluation.samples=0", "trainer.budget=6steps")
    configs = [compose((f"stage={name}", *words)) for name in names]
    for config in configs:
        config.stage.gates = {name: config.stage.gates[name] for name in GATES if name in config.stage.gates}
        config.stage.claims = {name: one for name, one in config.stage.claims.items() if name == "exit_cost"}
    return configs


def decisions() -> dict[str, Any]:
    return {path.parent.name: json.loads(path.read_text()) for path in Path("runs").glob("*/promotion.json")}


@pytest.mark.slow
def test_two_stages_then_nothing_to_do_then_a_gate_that_fails(
    stages: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "empty").mkdir()
    monkeypatch.chdir(tmp_path / "empty")
    said: list[str] = []
    compose = stages.compose

    def pipeline(configs: list[RunConfig]) -> int:
        said.clear()
        return run_stages(configs, compose=compose, say=said.append)

    assert pipeline(pipeline_of(compose, "mvp1", "mvp2")) == 0
    first, second = sorted(list_runs(), key=lambda run: run.started)
    assert (first.stage, second.stage) == ("mvp1", "mvp2")
    assert second.summary["parent"] == first.name and second.summary["growth"]["max_logit_difference"] < 1e-5
    assert {name: one["promoted"] for name, one in decisions().items()} == {first.name: True, second.name: True}
    assert [one["run"] for one in second.summary["lineage"]] == [first.name, second.name]
    with sqlite3.connect("mlflow.db") as store:
        aliases = store.execute(
            "SELECT name, alias, version FROM registered_model_aliases ORDER BY name, alias"
        ).fetchall()
        found = dict(store.execute("SELECT key, value FROM tags WHERE key IN ('pipeline', 'gates', 'promotion')"))
    assert [(name, alias) for name, alias, _ in aliases] == [
        ("mvp1-mini", "promoted"), ("mvp1-mini", "promoted-s1"), ("mvp2-mini", "promoted"), ("mvp2-mini", "promoted-s1"),
    ]  # fmt: skip
    assert found["gates"] == "passed" and found["promotion"] == "promoted" and found["pipeline"].startswith("mini-s1-")
    assert "promoted" in capsys.readouterr().out

    assert pipeline(pipeline_of(compose, "mvp1", "mvp2")) == 0
    assert "nothing to do" in said[-1] and len(list_runs()) == 2

    again = replace(pipeline_of(compose, "mvp2")[0], resume=second.name)
    again.stage.gates["distinct_4grams"] = StatementConfig("a sampler that is stuck repeats itself", limit=99.0)
    assert pipeline([again]) == REFUSED  # measured on the finished run, without training
    assert "mvp2 is not promoted" in said[-1] and "distinct_4grams" in said[-1] and "repeats itself" in said[-1]
    assert decisions()[second.name]["promoted"] is False and len(list_runs()) == 2
    with sqlite3.connect("mlflow.db") as store:
        models = {name for (name,) in store.execute("SELECT name FROM registered_model_aliases")}
    assert models == {"mvp1-mini"}
