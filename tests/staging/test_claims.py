"""Claims: held, not held or undecided by their intervals, from runs whose truth is known."""

import json
import math
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from superblock.config.growth import StatementConfig
from superblock.evaluation.statistics import Interval
from superblock.models.truncation import truncate
from superblock.staging import claims
from superblock.tracking.spool import Spool

MakeEvidence = Callable[..., Any]
PLAIN = StatementConfig(because="why")
FIFTH = StatementConfig(because="why", limit=0.2)
PERCENT = StatementConfig(because="why", limit=0.01)


def copy_run(
    name: str, *, seed: int, bits: float, grown: bool, flops: float = 1.0, settings: dict[str, str] | None = None
) -> None:
    """A copy of the run `second` under another name, seed and result; its lineage's cost is a multiple of the first's."""
    folder = Path("runs") / name
    shutil.copytree("runs/second", folder, ignore=shutil.ignore_patterns("checkpoints"))
    identity = json.loads((folder / "run.json").read_text())
    (folder / "run.json").write_text(json.dumps(identity | {"uid": name, "seed": seed, "name": name}))
    summary = json.loads((folder / "summary.json").read_text())
    summary |= {"name": name, "seed": seed}
    summary["splits"]["test"]["bits_per_byte"] = bits
    total = summary["lineage_flops"]
    if grown:
        for one in summary["lineage"]:
            one |= {"flops": one["flops"] * flops, "seed": seed}
        summary["lineage_flops"] *= flops
    else:
        [*_, last] = summary["lineage"]
        summary |= {"parent": None, "growth": None, "lineage": [last | {"flops": total * flops, "seed": seed}]}
        summary["lineage_flops"] = total * flops
    (folder / "summary.json").write_text(json.dumps(summary))
    if settings:
        spool = Spool(folder)
        spool.append("params", {"values": settings})
        spool.close()


# -- growing against training from scratch ----------------------------------------------------------------------------


def pair(seed: int, gain: float, **scratch: Any) -> None:
    copy_run(f"grown-{seed}", seed=seed, bits=3.0 + 0.1 * seed - gain, grown=True)
    copy_run(f"scratch-{seed}", seed=seed, bits=3.0 + 0.1 * seed, grown=False, **scratch)


@pytest.mark.parametrize(
    ("gains", "verdict"), [((0.10, 0.11, 0.12), True), ((-0.10, -0.11, -0.12), False), ((0.1, -0.1, 0.05), None)]
)
def test_pairs_of_seeds_decide(evidence: MakeEvidence, gains: tuple[float, ...], verdict: bool | None) -> None:
    """Seeds differ far more from one another than the two arms do: only pairing can see it."""
    for seed, gain in enumerate(gains, 11):
        pair(seed, gain)
    found = claims.beats_scratch(evidence("second"), PLAIN)
    assert found.holds is verdict
    assert found.value == pytest.approx(-sum(gains) / 3)
    assert "seeds 11, 12, 13" in found.measured and found.low is not None and found.high is not None
    assert found.low < found.value < found.high


def test_two_pairs_are_too_few_and_it_says_what_to_run(evidence: MakeEvidence) -> None:
    pair(11, 0.1)
    pair(12, 0.1)
    found = claims.beats_scratch(evidence("second"), PLAIN)
    assert found.holds is None and found.value is None
    assert "2 of 3 pairs" in found.measured and "seeds 11, 12" in found.measured
    assert "scale=mini stage=mvp2 seed=1 parent=none" in found.measured  # this run's own seed lacks its rival
    summary = evidence("second").summary
    steps = round(12 * summary["lineage_flops"] / summary["flops"])
    assert 12 < steps < 24 and f"trainer.budget={steps}steps" in found.measured


def test_runs_that_do_not_compare_are_no_pairs(evidence: MakeEvidence) -> None:
    pair(11, 0.1)
    pair(12, 0.1)
    pair(13, 0.1, flops=1.02)
    assert claims.beats_scratch(evidence("second"), PLAIN).holds
    shutil.rmtree("runs/scratch-13")
    copy_run("scratch-13", seed=13, bits=3, grown=False, flops=1.05)
    assert claims.beats_scratch(evidence("second"), PLAIN).holds is None
    shutil.rmtree("runs/scratch-13")
    copy_run("scratch-13", seed=13, bits=3, grown=False, settings={"optim.learning_rate": "0.5"})
    assert claims.beats_scratch(evidence("second"), PLAIN).holds is None
    shutil.rmtree("runs/scratch-13")
    copy_run("scratch-14", seed=14, bits=3, grown=False)
    assert claims.beats_scratch(evidence("second"), PLAIN).holds is None


def test_runs_of_one_ancestor_are_not_independent(evidence: MakeEvidence) -> None:
    for seed in (11, 12, 13):
        pair(seed, 0.1)
    path = Path("runs/grown-13/summary.json")
    summary = json.loads(path.read_text())
    summary["lineage"][0]["seed"] = 11
    path.write_text(json.dumps(summary))
    found = claims.beats_scratch(evidence("second"), PLAIN)
    assert found.holds is None and "2 of 3 pairs" in found.measured


def test_runs_grown_with_other_settings_are_no_pairs(evidence: MakeEvidence) -> None:
    for seed in (11, 12):
        pair(seed, 0.1)
    copy_run("grown-13", seed=13, bits=3.0, grown=True, settings={"growth.learning_rate": "0.25"})
    copy_run("scratch-13", seed=13, bits=3.1, grown=False)
    assert "2 of 3 pairs" in claims.beats_scratch(evidence("second"), PLAIN).measured


