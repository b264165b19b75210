"""Whole runs of a small model on real text, in this process."""

import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from superblock.tracking.runs import list_runs
from superblock.tracking.spool import metric_history
from superblock.training.loop import train

Overrides = Callable[..., list[str]]
Compose = Callable[..., Any]


def losses(name: str) -> list[tuple[int, float]]:
    """The training loss of every step."""
    return metric_history(Path("runs") / name)["train/loss"]


def test_a_run_trains_evaluates_and_records(
    compose: Compose, small: Overrides, capsys: pytest.CaptureFixture[str]
) -> None:
    summary = train(compose("run", *small("name=first")))
    assert summary is not None
    assert summary.steps == 12
    assert summary.tokens == 12 * 4 * 32
    test = summary.splits["test"]
    assert set(test.references) == {"unigram", "trigram", "xz"}
    assert 1 < test.bits_per_byte < 8
    history = metric_history(Path("runs/first"))
    assert [step for step, _ in history["train/loss"]] == list(range(1, 13))
    assert [step for step, _ in history["val/bits_per_byte"]] == [4, 8]
    assert history["test/bits_per_byte"] == [(0, test.bits_per_byte)]
    assert history["train/loss"][-1][1] < history["train/loss"][0][1]
    assert "train/mtp_1/loss" in history
    assert json.loads(Path("runs/first/summary.json").read_text())["steps"] == 12
    assert Path("runs/first/artifacts/learning_curve.svg").read_text().startswith("<?xml")
    assert "# Samples" in Path("runs/first/artifacts/samples.md").read_text()
    shown = capsys.readouterr().out
    assert "superblock" in shown or "mvp1" in shown
    assert "superblock generate run=first" in shown
    [record] = list_runs()
    assert record.status == "FINISHED"


def test_the_curve_of_exits_is_measured_and_recorded(
    compose: Compose, small: Overrides, capsys: pytest.CaptureFixture[str]
) -> None:
    summary = train(
        compose("run", *small("name=deep", "stage=mvp2", "evaluation.samples=0", "evaluation.batch_size=64"))
    )
    assert summary is not None
    assert list(summary.exits) == ["1", "2", "3"]
    assert summary.exits["3"]["bits_per_byte"] == summary.splits["test"].bits_per_byte
    assert summary.exits["3"]["perplexity"] == pytest.approx(summary.splits["test"].perplexity)
    history = metric_history(Path("runs/deep"))
    for name in ("bits_per_byte", "perplexity", "tokens_per_second"):
        assert history[f"exits/{name}"] == [(s, summary.exits[str(s)][name]) for s in (1, 2, 3)]
    assert history["test/exit_2/bits_per_byte"] == [(0, summary.exits["2"]["bits_per_byte"])]
    assert all(Path(f"runs/deep/artifacts/exits.{kind}").is_file() for kind in ("svg", "png"))
    assert "exits, test split" in capsys.readouterr().out
    assert json.loads(Path("runs/deep/summary.json").read_text())["exits"] == summary.exits


def test_an_exit_is_set_beside_the_model_it_grew_from(compose: Compose, small: Overrides) -> None:
    cheap = ("evaluation.samples=0", "evaluation.reference_points=false", "evaluation.batch_size=64")
    parent = train(compose("run", *small("name=one", *cheap)))
    grown = train(compose("run", *small("name=two", *cheap, "stage=mvp2", "model.num_superblocks=2", "parent=one")))
    assert parent is not None
    assert grown is not None
    assert list(parent.exits) == ["1"]
    assert grown.exits["1"]["trained_bits_per_byte"] == parent.splits["test"].bits_per_byte
    assert "trained_bits_per_byte" not in grown.exits["2"]
    gap = grown.exits["1"]["bits_per_byte"] / parent.splits["test"].bits_per_byte - 1
    assert metric_history(Path("runs/two"))["exits/gap_1"] == [(0, pytest.approx(gap))]


def test_no_test_no_curve(compose: Compose, small: Overrides) -> None:
    summary = train(compose("run", *small("name=quick", "stage=mvp2", "evaluation=quick", "trainer.budget=2steps")))
    assert summary is not None
    assert summary.exits == {}
    assert "exits/tokens_per_second" not in metric_history(Path("runs/quick"))


