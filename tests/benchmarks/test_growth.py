"""suite=growth: equal FLOPs, pairs of seeds, and no winner that the numbers do not show."""

import sys
import sysconfig
from collections.abc import Sequence
from pathlib import Path
from random import Random

import pytest

sys.path.insert(0, str(Path(__file__).parent))

from experiments import Training, entry, record_of, remembering, saved

from superblock.benchmarks.ablation.experiment import Experiment, carry_out
from superblock.benchmarks.ablation.plan import common_words, step_flops
from superblock.benchmarks.ablation.record import Record
from superblock.benchmarks.growth import command
from superblock.benchmarks.growth.results import conclude, panels, tables
from superblock.benchmarks.growth.runs import GROWN, TRANSITIONS, growth_runs, methods_of
from superblock.cli.app import compose_run
from superblock.config.benchmark import BenchmarkConfig, GrowthExperimentConfig, SuiteConfig
from superblock.config.run import RunConfig
from superblock.config.tracking import TrackingConfig

COMPOSE = remembering(compose_run)
SMALL_SCALE = {
    "d_model": 32, "vocab_size": 512, "sequence_length": 32, "batch_size": 4, "key_heads": 1, "value_heads": 2,
    "delta_head_dim": 16, "attention_head_dim": 16, "experts": 4, "d_expert": 16, "mtp_hidden": 16, "mtp_block": 32,
}  # fmt: skip


def settings(**changes: object) -> BenchmarkConfig:
    config = BenchmarkConfig(
        suite=SuiteConfig("growth"), tracking=TrackingConfig(store="none", system_metrics=False), threads=1, minutes=60
    )
    config.scale = COMPOSE(["scale=mini", "trainer.budget=1steps"]).scale
    for key, value in changes.items():
        setattr(config, key, value)
    return config


def numbers(
    difference: dict[str, float], noise: float = 0.002, seeds: Sequence[int] = (1, 2, 3, 4, 5), draw: int = 0
) -> Record:
    """A record in which each method differs from scratch by so much, and seeds differ by more than that."""
    random = Random(draw)
    found = []
    for seed in seeds:
        base = 1.8 + random.gauss(0, 0.05)
        found.append(entry("1", "scratch", seed, base + 0.1))
        for group in TRANSITIONS:
            found.append(entry(group, "scratch", seed, base))
            for method in methods_of(group):
                value = base + difference[method] + random.gauss(0, noise)
                found.append(entry(group, method, seed, value, overrides=[f"growth.method={method}"]))
    return record_of("growth", found)


def test_every_chain_costs_the_same(tmp_path: Path) -> None:
    config = settings()
    common = common_words(config, COMPOSE)
    runs = growth_runs(config, COMPOSE, common)
    known = {run.name: run for run in runs}
    assert len(known) == len(runs) == 5 * 8 + 6
    for seed in config.growth.seeds:
        for group in TRANSITIONS:
            control = known[f"{group}/scratch/s{seed}"]
            tolerance = 0.5 * step_flops(COMPOSE, common, control.superblocks)
            for method in methods_of(group):
                grown = known[f"{group}/{method}/s{seed}"]
                assert grown.parent is not None
                parent = known[grown.parent]
                assert parent.parent is None and parent.seed == seed and parent.superblocks < grown.superblocks
                assert abs(grown.flops + parent.flops - control.flops) <= tolerance
    names = list(known)
    assert all(names.index(need) < names.index(run.name) for run in runs for need in run.needs)


