"""The proof of resuming passes where everything is restored, and fails where one thing is not."""

import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from superblock.config.growth import StatementConfig
from superblock.staging import resuming
from superblock.training.module import LanguageModelModule

MakeEvidence = Callable[..., Any]
PLAIN = StatementConfig(because="why")


def files() -> set[str]:
    return {str(path) for path in Path().rglob("*")}


def test_a_sound_run_resumes_and_leaves_nothing_behind(
    evidence: MakeEvidence, tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch
) -> None:
    scratch = tmp_path_factory.mktemp("scratch")
    monkeypatch.setattr(tempfile, "tempdir", str(scratch))
    before = files()
    found = resuming.resume(evidence("second", "model.embedding_dropout=0.1"), PLAIN)
    assert found.holds and found.value == 0, found.measured
    assert files() == before and not list(scratch.iterdir())


def forget_optimizer(self: Any, progress: Any) -> None:
    self._optimizer.state.clear()


def forget_one_moment(self: Any, progress: Any) -> None:
    next(iter(self._optimizer.state.values()))["exp_avg"].zero_()


def change_one_bit(self: Any, progress: Any) -> None:
    with torch.no_grad():
        weight = self.model.norm.weight
        weight[0] = torch.nextafter(weight[0], torch.tensor(torch.inf))


def begin_the_text_again(self: Any, progress: Any) -> None:
    self.data.skipped = -20 * 2  # sequences


@pytest.mark.parametrize(
    ("fault", "words"),
    [
        (forget_optimizer, "losses differ from step 22 on"),
        (forget_one_moment, "differ"),
        (change_one_bit, "weights of "),
        (begin_the_text_again, "losses differ from step 21 on"),
    ],
)
def test_one_thing_that_is_not_restored_is_found(
    evidence: MakeEvidence, monkeypatch: pytest.MonkeyPatch, fault: Callable[..., None], words: str
) -> None:
    restore = LanguageModelModule._restore

    def broken(self: Any, progress: Any) -> None:
        restore(self, progress)
        fault(self, progress)

    monkeypatch.setattr(LanguageModelModule, "_restore", broken)
    found = resuming.resume(evidence("first"), PLAIN)
    assert not found.holds and found.value and words in found.measured, found.measured


def test_equal_means_equal_in_every_bit() -> None:
    zero, nan = torch.zeros(3), torch.full((3,), torch.nan)
    assert resuming._unequal({"a": zero, "b": nan}, {"a": zero.clone(), "b": nan.clone()}) == []
    assert resuming._unequal({"a": zero}, {"a": -zero}) == ["a"]
    assert resuming._unequal({"a": zero, "c": zero}, {"a": zero.double(), "b": zero}) == ["a", "b", "c"]