def test_same_seed_same_losses_and_another_seed_others(compose: Compose, small: Overrides) -> None:
    for name, seed in (("a", 1), ("b", 1), ("c", 2)):
        train(compose("run", *small(f"name={name}", f"seed={seed}", "evaluation=quick", "trainer.budget=4steps")))
    assert losses("a") == losses("b")
    assert losses("a") != losses("c")


def test_micro_batches_give_the_losses_of_one_big_batch(compose: Compose, small: Overrides) -> None:
    for name, parts in (("whole", 1), ("parts", 4)):
        train(
            compose(
                "run",
                *small(
                    f"name={name}",
                    f"trainer.micro_batches={parts}",
                    "evaluation=quick",
                    "model.mtp.start=0",
                    "model.moe.aux_loss=0",
                ),
            )
        )
    for (step, whole), (_, parts) in zip(losses("whole"), losses("parts"), strict=True):
        assert whole == pytest.approx(parts, rel=2e-5), step


def test_interrupted_and_resumed_run_repeats_the_uninterrupted_one(
    compose: Compose, small: Overrides, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Ctrl-C after step 5, with dropout, so that the generator's state matters, and with multi-token heads appearing later."""
    settings = small(
        "model.embedding_dropout=0.1", "trainer.checkpoint_every=100steps", "stage=mvp2", "model.num_superblocks=2"
    )
    train(compose("run", *settings, "name=whole"))

    from superblock.training import interruption

    agree = interruption.Interruption.on_train_batch_end

    def stop_after_five(self: Any, trainer: Any, module: Any, *rest: Any) -> None:
        if module.step == 5:
            self._raised = 2
        agree(self, trainer, module, *rest)

    with monkeypatch.context() as patch:
        patch.setattr(interruption.Interruption, "on_train_batch_end", stop_after_five)
        with pytest.raises(SystemExit) as end:
            train(compose("run", *settings, "name=cut"))
    assert end.value.code == 130
    assert "resume=cut" in capsys.readouterr().out
    assert list_runs()[0].status == "KILLED"
    assert len(losses("cut")) == 5

    resumed = train(compose("run", *settings, "resume=auto"))
    assert resumed is not None
    assert resumed.name == "cut"
    assert losses("cut") == losses("whole")
    whole = json.loads(Path("runs/whole/summary.json").read_text())
    assert resumed.splits["test"].bits_per_byte == whole["splits"]["test"]["bits_per_byte"]

    assert train(compose("run", *settings, "resume=auto")) is None
    assert "nothing to do" in capsys.readouterr().out


def test_resume_refuses_another_configuration(compose: Compose, small: Overrides) -> None:
    from superblock.config.fields import ConfigError

    train(compose("run", *small("name=done", "evaluation=quick", "trainer.budget=2steps")))
    with pytest.raises(ConfigError, match="no such run.*did you mean done"):
        train(compose("run", *small("resume=don")))
    status = Path("runs/done/status.json")
    status.write_text(json.dumps({**json.loads(status.read_text()), "status": "KILLED"}))
    with pytest.raises(ConfigError, match=r"optim.learning_rate=0.003 there"):
        train(compose("run", *small("resume=done", "trainer.budget=2steps", "optim.learning_rate=0.001")))


def test_a_budget_in_minutes_becomes_steps(compose: Compose, small: Overrides) -> None:
    summary = train(compose("run", *small("name=timed", "trainer.budget=1seconds", "evaluation=quick")))
    assert summary is not None
    assert summary.steps > 2
    assert losses("timed")[0][0] == 1


def test_divergence_stops_the_run_and_names_the_step(
    compose: Compose, small: Overrides, monkeypatch: pytest.MonkeyPatch
) -> None:
    from superblock.callbacks.nonfinite import NonFiniteError
    from superblock.training import module

    clip = module.clip_gradients

    def poison(parameters: Any, limit: float) -> torch.Tensor:
        return clip(parameters, limit) * float("nan")

    monkeypatch.setattr(module, "clip_gradients", poison)
    with pytest.raises(NonFiniteError, match="step 1"):
        train(compose("run", *small("name=bad")))
    assert list_runs()[0].status == "FAILED"


@pytest.mark.parametrize(
    "choice",
    [
        "optim=muon", "schedule=cosine", "schedule=linear", "schedule=polynomial", "schedule=constant", "trainer.precision=bf16",
        "model.wiring=literal", "model.pattern=[gqa]", "model.pattern=[gdn,gdn,gdn,gqa]", "model.mtp.last=block", "model.mtp.enabled=false",
        "trainer.activation_checkpointing=selective", "trainer.activation_checkpointing=full",
        "model.tie_embeddings=true", "model.moe.score=softmax", "model.gqa.window=8", "stage=mvp2", "stage=mvp3", "stage=mvp4",
    ],
)  # fmt: skip
def test_every_choice_trains(compose: Compose, small: Overrides, choice: str) -> None:
    summary = train(
        compose("run", *small("name=it", "evaluation=quick", "trainer.budget=2steps", "model.mtp.start=0", choice))
    )
    assert summary is not None
    assert summary.steps == 2
    assert all(0 < loss < 10 for _, loss in losses("it"))


def test_own_model_in_one_file_trains_and_generates(
    compose: Compose, small: Overrides, root: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """README's example: the file is named on the command line, the rest works as for the superblock."""
    from superblock.generation.command import generate

    file = root / "tests" / "examples" / "own_model.py"
    summary = train(compose("run", *small("name=own", f"model.file={file}", "model.family=gru")))
    assert summary is not None
    assert summary.parameters_total == 512 * 32 + 2 * 3 * 32 * 32 + 2 * 3 * 32
    assert losses("own")[-1][1] < losses("own")[0][1]
    capsys.readouterr()
    generate(compose("generate", "run=own", "prompt=def ", "max_tokens=8"))
    assert capsys.readouterr().out.startswith("def ")


def test_a_missing_model_file_is_named(compose: Compose, small: Overrides) -> None:
    from superblock.config.fields import ConfigError

    with pytest.raises(ConfigError, match=r"model.file=nowhere.py: there is no such file"):
        train(compose("run", *small("name=own", "model.file=nowhere.py", "model.family=gru")))


def test_a_prediction_is_kept_beside_what_came(
    compose: Compose, small: Overrides, capsys: pytest.CaptureFixture[str]
) -> None:
    said = {"bits_per_byte": 3.0, "minutes": 0.5, "memory_bytes": 2.0**30, "steps": 4}
    known = {name: {"value": value, "low": value / 2, "high": 2 * value} for name, value in said.items()}
    summary = train(
        compose("run", *small("name=told", "trainer.budget=4steps")), prediction={**known, "confidence": 0.8}
    )
    assert summary is not None and summary.prediction is not None
    assert summary.prediction["bits_per_byte"] == known["bits_per_byte"]
    history = metric_history(Path("runs/told"))
    assert history["predicted/bits_per_byte"] == [(0, 3.0)]
    assert history["predicted/minutes"] == [(0, 0.5)]
    assert history["predicted/memory_gib"] == [(0, 1.0)]
    assert "before training" in capsys.readouterr().out


def test_two_commands_of_one_second_take_two_folders(compose: Compose, monkeypatch: pytest.MonkeyPatch) -> None:
    from superblock.training import starting

    monkeypatch.setattr(starting.time, "strftime", lambda *_: "20260101-000000")
    config = compose("run", "scale=mini")
    names = [starting.choose(config).name for _ in range(3)]
    assert names == ["mvp1-mini-s1-20260101-000000", "mvp1-mini-s1-20260101-000000-2", "mvp1-mini-s1-20260101-000000-3"]
    named = compose("run", "scale=mini", "name=mine")
    assert starting.choose(named).folder == starting.choose(named).folder  # killed before it wrote anything


def test_the_command_that_continues_is_quoted_as_it_was_typed(monkeypatch: pytest.MonkeyPatch) -> None:
    from superblock.training.starting import resume_command

    monkeypatch.setattr(sys, "argv", ["superblock", "data=text", "data.path=my notes/**", "seed=2", "resume=auto"])
    assert resume_command("a") == "superblock run data=text 'data.path=my notes/**' seed=2 resume=a"
