"""A sweep file becomes runs of equal cost, and their results a table with intervals; what is wrong in it is named."""

import sys
import sysconfig
from collections.abc import Callable, Sequence
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parent))

from experiments import Training, remembering, saved

from superblock.benchmarks.ablation import command
from superblock.benchmarks.ablation.budget import ArmBudget, step_cost
from superblock.benchmarks.ablation.sweep import Sweep, read_sweep, shipped
from superblock.benchmarks.ablation.sweep_runs import Planned, plan_arms, sweep_runs
from superblock.benchmarks.records import COMPLETE
from superblock.cli.app import compose_run
from superblock.config.ablation import SWEEPS, AblationConfig
from superblock.config.benchmark import BenchmarkConfig, SuiteConfig
from superblock.config.fields import ConfigError, validate
from superblock.config.run import RunConfig
from superblock.config.tracking import TrackingConfig
from superblock.tracking.provenance import Code

COMPOSE = remembering(compose_run)
SMALL_SCALE = {
    "d_model": 32, "vocab_size": 512, "sequence_length": 32, "batch_size": 4, "key_heads": 1, "value_heads": 2,
    "delta_head_dim": 16, "query_heads": 2, "kv_heads": 1, "attention_head_dim": 16, "experts": 4, "d_expert": 16,
    "mtp_hidden": 16, "mtp_block": 32,
}  # fmt: skip


def settings(**ablation: object) -> BenchmarkConfig:
    tracking = TrackingConfig(store="none", system_metrics=False)
    config = BenchmarkConfig(suite=SuiteConfig("ablation"), tracking=tracking, threads=1, minutes=60)
    config.scale = COMPOSE(["scale=mini", "trainer.budget=1steps"]).scale
    config.ablation = AblationConfig(**ablation)  # type: ignore[arg-type]
    return config


def plan(sweep: Sweep) -> list[Planned]:
    return plan_arms(sweep, COMPOSE, ["scale=mini"])


def written(tmp_path: Path, text: str) -> Sweep:
    path = tmp_path / "mine.yaml"
    path.write_text(text)
    return read_sweep(AblationConfig(file=str(path)))


