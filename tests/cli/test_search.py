"""A search trains each trial when the sweeper asks for it, learns from the validation, and can be continued."""

import os
import shlex
import sys
import sysconfig
from collections.abc import Callable, Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

from superblock.cli import search, search_settings
from superblock.config.fields import ConfigError
from superblock.config.run import RunConfig
from superblock.tracking.provenance import Code
from superblock.tracking.runs import list_runs
from superblock.tracking.spool import FILE_NAME, Spool, read_spool

pytest.importorskip("hydra_plugins.hydra_optuna_sweeper")

WORDS = ("--multirun", "hydra/sweeper=optuna", "scale=mini", "trainer.budget=2steps")
RATE = "optim.learning_rate=interval(0.001,0.01)"


@pytest.fixture(autouse=True)
def _same_code(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("superblock.tracking.provenance.code_state", lambda: Code("c" * 40, "main"))


@pytest.fixture
def trials(monkeypatch: pytest.MonkeyPatch) -> list[tuple[int, RunConfig]]:
    """The trials that were asked for; a stand-in answers at once, best at a rate of 0.004."""
    asked: list[tuple[int, RunConfig]] = []

    def run_trial(config: RunConfig, *, number: int, **rest: Any) -> float:
        asked.append((number, config))
        assert sys.argv[1:3] == ["--multirun", "hydra/sweeper=optuna"]  # as typed, for the record of the run
        return 2 + abs(config.optim.learning_rate - 0.004)

    stand_in = ModuleType("superblock.staging.search")
    stand_in.run_trial = run_trial  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "superblock.staging.search", stand_in)
    return asked


@pytest.fixture
def answering(trials: list[Any]) -> Iterator[Callable[[Callable[..., float]], None]]:
    """Replaces what a trial does."""

    def use(answer: Callable[..., float]) -> None:
        sys.modules["superblock.staging.search"].run_trial = answer  # type: ignore[attr-defined]

    yield use


def rates(trials: list[tuple[int, RunConfig]]) -> list[float]:
    return [config.optim.learning_rate for _, config in trials]


def test_trials_are_asked_one_after_the_other_and_the_best_is_said(
    superblock: Callable, trials: list[Any], tmp_path: Path
) -> None:
    answer = superblock("run", *WORDS, RATE, "optim=adamw,muon", "hydra.sweeper.n_trials=4")
    assert answer.status == 0, answer.err
    assert [number for number, _ in trials] == [0, 1, 2, 3] and len(set(rates(trials))) == 4
    best = min(rates(trials), key=lambda rate: abs(rate - 0.004))
    command = answer.out.splitlines()[-1].strip()
    assert command.startswith("superblock run scale=mini trainer.budget=2steps ")
    assert f"optim.learning_rate={best}" in command and "hydra" not in command and "multirun" not in command
    assert "4 of 4 trials with a result" in answer.out
    assert Path.cwd() == tmp_path and {path.name for path in tmp_path.iterdir()} == {"runs"}
    [study] = (tmp_path / "runs/search").iterdir()
    assert (study / "study.db").exists() and (study / "optimization_results.yaml").exists()

    assert superblock("run", *shlex.split(command)[2:], "--cfg", "job").status == 0


def test_the_same_command_goes_on_and_draws_anew(superblock: Callable, trials: list[Any]) -> None:
    words = (*WORDS, RATE)
    assert superblock("run", *words, "hydra.sweeper.n_trials=2").status == 0
    first = list(rates(trials))
    answer = superblock("run", *words, "hydra.sweeper.n_trials=5")
    assert answer.status == 0 and "5 trials, 2 of them done" in answer.out
    assert [number for number, _ in trials] == [0, 1, 2, 3, 4]
    assert len(set(rates(trials))) == 5 and rates(trials)[:2] == first
    again = superblock("run", *words, "hydra.sweeper.n_trials=5")
    assert again.status == 0 and len(trials) == 5 and "best: trial" in again.out
    assert superblock("run", *words, "seed=2", "hydra.sweeper.n_trials=1").status == 0  # another search
    assert [number for number, _ in trials][5:] == [0] and rates(trials)[5] == first[0]


def test_a_name_belongs_to_one_search(superblock: Callable, trials: list[Any]) -> None:
    """Trials of another stage do not compare: neither may the best of them be called this search's best."""
    words = (*WORDS, RATE, "hydra.sweeper.study_name=mine")
    assert superblock("run", *words, "stage=mvp1", "hydra.sweeper.n_trials=2").status == 0
    other = superblock("run", *words, "stage=mvp2", "hydra.sweeper.n_trials=2")
    assert other.status == 2 and "begun with stage=mvp1, not stage=mvp2; give the new one another name" in other.err
    more = superblock("run", *words, "stage=mvp1", "optim=muon", "hydra.sweeper.n_trials=2")
    assert more.status == 2 and "begun with no optim, not optim=muon" in more.err
    moved = [word for word in words if word != RATE]
    where = "tracking.uri=sqlite:///other.db"
    assert len(trials) == 2
    again = superblock("run", "stage=mvp1", *moved, RATE, where, "hydra.sweeper.n_trials=3")  # in any order
    assert again.status == 0 and len(trials) == 3


