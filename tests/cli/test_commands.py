"""What the console script answers, and what it calls with which configuration."""

import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

from superblock.cli.commands import COMMANDS, groups, options, sections
from superblock.config.benchmark import BenchmarkConfig
from superblock.config.fields import document
from superblock.config.report import ReportConfig
from superblock.config.run import GenerateConfig, PlanConfig, RunConfig
from superblock.config.tracking import TrackingConfig

LIBRARY = {
    "run": ("superblock.staging.pipeline", "run_stages", RunConfig),
    "generate": ("superblock.generation.command", "generate", GenerateConfig),
    "plan": ("superblock.planning.plan", "show", PlanConfig),
    "benchmark": ("superblock.benchmarks.command", "benchmark", BenchmarkConfig),
    "report": ("superblock.reporting.command", "run", ReportConfig),
    "ui": ("superblock.tracking.server", "serve", TrackingConfig),
}


@pytest.fixture
def called(monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    """Every command's entry into the library, replaced by a list of what it was given."""
    given: list[Any] = []

    def entry(what: Any, **rest: Any) -> int:
        given.extend(what if isinstance(what, list) else [what])
        return 0

    exits = ("superblock.evaluation.at_exit", "evaluate_finished", RunConfig)
    for module, function, _ in [*LIBRARY.values(), exits]:
        stand_in = ModuleType(module)
        setattr(stand_in, function, entry)
        monkeypatch.setitem(sys.modules, module, stand_in)
    return given


@pytest.mark.parametrize("name", COMMANDS)
def test_a_command_hands_its_configuration_to_the_library(superblock: Callable, called: list[Any], name: str) -> None:
    assert superblock(name).status == 0
    assert [type(config) for config in called] == [LIBRARY[name][2]]


def test_overrides_arrive(superblock: Callable, called: list[Any], tmp_path: Path) -> None:
    superblock("run", "stage=mvp3", "scale=mini", "optim=muon", "model.pattern=[gdn,gdn,gqa]", "trainer.budget=2 steps")
    [config] = called
    assert config.model.num_superblocks == 6 and config.model.d_model == 128
    assert config.optim.name == "muon"
    assert config.model.pattern == ["gdn", "gdn", "gqa"]
    assert config.trainer.budget == "2 steps"


def test_the_first_line_comes_before_the_library(superblock: Callable, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "superblock.staging.pipeline", None)  # importing it raises
    with pytest.raises(ImportError):
        superblock("run", "stage=mvp2")


def test_the_first_line(superblock: Callable, called: list[Any], tmp_path: Path) -> None:
    answer = superblock("run", "stage=mvp2")
    assert answer.out == f"mvp2: 3 superblocks, scale tiny, 7 minutes; in {tmp_path}\n"


def test_nothing_is_written_but_what_the_library_writes(
    superblock: Callable, called: list[Any], tmp_path: Path
) -> None:
    for name in COMMANDS:
        superblock(name)
    superblock("run", "--cfg", "job")
    assert list(tmp_path.iterdir()) == []


def test_multirun_runs_every_combination_in_order(superblock: Callable, called: list[Any], tmp_path: Path) -> None:
    answer = superblock("run", "--multirun", "seed=1,2", "scale=mini,tiny")
    assert answer.status == 0
    assert [(config.seed, config.scale.name) for config in called] == [
        (1, "mini"),
        (1, "tiny"),
        (2, "mini"),
        (2, "tiny"),
    ]
    assert "3 of 4: seed=2 scale=mini" in answer.out
    assert {path.name for path in tmp_path.iterdir()} <= {"runs"}
    assert not [path for path in tmp_path.rglob("*") if set("=,") & set(path.name)]


@pytest.mark.parametrize("stages", ["stage=all", "stage=mvp1,mvp2,mvp3,mvp4"])
@pytest.mark.parametrize("seeds_first", [True, False])
def test_every_stage_is_one_pipeline_per_seed(
    superblock: Callable, called: list[Any], stages: str, seeds_first: bool
) -> None:
    words = ["seed=3,2", stages] if seeds_first else [stages, "seed=3,2"]
    flag = [] if stages == "stage=all" else ["-m"]
    answer = superblock("run", *flag, *words, "scale=mini")
    assert answer.status == 0, answer.err
    names = ["mvp1", "mvp2", "mvp3", "mvp4"]
    assert [(config.seed, config.stage.name) for config in called] == [(s, name) for s in (3, 2) for name in names]
    assert answer.out.startswith("4 stages: 1 -> 3 -> 6 -> 12 superblocks, scale mini")
    assert "1 of 2: seed=3 scale=mini" in answer.out and "2 of 2: seed=2 scale=mini" in answer.out


def test_the_flag_may_stand_anywhere_and_what_was_typed_is_kept(superblock: Callable, called: list[Any]) -> None:
    given: list[Any] = []

    def run_stages(configs: list[RunConfig], **rest: Any) -> int:
        given.append((len(configs), rest["continue_with"]))
        return 0

    sys.modules["superblock.staging.pipeline"].run_stages = run_stages  # type: ignore[attr-defined]
    assert superblock("run", "scale=mini", "-m", "stage=mvp1,mvp2").status == 0
    assert superblock("run", "stage=all", "data=text", "data.path=my notes").status == 0
    assert superblock("run", "stage=mvp2").status == 0
    assert given == [
        (2, "superblock run scale=mini -m stage=mvp1,mvp2"),
        (4, "superblock run stage=all data=text 'data.path=my notes'"),
        (1, None),
    ]


@pytest.mark.parametrize("word", ["name=mine", "resume=mvp1-x", "parent=mvp1-x"])
def test_what_names_one_run_is_not_for_several_stages(superblock: Callable, called: list[Any], word: str) -> None:
    answer = superblock("run", "stage=all", word)
    assert answer.status == 2 and f"{word}: is for one stage" in answer.err and called == []


def test_a_failed_gate_is_the_status(superblock: Callable, monkeypatch: pytest.MonkeyPatch) -> None:
    stand_in = ModuleType("superblock.staging.pipeline")
    answers = iter([0, 3, 0])
    stand_in.run_stages = lambda configs, **rest: next(answers)  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "superblock.staging.pipeline", stand_in)
    assert superblock("run", "--multirun", "seed=1,2,3").status == 3
    assert next(answers, None) is None  # seeds do not wait for each other