@pytest.fixture(autouse=True)
def _no_measuring(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("superblock.benchmarks.ablation.experiment._matmul_limit", lambda threads: 1e9)
    monkeypatch.setattr("superblock.tracking.provenance.code_state", lambda: Code("c" * 40, "main"))


# -- runs ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", shipped())
def test_every_shipped_sweep_has_arms_of_equal_cost(name: str) -> None:
    sweep = read_sweep(AblationConfig(file=name))
    assert sweep.title and sweep.budget.unit == "flops" and len(sweep.seeds) >= 3
    for stage in sweep.stages:
        arms = [one for one in plan(sweep) if one.stage == stage]
        assert arms[0].arm.name == sweep.reference and arms[0].beyond == 0
        for one in arms:
            half_a_step = 0.5 * one.own.flops / one.own.steps
            assert abs(one.flops - arms[0].flops) <= half_a_step * (1 + 1e-9), one.arm.name
            assert one.beyond == pytest.approx(one.flops / arms[0].flops - 1)


def test_heads_cost_nothing_before_they_begin() -> None:
    """Otherwise an arm without heads got steps for work that the other arm did not do."""
    on, early, off = (COMPOSE(["scale=mini", "trainer.budget=1steps", *words]) for words in
                      (["model.mtp.start=0.25"], ["model.mtp.start=0"], ["model.mtp.enabled=false"]))  # fmt: skip
    without = step_cost(off, "flops")
    assert step_cost(on, "flops") - without == pytest.approx(0.75 * (step_cost(early, "flops") - without))
    assert step_cost(early, "flops") > 1.05 * without


def test_budgets_of_other_kinds(tmp_path: Path) -> None:
    text = "arms: {a: '', b: model.mtp.enabled=false, c: trainer.batch_size=32}\nbudget: "
    assert [one.own.steps for one in plan(written(tmp_path, text + "30 steps"))] == [30, 30, 30]
    assert [one.own.steps for one in plan(written(tmp_path, text + "64k tokens"))] == [31, 31, 16]
    flops = plan(written(tmp_path, text + "0.5 TFLOP"))
    assert [one.flops for one in flops] == [pytest.approx(5e11, rel=0.02)] * 3
    assert flops[1].own.steps > flops[0].own.steps > flops[2].own.steps
    assert ArmBudget.parse("2 EFLOPs", "x").amount == 2e18 and ArmBudget.parse("2e3 FLOP", "x").amount == 2000


def test_grown_arms_share_their_parent_and_pay_for_it() -> None:
    sweep = read_sweep(AblationConfig(file="growth", seeds=[4]))
    planned = plan(sweep)
    runs = sweep_runs(planned, sweep.seeds)
    assert [run.name for run in runs] == ["parents/mvp1/s4", "mvp2/scratch/s4", "mvp2/identity/s4", "mvp2/stack/s4"]
    assert [run.parent for run in runs] == [None, None, "parents/mvp1/s4", "parents/mvp1/s4"]
    assert runs[0].flops == pytest.approx(0.4 * planned[0].flops, rel=0.01)
    assert runs[0].flops + runs[2].flops == pytest.approx(runs[1].flops, rel=0.01)
    words = runs[2].command_line("mine", ["scale=mini"], {"parents/mvp1/s4": {"run": "old"}})
    assert words[0] == "stage=mvp2" and "growth.method=identity" in words and "parent=old" in words


def test_the_command_line_counts_and_adds_arms(tmp_path: Path) -> None:
    typed = AblationConfig(
        file="mtp", arms=["deep: model.mtp.depth=2"], stages=["mvp1"], seeds=[7], budget="9 steps", reference="early",
        overrides="optim=muon schedule=cosine",
    )  # fmt: skip
    sweep = read_sweep(typed)
    assert [arm.name for arm in sweep.arms] == ["early", "with", "without", "deep"]
    assert (sweep.seeds, sweep.stages, sweep.budget.amount) == ((7,), ("mvp1",), 9)
    assert all(words[:2] == ("optim=muon", "schedule=cosine") for words in map(sweep.words, sweep.arms))
    assert read_sweep(sweep.as_config().__class__(**{**vars(sweep.as_config()), "file": None})).arms[3] == sweep.arms[3]
    own = written(tmp_path, "overrides: optim=muon\narms: {a: '', b: [optim=adamw, model.tie_embeddings=true]}")
    assert own.words(own.arms[1]) == ("optim=adamw", "model.tie_embeddings=true")


# -- errors -------------------------------------------------------------------------------------------------------

ARMS = "arms: {a: '', b: model.wiring=literal}"
WRONG = {
    "arms: {a: ''}": "arms: there must be at least two",
    f"{ARMS}\nseed: [1]": "mine.yaml: seed: there is no such key; did you mean seeds?",
    "arms:\n  a: ''\n  b: {override: optim=muon}": "mine.yaml: arms.b.override: there is no such key; did you mean overrides?",
    "arms:\n  a: ''\n  a: optim=muon": "mine.yaml: line 3: a: stands twice",
    "arms: {a: '', b: seed=3}": "arms.b.overrides: seed=3: seeds are the sweep's: write seeds: [1, 2, 3]",
    "arms: {a: '', b: trainer.budget=3steps}": "arms.b.overrides: trainer.budget=3steps: the budget is the sweep's",
    "arms: {a: '', b: data=text data.path=x}": "arms.b.overrides: data=text: arms must share the text",
    "arms: {a: '', b: evaluation=quick}": "arms.b.overrides: evaluation=quick: arms must be measured alike",
    "arms: {a: '', b: stage=mvp2}": "stages are the sweep's",
    "arms: {a: '', b: growth.method=stack}": "has no effect on an arm from scratch; add parent=mvp1",
    "arms: {a: '', b: parent=mvp1-tiny-s1}": "must be parent=<stage>",
    "arms: {a: '', b: tracking=none}": "where results go is the command's",
    "arms: {a: '', b: optim=muon optim=adamw}": "optim=muon: optim stands twice",
    "arms: {a: '', b: muon}": "arms.b.overrides: muon: settings are written key=value",
    "arms: {a: '', b: \"name='x\"}": "cannot be read: No closing quotation",
    "arms: {a: '', b: 3}": "arms.b.overrides: 3: must be what would be typed",
    "arms: {a: '', a/b: ''}": "arms.a/b: the name must be",
    f"{ARMS}\nreference: c": "reference: c: is none of the arms a, b",
    f"{ARMS}\nbudget: much": "budget: much: must be '20 TFLOP', '120 steps of the reference'",
    f"{ARMS}\nbudget: 3 minutes": "budget: 3 minutes: a time buys another number of steps",
    f"{ARMS}\nbudget: 0 FLOP": "must be above zero",
    f"{ARMS}\nseeds: 3": "seeds: 3: must be a list such as [1, 2, 3]",
    f"{ARMS}\nseeds: [1, 1]": "with nothing twice",
    f"{ARMS}\nseeds: []": "seeds: []: must name at least one",
    f"{ARMS}\nstages: [mvp7]": "stages: mvp7: must be one of mvp1",
    f"{ARMS}\nparent_share: 2": "parent_share: 2: must be a number above 0",
    "arms: [a, b]": "arms: ['a', 'b']: must be a table",
    "- a": "must be a table with reference",
    "arms: {a: ": "line 1: is no YAML",
    # known once they are composed
    "arms: {a: '', b: optim=muo}": "arms.b.overrides: optim=muo: must be one of adamw, muon (did you mean optim=muon?)",
    "arms: {a: '', b: model.moe.top_k=99}": "arms.b.overrides: model.moe.top_k=99: must be at most num_experts=8",
    "arms: {a: '', b: modle.wiring=literal}": "did you mean model.wiring?",
    "arms: {a: '', b: model.wiring=prenorm}": "arms.b: is the same configuration as arms.a",
    "arms: {a: '', b: parent=mvp1}": "parent=mvp1: must be a stage before mvp1",
}  # fmt: skip


@pytest.mark.parametrize("text", WRONG)
def test_errors_name_file_arm_and_key(tmp_path: Path, text: str) -> None:
    with pytest.raises(ConfigError) as error:
        plan(written(tmp_path, text))
    assert WRONG[text] in str(error.value) and str(error.value).startswith(str(tmp_path))


def test_arms_may_be_typed(superblock: Callable) -> None:
    answer = superblock("benchmark", "suite=ablation", 'ablation.arms=["a:","b: optim=muo"]')
    assert answer.status == 2 and "ablation: arms.b.overrides: optim=muo: must be one of adamw, muon" in answer.err
    answer = superblock("benchmark", "suite=ablation", "ablation.arms=[a,b]")
    assert answer.status == 2 and "must be a name, a colon and overrides" in answer.err


def test_files_and_scales_that_do_not_fit(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="ablation.file=wirring: is no file, and none of .*; did you mean wiring?"):
        read_sweep(AblationConfig(file="wirring"))
    with pytest.raises(ConfigError, match="ablation.file=null: name a sweep file: wiring, "):
        validate(settings())
    assert sorted(SWEEPS) == sorted(shipped())
    with pytest.raises(ConfigError, match="ablation.arms.muon: optimizer.yaml has an arm of this name"):
        read_sweep(AblationConfig(file="optimizer", arms=["muon:"]))
    path = tmp_path / "wide.yaml"
    path.write_text(f"scale: tiny\n{ARMS}")
    config = settings(file=str(path))
    config.scale.name = "small"
    with pytest.raises(ConfigError, match=r"scale=small: .*wide.yaml says scale: tiny"):
        command.run(config, COMPOSE)


# -- the command --------------------------------------------------------------------------------------------------


def test_the_whole_command_with_a_training_that_takes_no_time(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Seeds differ by 0.1 and arms by 0.02 with 0.001 of noise: pairing shows it, and Holm counts both comparisons."""

    def test(config: RunConfig) -> float:
        gain = {"muon": 0.02}.get(config.optim.name, 0.0) if config.stage.name == "mvp1" else 0.0
        return 2 - 0.1 * config.seed - gain + 0.001 * ((7 * config.seed + 3 * len(config.optim.name)) % 5)

    training = Training(test)
    monkeypatch.setattr("superblock.benchmarks.ablation.experiment._train", lambda: training)
    config = settings(file="optimizer", seeds=[1, 2, 3, 4, 5])
    assert command.run(config, COMPOSE) == 0
    assert len(training.asked) == 20 and {config.tracking.arm for config in training.asked} == {"adamw", "muon"}
    out = capsys.readouterr().out
    assert "AdamW against Muon; 120 steps of the reference per arm and stage: equal FLOPs" in out
    assert out.index("20 of 20 runs to do") < out.index("[1/20]") and " 5 x " in out
    assert "mvp1: muon better than adamw: -0.0" in out and "mvp2: muon undecided beside adamw" in out

    [folder] = (tmp_path / "runs/benchmarks").iterdir()
    assert folder.name.startswith("optimizer-mini-")
    record = saved(folder, "ablation")
    assert record.status == COMPLETE and set(record.results["comparisons"]) == {"mvp1/muon", "mvp2/muon"}
    one = record.results["comparisons"]["mvp1/muon"]
    assert one["mean"] == pytest.approx(-0.02, abs=0.003) and one["low"] < one["mean"] < one["high"] < 0
    assert one["n"] == 5 and one["seeds"] == [1, 2, 3, 4, 5] and one["p"] <= one["p_holm"] < 0.05
    assert one["verdict"] == "better" and one["relative"] == pytest.approx(-0.012, abs=0.003)
    arm = record.results["arms"]["mvp1"]["muon"]
    assert arm["steps"] == 120 and arm["to_reference"] == one and arm["words"] == ["optim=muon"]
    assert (folder / "ablation.svg").stat().st_size > 5000 and (folder / "ablation.png").exists()

    assert command.run(config, COMPOSE) == 0 and len(training.asked) == 20  # nothing is asked again
    fewer = settings(file="optimizer", seeds=[1, 2])
    assert command.run(fewer, COMPOSE) == 0 and len(training.asked) == 28  # another experiment
    assert "fewer than 3 seeds decide nothing" in capsys.readouterr().out


def test_a_failed_arm_leaves_the_others_comparable(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def before(config: RunConfig) -> None:
        if config.model.mtp.start == 0:
            raise RuntimeError("step 3: the loss is not finite")

    training = Training(lambda config: 2.0 + config.seed / 7 + config.model.mtp.enabled / 50, before)
    monkeypatch.setattr("superblock.benchmarks.ablation.experiment._train", lambda: training)
    assert command.run(settings(file="mtp", stages=["mvp1"]), COMPOSE) == 1
    out = capsys.readouterr().out
    assert "failed: mvp1/early/s1: RuntimeError: step 3" in out and "mvp1: without" in out
    [folder] = (tmp_path / "runs/benchmarks").iterdir()
    record = saved(folder, "ablation")
    assert set(record.results["comparisons"]) == {"mvp1/without"}
    assert record.results["arms"]["mvp1"]["early"]["test"] is None


def test_quick_is_two_seeds_of_three_steps(monkeypatch: pytest.MonkeyPatch) -> None:
    training = Training(lambda config: 2.0 + config.seed)
    monkeypatch.setattr("superblock.benchmarks.ablation.experiment._train", lambda: training)
    config = settings(file="wiring", stages=["mvp1"])
    config.quick = True
    assert command.run(config, COMPOSE) == 0
    assert [(c.seed, c.trainer.budget) for c in training.asked] == [(s, "3steps") for s in (1, 1, 2, 2)]


@pytest.fixture(scope="module")
def text(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("text")
    for path in Path(sysconfig.get_path("stdlib")).glob("json/*.py"):
        (folder / path.name).write_text(path.read_text("utf-8"), "utf-8")
    return folder


@pytest.mark.slow
@pytest.mark.parametrize("name", shipped())
def test_every_shipped_sweep_trains(tmp_path: Path, text: Path, name: str) -> None:
    """Two steps of each arm on a small text, with everything but the sizes as it is shipped."""
    shared = f"data=text data.path={text} data.test_percent=30 data.val_percent=30 trainer.precision=fp32"
    stages = ["mvp2"] if name == "growth" else ["mvp1"]
    config = settings(file=name, seeds=[1], stages=stages, budget="2 steps of the reference", overrides=shared)
    for key, value in SMALL_SCALE.items():
        setattr(config.scale, key, value)

    def compose(words: Sequence[str]) -> RunConfig:
        return compose_run([*words, "trainer.accelerator=cpu"])

    assert command.run(config, compose) == 0
    [folder] = (tmp_path / "runs/benchmarks").iterdir()
    record = saved(folder, "ablation")
    arms = record.results["arms"][stages[0]]
    assert set(arms) == {arm.name for arm in read_sweep(AblationConfig(file=name)).arms}
    assert all(1 < arm["test"] < 9 and arm["steps"] >= 1 for arm in arms.values())
    assert len(record.results["comparisons"]) == len(arms) - 1 and not record.failed
    entries = [record.runs[run] for run in record.runs if run.startswith(stages[0])]
    assert {entry["data"] for entry in entries} and len({entry["data"] for entry in entries}) == 1
