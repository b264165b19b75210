"""Runs that begin from a trained one: what they inherit, where they read on, what their lineage costs, what is refused."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from superblock.config.fields import ConfigError
from superblock.data import loader
from superblock.tracking.spool import metric_history
from superblock.training import checkpoint, lineage, registered
from superblock.training.loop import train
from superblock.training.manifest import newest_whole, write_json

Overrides = Callable[..., list[str]]
Compose = Callable[..., Any]
QUICK = (
    "evaluation=quick",
    "evaluation.samples=0",
    "evaluation.test=false",
    "trainer.budget=4steps",
    "trainer.progress=false",
)


@pytest.fixture
def parent(compose: Compose, small: Overrides) -> Path:
    """A trained run of one superblock."""
    train(compose("run", *small("stage=mvp1", "name=parent", *QUICK)))
    return Path("runs/parent")


def newest(name: str) -> Path:
    path, _ = newest_whole(Path("runs") / name)
    assert path is not None
    return path


def summary(name: str) -> dict[str, Any]:
    content: dict[str, Any] = json.loads((Path("runs") / name / "summary.json").read_text())
    return content


def test_a_grown_run_inherits_and_says_so(
    parent: Path, compose: Compose, small: Overrides, capsys: pytest.CaptureFixture[str]
) -> None:
    train(compose("run", *small("stage=mvp2", "name=grown", "parent=parent", *QUICK)))
    found = summary("grown")
    growth = found["growth"]
    assert growth["method"] == "identity" and growth["superblocks"] == [1, 3]
    assert growth["max_logit_difference"] < 1e-5 and growth["exit_difference"] < 1e-5
    assert growth["grown_loss"] == pytest.approx(growth["parent_loss"], abs=1e-6)
    assert growth["inherited_states"] > 20
    assert found["parent"] == "parent"
    first, second = found["lineage"]
    assert (first["run"], first["method"], first["superblocks"]) == ("parent", "scratch", 1)
    assert (second["run"], second["method"], second["superblocks"]) == ("grown", "identity", 3)
    assert second["tokens"] == 4 * 4 * 32 and second["flops"] > 2 * first["flops"] > 0
    assert found["lineage_flops"] == first["flops"] + second["flops"]
    assert "1 -> 3 superblocks by identity" in capsys.readouterr().out
    assert checkpoint.load_progress(newest("grown"))["lineage"] == found["lineage"]


def test_weights_and_states_of_the_first_step_are_the_parents(
    parent: Path, compose: Compose, small: Overrides, monkeypatch: pytest.MonkeyPatch
) -> None:
    from superblock.training.module import LanguageModelModule

    seen: dict[str, Any] = {}

    def look(self: Any, batch: Any, index: int) -> None:
        seen.setdefault("weights", {k: v.clone() for k, v in self.model.state_dict().items()})
        seen.setdefault("states", [{k: v.clone() for k, v in s.items()} for s in self._optimizer.state.values()])
        step(self, batch, index)

    step = LanguageModelModule.training_step
    monkeypatch.setattr(LanguageModelModule, "training_step", look)
    train(compose("run", *small("stage=mvp2", "name=grown", "parent=parent", *QUICK, "trainer.budget=3seconds")))
    weights = checkpoint.read_weights(newest("parent"))
    for name in weights:
        if not name.startswith("heads."):
            assert torch.equal(seen["weights"][name], weights[name]), (
                name
            )  # a budget in minutes was measured in between
    assert len(seen["states"]) == summary("grown")["growth"]["inherited_states"]
    assert {float(state["step"]) for state in seen["states"]} <= {1.0, 2.0, 3.0, 4.0}


@pytest.mark.parametrize("method", ["stack", "interpolate"])
def test_other_methods(parent: Path, compose: Compose, small: Overrides, method: str) -> None:
    train(compose("run", *small("stage=mvp2", "name=grown", "parent=parent", f"growth.method={method}", *QUICK)))
    growth = summary("grown")["growth"]
    assert growth["max_logit_difference"] is None
    assert (growth["exit_difference"] is None) == (method == "interpolate")
    if method == "stack":
        assert growth["exit_difference"] < 1e-5


def test_method_none_and_a_new_optimizer(parent: Path, compose: Compose, small: Overrides) -> None:
    train(compose("run", *small("stage=mvp2", "name=control", "parent=parent", "growth.method=none", *QUICK)))
    train(compose("run", *small("stage=mvp2", "name=scratch", *QUICK)))
    a, b = (checkpoint.read_weights(newest(name)) for name in ("control", "scratch"))
    assert all(torch.equal(a[name], b[name]) for name in a)
    assert summary("control")["parent"] is None and len(summary("control")["lineage"]) == 1
    train(compose("run", *small("stage=mvp2", "name=fresh", "parent=parent", "growth.optimizer=false", *QUICK)))
    assert summary("fresh")["growth"]["inherited_states"] == 0


def test_text_goes_on_where_the_parent_stopped(
    parent: Path, compose: Compose, small: Overrides, monkeypatch: pytest.MonkeyPatch
) -> None:
    read: list[np.ndarray[Any, Any]] = []
    order = loader.windows_of_step

    def note(*args: Any, **kwargs: Any) -> Any:
        read.append(order(*args, **kwargs))
        return read[-1]

    monkeypatch.setattr(loader, "windows_of_step", note)
    train(compose("run", *small("stage=mvp2", "name=grown", "parent=parent", *QUICK)))
    went_on, read = np.concatenate(read), []
    train(compose("run", *small("stage=mvp2", "name=long", *QUICK, "trainer.budget=8steps")))
    assert np.array_equal(went_on, np.concatenate(read)[16:])  # four steps of four sequences
    read = []
    train(compose("run", *small("stage=mvp2", "name=again", "parent=parent", "growth.continue_data=false", *QUICK)))
    assert not np.array_equal(went_on, np.concatenate(read))


def test_a_resumed_grown_run_repeats_the_uninterrupted_one(
    parent: Path, compose: Compose, small: Overrides, monkeypatch: pytest.MonkeyPatch
) -> None:
    settings = small(
        "stage=mvp2", "parent=parent", *QUICK, "trainer.budget=8steps", "trainer.checkpoint_every=100steps"
    )
    train(compose("run", *settings, "name=whole"))
    from superblock.training.interruption import Interruption

    agree = Interruption.on_train_batch_end

    def stop_after_five(self: Any, trainer: Any, module: Any, *rest: Any) -> None:
        if module.step == 5:
            self._raised = 2
        agree(self, trainer, module, *rest)

    with monkeypatch.context() as patched:
        patched.setattr(Interruption, "on_train_batch_end", stop_after_five)
        with pytest.raises(SystemExit):
            train(compose("run", *settings, "name=parts"))
    train(compose("run", *settings, "resume=parts"))
    a, b = (checkpoint.read_weights(newest(name)) for name in ("whole", "parts"))
    assert all(torch.equal(a[name], b[name]) for name in a)
    before, after = summary("whole"), summary("parts")
    assert after["growth"] == before["growth"] and after["lineage_flops"] == before["lineage_flops"]
    assert [one["run"] for one in after["lineage"]] == ["parent", "parts"]


def test_refusals(parent: Path, compose: Compose, small: Overrides) -> None:
    with pytest.raises(ConfigError, match="no such run with a whole checkpoint; did you mean parent"):
        train(compose("run", *small("stage=mvp2", "parent=parrent", *QUICK)))
    with pytest.raises(ConfigError, match=r"model\.moe\.d_expert=24: the parent has 16"):
        train(compose("run", *small("stage=mvp2", "parent=parent", "model.moe.d_expert=24", *QUICK)))
    with pytest.raises(ConfigError, match="must be above the parent's 1"):
        train(compose("run", *small("stage=mvp1", "parent=parent", *QUICK)))
    with pytest.raises(ConfigError, match="no such run"):
        train(compose("run", *small("stage=mvp2", "parent=nobody", "name=refused", *QUICK)))
    assert not Path("runs/refused").exists()


def test_a_checkpoint_from_before_lineages_counts_as_its_own_beginning(parent: Path) -> None:
    path = newest("parent")
    known = lineage.read_lineage(path)
    progress = checkpoint.load_progress(path)
    del progress["lineage"]
    write_json(path / "progress.json", progress)
    assert lineage.read_lineage(path) == known


def test_optimizer_states_are_read_by_name(parent: Path) -> None:
    states = checkpoint.read_optimizer_states(newest("parent"))
    assert states["norm.weight"].keys() == {"exp_avg", "exp_avg_sq", "step"}
    assert float(states["norm.weight"]["step"]) == 4


def test_a_grown_run_has_a_lower_peak_rate(parent: Path, compose: Compose, small: Overrides) -> None:
    for name, words in (
        ("grown", ["parent=parent"]),
        ("full", ["parent=parent", "growth.learning_rate=1"]),
        ("scratch", []),
    ):
        train(compose("run", *small("stage=mvp2", f"name={name}", *words, *QUICK)))
    rates = {
        name: dict(metric_history(Path("runs") / name)["train/learning_rate"]) for name in ("grown", "full", "scratch")
    }
    assert rates["full"] == rates["scratch"]
    assert rates["grown"] == {step: pytest.approx(rate / 2) for step, rate in rates["full"].items()}


def test_each_run_tells_its_own_peak_of_memory(parent: Path, compose: Compose, small: Overrides) -> None:
    held = bytearray(600 << 20)
    held[:: 1 << 12] = b"x" * len(held[:: 1 << 12])  # touched, so that it counts
    del held
    train(compose("run", *small("stage=mvp1", "name=after", *QUICK)))
    assert summary("after")["peak_memory_bytes"] < summary("parent")["peak_memory_bytes"] + (300 << 20)


def test_a_parent_of_another_text_is_refused(
    parent: Path, compose: Compose, small: Overrides, tmp_path: Path, text_folder: Path
) -> None:
    other = tmp_path / "other"
    other.mkdir()
    for path in sorted(text_folder.glob("email_*.py")):
        (other / path.name).write_text(path.read_text("utf-8"), "utf-8")
    with pytest.raises(ConfigError, match=r"parent=parent: data \(digest of the text\) is [0-9a-f]+, it was [0-9a-f]+"):
        train(compose("run", *small("stage=mvp2", "parent=parent", *QUICK), f"data.path={other}"))


def test_a_run_is_not_continued_on_another_text(
    compose: Compose, small: Overrides, tmp_path: Path, text_folder: Path
) -> None:
    mine = tmp_path / "mine"
    shutil.copytree(text_folder, mine)
    settings = [*small("stage=mvp1", *QUICK), f"data.path={mine}"]
    train(compose("run", *settings, "name=run"))
    Path("runs/run/status.json").write_text('{"status": "KILLED"}')
    (mine / "more.py").write_text("x = 1\n" * 500)
    with pytest.raises(ConfigError, match=r"cannot be continued, its text has changed since(.|\n)*begin anew"):
        train(compose("run", *settings, "resume=run"))


def test_the_copy_of_a_registered_model_is_found_by_its_runs_name(parent: Path) -> None:
    copy = Path("runs/.registry/mvp1-mini-v1")
    path = newest("parent")
    weights, progress = checkpoint.read_weights(path), checkpoint.load_progress(path)
    copy.mkdir(parents=True)
    registered.write(copy, weights, path / "config.json", path / "tokenizer.json", progress)
    assert lineage.checkpoint_of("parent") == path
    parent.rename("elsewhere")
    assert lineage.checkpoint_of("parent") == copy
    assert lineage.checkpoint_of("elsewhere") == Path("elsewhere/checkpoints") / path.name
    assert lineage.checkpoint_of("nowhere") is None