def test_extra_arms_take_the_best_method() -> None:
    config = settings(growth=GrowthExperimentConfig(seeds=[1, 2], extra_seeds=[1]))
    runs = {run.name: run for run in growth_runs(config, COMPOSE, ["scale=mini"])}
    entries = {
        f"1-3/{method}/s{seed}": entry("1-3", method, seed, value)
        for method, value in (("identity", 1.5), ("stack", 1.4))
        for seed in (1, 2)
    } | {"1/scratch/s1": entry("1", "scratch", 1, 1.9)}
    lower = runs["1-3/lower-rate/s1"]
    assert set(lower.needs) == set(entries) and "1-3/lower-rate/s2" not in runs
    words = lower.command_line("x", ["scale=mini"], entries)
    assert {"growth.method=stack", "growth.learning_rate=0.5", "parent=run-1-scratch-1"} <= set(words)
    trained = COMPOSE(words)
    assert trained.growth.learning_rate == 0.5 and trained.growth.optimizer and trained.growth.method == "stack"
    assert "growth.optimizer=false" in runs["1-3/fresh-optimizer/s1"].words


def test_a_clear_winner_is_named() -> None:
    record = numbers({"identity": -0.01, "stack": -0.05, "interpolate": 0.03})
    conclude(record)
    text = "\n".join(record.says)
    assert "1 -> 3: stack better than from scratch at equal FLOPs: -0.0" in text
    assert "3 -> 6: interpolate worse than from scratch" in text and "Holm over these 5 comparisons" in text
    assert (
        "stack better than identity: identity - stack" in text
        and record.says[-1] == "default: growth.method=stack follows"
    )
    one = record.results["transitions"]["1-3"]["stack"]["to_scratch"]
    assert one["n"] == 5 and one["low"] < one["mean"] < one["high"] < 0 and one["p"] <= one["p_holm"]
    assert one["mean"] == pytest.approx(-0.05, abs=0.005)


def test_what_is_undecided_is_called_so() -> None:
    record = numbers({"identity": -0.030, "stack": -0.0301, "interpolate": 0.05})
    conclude(record)
    text = "\n".join(record.says)
    assert "identity and stack undecided: identity - stack" in text or "stack and identity undecided" in text
    assert (
        record.says[-1].startswith("default: undecided between")
        and "identity is exact at the boundary" in record.says[-1]
    )


def test_where_nothing_is_true_little_is_claimed() -> None:
    """At a level of 5 %, 60 experiments on noise alone call some method better or worse in about 3."""
    claims = defaults = 0
    for draw in range(60):
        record = numbers(dict.fromkeys(GROWN, 0.0), noise=0.02, draw=draw)
        conclude(record)
        claims += any("than from scratch at equal" in line for line in record.says)
        defaults += record.says[-1].endswith("follows")
    assert claims <= 8 and defaults <= 8


def test_one_seed_shows_nothing() -> None:
    record = numbers({"identity": -0.5, "stack": 0.0, "interpolate": 0.0}, seeds=[1])
    conclude(record)
    assert record.says[-1] == "default: nothing follows yet, every method needs at least two seeds"
    assert all("undecided" in line for line in record.says if "at equal FLOPs" in line)
    assert record.results["transitions"]["3-6"]["stack"]["to_scratch"]["low"] is None
    [first, _] = tables(record)
    assert "inf" not in "".join(str(cell) for column in first[1].columns for cell in column.cells)
    assert panels(record)[0].rows[0].high == float("inf")
    empty = record_of("growth", [])
    conclude(empty)
    assert panels(empty)[0].rows == [] and list(tables(empty)) == []


def test_runs_of_interpolate_from_1_superblock_change_nothing() -> None:
    """They are what stack is; an older record has them."""
    record = numbers({"identity": -0.01, "stack": -0.05, "interpolate": 0.03})
    conclude(record)
    before = (list(record.says), record.results)
    for seed in (1, 2, 3, 4, 5):
        twin = {**record.runs[f"1-3/stack/s{seed}"], "arm": "interpolate"}
        record.runs[f"1-3/interpolate/s{seed}"] = twin
    conclude(record)
    assert (record.says, record.results) == before


def test_seeds_are_paired() -> None:
    """Seeds differ by 0.05 and methods by 0.01: only the differences within a seed can show that."""
    record = numbers({"identity": -0.01, "stack": 0.0, "interpolate": 0.0}, noise=0.001)
    conclude(record)
    assert "1 -> 3: identity better than from scratch" in "\n".join(record.says)
    record.runs = {name: one for name, one in record.runs.items() if name != "1-3/scratch/s2"}
    conclude(record)
    assert record.results["transitions"]["1-3"]["identity"]["to_scratch"]["seeds"] == [1, 3, 4, 5]