def test_a_sweep_is_checked_before_its_first_run(superblock: Callable, called: list[Any]) -> None:
    assert superblock("run", "--multirun", "trainer.batch_size=8,0").status == 2
    assert called == []


def test_cfg_prints_what_would_run(superblock: Callable, called: list[Any]) -> None:
    answer = superblock("run", "--cfg", "job", "--resolve", "stage=mvp4")
    assert answer.status == 0 and called == []
    assert "num_superblocks: 12" in answer.out and "budget: 18 minutes" in answer.out
    assert "d_model: ${scale.d_model}" in superblock("run", "--cfg", "job").out


def test_info(superblock: Callable, called: list[Any]) -> None:
    answer = superblock("run", "--info", "defaults")
    assert answer.status == 0 and called == []
    assert "schedule/wsd" in answer.out


def test_help_tells_how_a_command_ends_and_what_is_for_it(superblock: Callable, called: list[Any]) -> None:
    run, report = superblock("run", "--help").out, superblock("report", "--help").out
    endings = report.partition("exit statuses\n")[2].partition("\n\n")[0].splitlines()
    assert [int(line.split()[0]) for line in endings if line[2] != " "] == [0, 1, 2, 3, 4, 130]  # others are wrapped
    assert "hydra/sweeper=optuna" in run and "hydra/sweeper" not in report
    seed = " ".join(run.partition("\n  seed ")[2].partition("\n  resume ")[0].split())
    assert "seed=1,2,3, with stage=all or --multirun" in seed


