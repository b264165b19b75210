"""suite=exits: cost and gaps are told apart, and nothing follows that is not shown."""

import sys
from pathlib import Path
from random import Random

import pytest

sys.path.insert(0, str(Path(__file__).parent))

from experiments import Training, entry, record_of, remembering, saved

from superblock.benchmarks.ablation.record import Record
from superblock.benchmarks.exits import command
from superblock.benchmarks.exits.results import conclude, cost_verdict, panels
from superblock.benchmarks.exits.runs import ARMS, FIRST, OFF, exits_runs
from superblock.cli.app import compose_run
from superblock.config.benchmark import BenchmarkConfig, ExitsExperimentConfig, SuiteConfig
from superblock.config.fields import ConfigError, validate
from superblock.config.tracking import TrackingConfig

COMPOSE = remembering(compose_run)


def settings(*depths: int) -> BenchmarkConfig:
    config = BenchmarkConfig(
        suite=SuiteConfig("exits"), tracking=TrackingConfig(store="none", system_metrics=False), threads=1, minutes=60
    )
    config.scale = COMPOSE(["scale=mini", "trainer.budget=1steps"]).scale
    config.exits = ExitsExperimentConfig(superblocks=list(depths))
    return config


def numbers(cost: dict[str, float], gap: dict[str, float], noise: float = 0.0005) -> Record:
    """Arms of 3 superblocks with so much cost and so wide a gap of exit 1, as shares."""
    random = Random(0)
    found = []
    for seed in (1, 2, 3):
        base = 1.7 + random.gauss(0, 0.05)
        found.append(entry("alone", "1", seed, base + 0.1))
        for arm in ARMS:
            full = base * (1 + cost.get(arm, 0.0) + random.gauss(0, noise) * (arm != OFF))
            early = (base + 0.1) * (1 + gap.get(arm, 0.1) + random.gauss(0, noise))
            found.append(entry("3", arm, seed, full, exits={"1": early, "2": early, "3": full}))
    return record_of("exits", found)


def test_arms_change_what_they_say(tmp_path: Path) -> None:
    runs = exits_runs(settings(3), COMPOSE, ["scale=mini"])
    assert len(runs) == 3 * (len(ARMS) + 1) and not any(run.needs for run in runs)
    arms = {run.arm: COMPOSE(run.command_line("x", ["scale=mini"], {})).model for run in runs if run.seed == 1}
    assert arms["1"].num_superblocks == 1 and arms[OFF].exit_turns() == []
    assert arms["stages-0.1"].exit_turns() == [(0,)] and arms["all-0.1"].exit_turns() == [(0, 1)]
    assert arms["rotate-1"].mtp.exit_weight == 1.0 and arms["stages-0.3-equal-from-0"].mtp.exit_start == 0
    cost = {run.arm: run.flops for run in runs if run.seed == 1}
    assert cost[OFF] < cost[FIRST] < cost["all-0.1"] and cost["stages-0.3-equal-all-tokens"] > 1.2 * cost[OFF]


def test_six_superblocks_bring_their_own_models_of_three() -> None:
    kinds = {(run.group, run.arm) for run in exits_runs(settings(6), COMPOSE, ["scale=mini"])}
    assert ("3", OFF) in kinds and ("3", FIRST) not in kinds and ("6", FIRST) in kinds and ("alone", "1") in kinds


@pytest.mark.parametrize("depths", [[], [4], [3, 3], [12]])
def test_other_depths_are_refused(depths: list[int]) -> None:
    with pytest.raises(ConfigError, match="exits.superblocks"):
        validate(settings(*depths))


def test_the_cheapest_arm_that_closes_the_gap_follows() -> None:
    record = numbers({"rotate-1": 0.03, "all-0.3-equal": 0.004}, {FIRST: 0.1, "rotate-1": 0.01, "all-0.3-equal": 0.04})
    conclude(record)
    text = "\n".join(record.says)
    assert "less than 1%, not held: rotate-1" in text
    assert "3 superblocks: all-0.3-equal: gaps beside rotate-0.1's -5.98 [-6.04, -5.92] points" in text
    assert record.says[-1] == "default at 3 superblocks: all-0.3-equal follows"
    found = record.results["3"]["arms"]["all-0.3-equal"]
    assert found["cost"]["mean"] == pytest.approx(0.004, abs=0.001) and found["gaps"]["1"]["mean"] == pytest.approx(
        0.04, abs=0.001
    )
    titles = [panel.title for panel in panels(record)]
    assert titles == ["3 superblocks: cost", "exit 1 of 3: gap"]


def test_narrower_gaps_whose_cost_is_unclear_do_not_follow() -> None:
    record = numbers({"rotate-1": 0.003}, {FIRST: 0.1, "rotate-1": 0.01}, noise=0.003)
    conclude(record)
    assert "rotate-1" in next(line for line in record.says if "less than 1%, undecided" in line)
    assert record.says[-1].startswith("default at 3 superblocks: undecided, for no arm")


def test_noise_shows_nothing() -> None:
    record = numbers({}, {}, noise=0.02)
    conclude(record)
    assert "no arm is shown to be better than rotate-0.1" in record.says[-1]


@pytest.mark.parametrize(
    ("low", "high", "n", "verdict"),
    [
        (-0.002, 0.009, 3, "held"),
        (0.01, 0.02, 3, "not held"),
        (0.0, 0.02, 3, "undecided"),
        (0.0, 0.001, 1, "undecided"),
    ],
)
def test_cost_verdict(low: float, high: float, n: int, verdict: str) -> None:
    assert cost_verdict({"mean": (low + high) / 2, "low": low, "high": high, "n": n}) == verdict


def test_the_whole_command_with_a_training_that_takes_no_time(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("superblock.benchmarks.ablation.experiment._matmul_limit", lambda threads: 1e9)
    training = Training(lambda config: 2 - 0.1 * config.seed + 0.01 * config.model.mtp.exit_weight)
    monkeypatch.setattr("superblock.benchmarks.ablation.experiment._train", lambda: training)
    config = settings(3)
    config.name, config.exits.seeds = "mine", [1, 2]
    assert command.run(config, COMPOSE) == 0
    assert len(training.asked) == 22 and {config.parent for config in training.asked} == {"none"}
    out = capsys.readouterr().out
    assert "cost, % [95 %]" in out and "gap of exit 1, %" in out and "record: runs/benchmarks/mine/exits.json" in out
    assert saved(tmp_path / "runs/benchmarks/mine", "exits").status == "complete"
    assert (tmp_path / "runs/benchmarks/mine/exits.svg").exists()