def test_a_killed_trial_is_made_up_for(superblock: Callable, trials: list[Any], answering: Callable) -> None:
    stand_in = sys.modules["superblock.staging.search"].run_trial

    def killed(config: RunConfig, *, number: int, **rest: Any) -> float:
        if number == 1:
            raise SystemExit(130)
        return stand_in(config, number=number, **rest)

    answering(killed)
    words = (*WORDS, RATE, "hydra.sweeper.n_trials=3")
    answer = superblock("run", *words)
    assert answer.status == 130 and "to go on: the same command" in answer.out
    answering(stand_in)
    assert superblock("run", *words).status == 0
    assert [number for number, _ in trials] == [0, 2, 3]


def test_a_failed_trial_does_not_end_the_search(superblock: Callable, trials: list[Any], answering: Callable) -> None:
    stand_in = sys.modules["superblock.staging.search"].run_trial
    errors = {0: ConfigError("no such text"), 2: ArithmeticError("the validation is nan bits per byte")}

    def failing(config: RunConfig, *, number: int, **rest: Any) -> float:
        if number in errors:
            raise errors[number]
        return stand_in(config, number=number, **rest)

    answering(failing)
    answer = superblock("run", *WORDS, RATE, "hydra.sweeper.n_trials=4")
    assert answer.status == 0 and [number for number, _ in trials] == [1, 3]
    assert "trial 0 came to nothing: ConfigError: no such text" in answer.out
    assert "2 of 4 trials with a result, 2 came to nothing" in answer.out
    again = superblock("run", *WORDS, RATE, "hydra.sweeper.n_trials=4")
    assert again.status == 0 and len(trials) == 2  # failures count among the trials


def test_three_failures_in_a_row_end_it(superblock: Callable, answering: Callable) -> None:
    asked = []

    def failing(config: RunConfig, *, number: int, **rest: Any) -> float:
        asked.append(number)
        raise RuntimeError("no room")

    answering(failing)
    answer = superblock("run", *WORDS, RATE, "hydra.sweeper.n_trials=9")
    assert answer.status == 1 and asked == [0, 1, 2]
    assert (
        "3 trials in a row came to nothing" in answer.out
        and "0 of 9 trials with a result, 3 came to nothing" in answer.out
    )


def test_a_value_that_cannot_work_is_a_failed_trial(superblock: Callable, trials: list[Any]) -> None:
    """Only this combination is refused; the others are tried."""
    answer = superblock("run", *WORDS, "model.moe.top_k=2,99", "hydra/sweeper/sampler=grid", "hydra.sweeper.n_trials=2")
    assert [config.model.moe.top_k for _, config in trials] == [2]
    assert answer.status == 0 and "top_k=99: must be at most num_experts=8" in answer.out
    assert answer.err == ""


WRONG = {
    (*WORDS[1:], RATE): "hydra/sweeper=optuna: has an effect only with --multirun",
    WORDS: "needs something to search, such as 'optim.learning_rate=interval(0.001,0.01)'",
    ("-m", "hydra/sweeper=ax", RATE): "hydra/sweeper=ax: must be basic or optuna",
    (*WORDS, RATE, "optim=muo"): "optim=muo: must be one of adamw, muon",
    (*WORDS, "optim.learning_rat=interval(1,2)"): "did you mean optim.learning_rate?",
    (*WORDS, "optim.learning_rate=interval(-2,-1)"): "optim.learning_rate=-2.0: must be above 0",
    (*WORDS, RATE, "name=mine"): "name=mine: trials are named after their study",
    (*WORDS, RATE, "resume=auto"): "resume: a search begins its runs",
    (*WORDS, RATE, "promote=true"): "promote=true: the trials of a search are not promoted",
    (*WORDS, RATE, "evaluation=quick"): "evaluation.test=false: trials are compared by the whole validation split",
    (*WORDS, RATE, "hydra/launcher=joblib"): "hydra/launcher=joblib: trials of a search follow each other",
    (*WORDS, RATE, "hydra.sweeper.direction=maximize"): "bits per byte are better when they are lower",
    (*WORDS, RATE, "hydra.sweeper.study_name=a/b"): "hydra.sweeper.study_name=a/b: must be letters",
    (*WORDS, RATE, "hydra.sweeper.n_trials=0"): "hydra.sweeper.n_trials=0: must be at least 1",
    (*WORDS, RATE, "hydra.sweeper.storage=null"): "hydra.sweeper.storage: must stay a table",
    (*WORDS, RATE, "hydra.sweeper.n_trails=3"): "hydra.sweeper.n_trails",
}  # fmt: skip