def test_the_whole_command_with_a_training_that_takes_no_time(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("superblock.benchmarks.ablation.experiment._matmul_limit", lambda threads: 1e9)
    gain = {"identity": 0.01, "stack": 0.06, "interpolate": 0.02}

    def test(config: RunConfig) -> float:
        grown = gain[config.growth.method] if config.parent != "none" else 0.0
        return 2 - 0.1 * config.seed - grown - 0.001 * ((config.seed * 7 + len(config.growth.method)) % 5)

    training = Training(test)
    monkeypatch.setattr("superblock.benchmarks.ablation.experiment._train", lambda: training)
    config = settings(name="mine", growth=GrowthExperimentConfig(seeds=[1, 2, 3], extra_seeds=[1, 2]))
    assert command.run(config, COMPOSE) == 0
    assert len(training.asked) == 28
    grown = [config for config in training.asked if config.parent != "none"]
    extras = [config for config in grown if config.growth.learning_rate == 0.5]
    assert [config.growth.method for config in extras] == ["stack"] * 2
    out = capsys.readouterr().out
    assert "1 -> 3 superblocks, test bits per byte" in out and "default: growth.method=stack follows" in out
    assert "stack with lower-rate - stack" in out and "28 of 28 runs to do" in out
    folder = tmp_path / "runs/benchmarks/mine"
    assert saved(folder, "growth").results["transitions"]["3-6"]["identity"]["steps"] == 80
    assert (folder / "growth.svg").stat().st_size > 5000 and (folder / "growth.png").exists()
    first = (folder / "growth.svg").read_bytes()
    assert command.run(config, COMPOSE) == 0 and len(training.asked) == 28
    assert (folder / "growth.svg").read_bytes() == first


@pytest.mark.slow
def test_real_models_grow(tmp_path: Path) -> None:
    """A parent, two methods and the control, a few steps each, on a small text."""
    library = Path(sysconfig.get_path("stdlib"))
    text = tmp_path / "text"
    text.mkdir()
    for path in library.glob("json/*.py"):
        (text / path.name).write_text(path.read_text("utf-8"), "utf-8")
    config = settings(quick=True, cases="1-3/identity/*|1-3/stack/*|1-3/scratch/*", name="real")
    config.growth.seeds = config.growth.extra_seeds = [1]
    for key, value in SMALL_SCALE.items():
        setattr(config.scale, key, value)

    def small(words: Sequence[str]) -> RunConfig:
        data = ["data=text", f"data.path={text}", "data.test_percent=30", "data.val_percent=30"]
        return compose_run([*words, *data, "trainer.precision=fp32"])

    common = common_words(config, small)
    experiment = Experiment("growth", growth_runs(config, small, common), common, conclude, tables, panels)
    assert carry_out(config, small, experiment) == 0
    record = saved(tmp_path / "runs/benchmarks/real", "growth")
    assert set(record.runs) == {"1/scratch/s1", "1-3/scratch/s1", "1-3/identity/s1", "1-3/stack/s1"}
    parent, exact = record.runs["1/scratch/s1"], record.runs["1-3/identity/s1"]
    assert exact["parent"] == parent["run"] and exact["growth"]["max_logit_difference"] < 1e-5
    assert exact["growth"]["inherited_states"] > 0
    assert exact["lineage_flops"] == pytest.approx(exact["flops"] + parent["flops"])
    control = record.runs["1-3/scratch/s1"]
    half_a_step = 0.5 * control["flops"] / control["steps"]
    assert abs(control["lineage_flops"] - exact["lineage_flops"]) <= half_a_step
    assert {entry["flops"] / record.planned[name]["flops"] for name, entry in record.runs.items()} == {1.0}