@pytest.mark.parametrize("words", [[], ["--help"], ["-h"]])
def test_without_a_command(superblock: Callable, words: list[str]) -> None:
    answer = superblock(*words)
    assert answer.status == 0
    for command in COMMANDS.values():
        assert f"{command.name:<10} {command.summary}" in answer.out


@pytest.mark.parametrize("name", COMMANDS)
def test_help_has_every_key_group_and_option(superblock: Callable, called: list[Any], name: str) -> None:
    answer = superblock(name, "--help")
    assert answer.status == 0 and called == []
    text = " ".join(answer.out.split())
    for doc in document(COMMANDS[name].config):
        assert f" {doc.key} {doc.meaning} " in text, doc.key
        assert doc.allowed in text
    for group, default in groups(name).items():
        assert f"{group}={default}*" in answer.out
        for option in options(group).values():
            assert f"{group}={option.name}" in answer.out and option.meaning in text
    assert max(map(len, answer.out.splitlines())) < 140


@pytest.mark.parametrize("name", COMMANDS)
def test_the_examples_of_the_help_work(superblock: Callable, called: list[Any], name: str) -> None:
    import shlex

    for overrides, _ in COMMANDS[name].examples:
        assert superblock(name, *shlex.split(overrides)).status == 0, overrides
    assert len(called) >= len(COMMANDS[name].examples)


def test_groups_and_sections() -> None:
    assert list(groups("run")) == [
        "stage", "scale", "model", "data", "optim", "schedule", "trainer", "tracking", "evaluation",
    ]  # fmt: skip
    assert groups("run")["scale"] == "tiny"
    assert {"model", "model.gdn", "tracking"} <= set(sections(RunConfig))
    assert list(sections(GenerateConfig)) == ["tracking"]


@pytest.mark.parametrize(
    ("line", "expected"),
    [
        ("superblock ", {"run", "generate", "plan", "benchmark", "report", "ui"}),
        ("superblock ge", {"generate"}),
        ("superblock run sta", {"stage=", "stage."}),
        ("superblock run stage=", {"stage=mvp1", "stage=mvp2", "stage=mvp3", "stage=mvp4"}),
        ("superblock run scale=b", {"scale=base"}),
        ("superblock nothing ", set()),
    ],
)
def test_completion(superblock: Callable, monkeypatch: pytest.MonkeyPatch, line: str, expected: set[str]) -> None:
    monkeypatch.setenv("COMP_LINE", line)
    monkeypatch.setenv("COMP_POINT", str(len(line)))
    answer = superblock("-sc", "query=bash")
    assert answer.status == 0
    assert expected == set(answer.out.split()) if expected != {"stage=", "stage."} else "stage=" in answer.out


def test_completion_installs(superblock: Callable) -> None:
    assert "complete " in superblock("-sc", "install=bash").out


QUICK = """
import io, sys, time
from contextlib import redirect_stderr, redirect_stdout
began = time.process_time()
from superblock.cli.__main__ import main
for words in (["--help"], ["run", "--help"], ["run", "--cfg", "job"], ["run", "stage=mvp9"], ["run", "seed=x"],
              ["run", "model.moe.top_k=99"], ["plan", "--help"], ["report", "--help"], ["generate", "top_p=0"], ["ui", "--help"]):
    sys.argv = ["superblock", *words]
    with redirect_stdout(io.StringIO()), redirect_stderr(io.StringIO()):
        try:
            main()
        except SystemExit:
            pass
heavy = {"torch", "numpy", "lightning", "mlflow", "datasets", "transformers", "matplotlib"} & set(sys.modules)
print(sorted(heavy), time.process_time() - began < 4.5)
"""


def test_help_configuration_and_errors_need_nothing_heavy() -> None:
    """Ten answers together within the processor time of three: each is promised within 1.5 s, and takes 0.4 s."""
    answer = subprocess.run([sys.executable, "-c", QUICK], capture_output=True, text=True, timeout=60)
    assert answer.stdout == "[] True\n", answer.stderr