@pytest.mark.parametrize("words", WRONG, ids=lambda words: words[-1])
def test_errors_come_before_the_first_trial(superblock: Callable, trials: list[Any], words: tuple[str, ...]) -> None:
    answer = superblock("run", *words)
    assert answer.status == 2 and WRONG[words] in answer.err and len(answer.err.splitlines()) <= 4
    assert trials == []


def test_an_interval_without_a_search_says_so(superblock: Callable) -> None:
    for flag in ((), ("--multirun",)):
        answer = superblock("run", *flag, RATE)
        assert answer.status == 2 and "an interval is for a search: --multirun hydra/sweeper=optuna" in answer.err


def test_without_the_extra_it_is_named(superblock: Callable, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(search_settings, "_installed", lambda: False)
    answer = superblock("run", *WORDS, RATE)
    assert answer.status == 2 and "needs the extra `search`; pip install 'superblock[search]'" in answer.err


def test_one_process_at_a_time(superblock: Callable, trials: list[Any], monkeypatch: pytest.MonkeyPatch) -> None:
    with search._alone("mine"):
        answer = superblock("run", *WORDS, RATE, "hydra.sweeper.study_name=mine")
    assert answer.status == 2 and "this search is going on in another process" in answer.err
    monkeypatch.setenv("WORLD_SIZE", "2")
    assert "start it without torchrun" in superblock("run", *WORDS, RATE).err
    assert trials == []


@pytest.mark.parametrize(
    ("words", "searches"),
    [(WORDS, True), (("-m", "seed=1,2"), False), (("hydra/sweeper=basic",), False), ((*WORDS, "--cfg", "job"), False)],
)
def test_what_is_a_search(words: tuple[str, ...], searches: bool) -> None:
    assert search_settings.is_search(words) is searches


def test_three_real_trials(superblock: Callable, tmp_path: Path) -> None:
    text = tmp_path / "text"
    text.mkdir()
    for path in Path(sysconfig.get_path("stdlib")).glob("json/*.py"):
        (text / path.name).write_text(path.read_text("utf-8"), "utf-8")
    small = (
        "data=text", f"data.path={text}", "data.vocab_size=512", "data.sequence_length=32", "data.test_percent=30",
        "data.val_percent=30", "model.d_model=32", "model.vocab_size=512", "model.max_sequence_length=32",
        "model.gdn.num_key_heads=1", "model.gdn.num_value_heads=2", "model.gdn.key_dim=16", "model.gdn.value_dim=16",
        "model.gqa.num_heads=2", "model.gqa.num_kv_heads=1", "model.gqa.head_dim=16", "model.moe.num_experts=4",
        "model.moe.d_expert=16", "model.moe.d_shared=16", "model.mtp.d_hidden=16", "trainer.batch_size=4", "trainer.precision=fp32",
        "trainer.threads=1", "trainer.progress=false", "evaluation.samples=0", "evaluation.reference_points=false",
        "tracking=none", "tracking.system_metrics=false",
    )  # fmt: skip
    answer = superblock("run", *WORDS, *small, RATE, "hydra.sweeper.n_trials=3", "hydra.sweeper.study_name=real")
    assert answer.status == 0, answer.err
    runs = sorted(list_runs(), key=lambda run: run.name)
    assert [run.name for run in runs] == ["real-t0", "real-t1", "real-t2"]
    values = [run.summary["splits"]["validation"]["bits_per_byte"] for run in runs]
    best = min(range(3), key=lambda number: values[number])
    assert f"best: trial {best}, {values[best]:.4f} bits per byte of the validation split" in answer.out
    tags: dict[str, str] = {}
    for event in read_spool(Path("runs/real-t1") / FILE_NAME):
        if event.kind == "tags":
            tags |= event.data["values"]
    assert {key: tags[key] for key in ("suite", "study", "trial", "arm")} == {
        "suite": "search", "study": "real", "trial": "1", "arm": "trial-1",
    }  # fmt: skip
    assert all(run.status == "FINISHED" and not (run.folder / "checkpoints").exists() for run in runs)
    assert "train   2 steps" in Path("runs/search/real/logs/trial-0.txt").read_text() and "train   2" not in answer.out
    assert os.getcwd() == str(tmp_path)

    Path("runs/search/real/study.db").unlink()
    Spool(Path("runs/real-t1")).append("tags", {"values": {"study": "other"}})
    again = superblock("run", *WORDS, *small, RATE, "hydra.sweeper.n_trials=2", "hydra.sweeper.study_name=real")
    assert "trial 0: replaces runs/real-t0, of a search of this name whose study is gone" in again.out
    assert "trial 1 came to nothing: ConfigError: runs/real-t1: holds a run that is none of suite=search" in again.out