def test_where_every_lineage_has_its_rival_another_lineage_is_asked_for(evidence: MakeEvidence) -> None:
    copy_run("scratch-1", seed=1, bits=3.0, grown=False)
    found = claims.beats_scratch(evidence("second"), PLAIN)
    assert "1 of 3 pairs" in found.measured and "scale=mini stage=all seed=2" in found.measured


def test_a_run_from_scratch_cannot_beat_itself(evidence: MakeEvidence) -> None:
    found = claims.beats_scratch(evidence("first"), PLAIN)
    assert found.holds is None and "from scratch" in found.measured


# -- cost -------------------------------------------------------------------------------------------------------------


def predicted(evidence: Any, *, minutes: float | None, memory: float | None, rates: list[float]) -> Any:
    """Measured are 120 steps in 2 minutes, and 1 GiB."""
    estimates = {"minutes": minutes, "steps": None if minutes is None else 120.0, "memory_bytes": memory}
    prediction = {k: None if v is None else {"value": v, "low": v / 2, "high": v * 2} for k, v in estimates.items()}
    evidence.summary.update(minutes=2.0, steps=120, peak_memory_bytes=2**30, prediction=prediction)
    evidence.history["throughput/tokens_per_second"] = list(enumerate(rates))
    return claims.cost_predicted(evidence, FIFTH)


STEADY = [1000.0, 1010.0, 990.0, 1005.0] * 6
UNSTEADY = [1000.0] * 8 + [400.0] * 8 + [1700.0] * 8


@pytest.mark.parametrize(
    ("minutes", "memory", "rates", "verdict"),
    [
        (1.9, 2**30, STEADY, True),
        (2.3, 1.1 * 2**30, STEADY, True),
        (1.5, 2**30, STEADY, False),  # a third slower
        (3.0, 2**30, STEADY, False),  # a third faster is as wrong
        (2.0, 0.7 * 2**30, STEADY, False),  # memory alone
        (2.0, 2**30, UNSTEADY, None),
        (2.0, 2**30, STEADY[:5], None),  # too short for an interval
        (2.0, None, STEADY, True),
        (None, 2**30, STEADY, True),
    ],
)
def test_time_and_memory_against_the_prediction(
    evidence: MakeEvidence, minutes: float | None, memory: float | None, rates: list[float], verdict: bool | None
) -> None:
    found = predicted(evidence("first"), minutes=minutes, memory=memory, rates=rates)
    assert found.holds is verdict, found.measured


def test_the_interval_is_that_of_the_time(evidence: MakeEvidence) -> None:
    found = predicted(evidence("first"), minutes=1.9, memory=2**30, rates=[900.0] * 8 + [1100.0] * 8)
    assert found.value == pytest.approx(2 / 1.9 - 1)
    assert found.low < found.value < found.high
    assert "1,000 ms per step against 950 predicted" in found.measured and "time is furthest off" in found.measured


def test_a_slow_stretch_counts_once(evidence: MakeEvidence) -> None:
    """Neighbouring windows are slow together: taken one by one they would seem to say more than they do."""
    slow = predicted(evidence("first"), minutes=2.0, memory=None, rates=[1000.0] * 12 + [500.0] * 4)
    mixed = predicted(evidence("first"), minutes=2.0, memory=None, rates=[1000.0, 1000.0, 1000.0, 500.0] * 4)
    assert slow.high - slow.low > 3 * (mixed.high - mixed.low)


def test_without_a_prediction_nothing_is_decided(evidence: MakeEvidence) -> None:
    found = claims.cost_predicted(evidence("first"), FIFTH)
    assert found.holds is None and "nothing was predicted" in found.measured


def test_unbounded_is_never_within() -> None:
    assert claims._all_within([Interval(0.0, -math.inf, math.inf, 1)], 0.2) is None
    assert claims._all_within([Interval(0.2, 0.2, 0.2, 1), Interval(0, -0.2, 0.1, 3)], 0.2) is True


# -- exits ------------------------------------------------------------------------------------------------------------


def test_the_exit_costs_what_both_models_say(evidence: MakeEvidence) -> None:
    made = evidence("second")
    found = claims.exit_cost(made, PERCENT)
    ends = truncate(made.model, 1)
    sums = {}
    parent = claims.load_checkpoint(made.parent.checkpoint).model
    for name, model in (("exit", ends), ("parent", parent)):
        sums[name] = 0.0
        for batch in claims.evaluation_loader(made.corpus.test, sequence_length=32, batch_size=7, limit=128):
            with torch.no_grad():
                sums[name] += float(model(batch.input_ids_BT, batch.pack, batch.labels_BT).losses["next_token"].total)
    assert found.value == pytest.approx(sums["exit"] / sums["parent"] - 1, rel=1e-3)
    assert found.low is not None and found.high is not None and found.low < found.value < found.high
    assert found.holds is (found.high <= 0.01) and "128 sequences" in found.measured
    assert found == claims.exit_cost(evidence("second"), PERCENT)


@pytest.mark.parametrize(("worse", "verdict"), [(1.0, True), (1.3, False)])
def test_the_interval_decides(
    evidence: MakeEvidence, monkeypatch: pytest.MonkeyPatch, worse: float, verdict: bool
) -> None:
    made = evidence("second")
    own = claims._scores(made, claims.load_checkpoint(made.parent.checkpoint).model, 1)
    answers = iter([replace(own, nll_NE=own.nll_NE * worse), own])
    monkeypatch.setattr(claims, "_scores", lambda *_: next(answers))
    assert claims.exit_cost(made, PERCENT).holds is verdict


def test_an_exit_needs_a_parent(evidence: MakeEvidence) -> None:
    found = claims.exit_cost(evidence("first"), PERCENT)
    assert found.holds is None and "from scratch" in found.measured
