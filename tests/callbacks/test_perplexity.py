"""Running training loss and the quality of whole splits."""

import json
import math
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from superblock.callbacks.accuracy import Accuracy
from superblock.callbacks.base import metric_prefix
from superblock.callbacks.perplexity import Perplexity
from superblock.models.batch import ModelOutput, TokenScores

LN2 = math.log(2)


def output(nll: float, rank: int, *, tokens: int = 8, mtp: float = 3.0) -> ModelOutput:
    def scores(value: float, rank: int, count: int) -> TokenScores:
        ranks = torch.full((1, 16), -1)
        ranks[:, :count] = rank
        return TokenScores(torch.where(ranks >= 0, value, 0.0), ranks)

    heads = {"next_token": scores(nll, rank, tokens), "mtp/1": scores(mtp, 3, tokens - 2)}
    return ModelOutput(scores=heads | {"exit/1": scores(nll + 1, rank + 1, tokens)})


def validate(callback: Any, trainer: SimpleNamespace, module: Any, outputs: list[ModelOutput]) -> None:
    callback.on_validation_epoch_start(trainer, module)
    for i, out in enumerate(outputs):
        callback.on_validation_batch_end(trainer, module, out, None, i)
    callback.on_validation_epoch_end(trainer, module)


@pytest.mark.parametrize(
    ("name", "prefix"),
    [("next_token", ""), ("mtp/2", "mtp_2/"), ("exit/1/mtp/2", "exit_1/mtp_2/"), ("router", "router/")],
)
def test_metric_prefix(name: str, prefix: str) -> None:
    assert metric_prefix(name) == prefix


def test_training_loss_is_the_mean_since_the_last_record(trainer: SimpleNamespace, module: Any) -> None:
    callback = Perplexity(train_bytes_per_token=4.0)
    losses = [3.0, 2.0, 1.0, 5.0, 4.0, 3.0, 7.0]
    for i, loss in enumerate(losses):
        terms = {"next_token": torch.tensor(loss)} | ({"exit/1/mtp/1": torch.tensor(2 * loss)} if i % 2 else {})
        module.advance(losses=terms, learning_rate=0.1 * i)
        callback.on_train_batch_end(trainer, module, None, None, i)
    assert module.tracker.series("train/loss") == [(3, 2.0), (6, 4.0), (7, 7.0)]  # the last step is always recorded
    assert module.tracker.series("train/exit_1/mtp_1/loss") == [(3, 4.0), (6, 8.0)]  # over the steps that had it
    assert module.tracker.series("train/perplexity")[0] == (3, pytest.approx(math.exp(2)))
    assert module.tracker.series("train/bits_per_byte")[1] == (6, pytest.approx(4 / LN2 / 4))
    assert module.tracker.series("train/tokens") == [(3, 300.0), (6, 600.0), (7, 700.0)]
    assert module.tracker.series("train/learning_rate")[0] == (3, pytest.approx(0.2))


def test_the_running_mean_survives_a_resume(trainer: SimpleNamespace, module: Any) -> None:
    callback = Perplexity(train_bytes_per_token=4.0)
    for i, loss in enumerate([1.1, 2.3, 3.7]):
        if i == 2:
            state = json.loads(json.dumps(callback.state_dict()))
            callback = Perplexity(train_bytes_per_token=4.0)
            callback.load_state_dict(state)
        module.advance(losses={"next_token": torch.tensor(loss)})
        callback.on_train_batch_end(trainer, module, None, None, i)
    expected = sum(torch.tensor([1.1, 2.3, 3.7]).double().tolist()) / 3
    assert module.tracker.series("train/loss") == [(3, expected)]


def test_validation_during_training(trainer: SimpleNamespace, module: Any) -> None:
    callback = Perplexity(train_bytes_per_token=4.0)
    module.step = 5
    validate(callback, trainer, module, [output(2.0, 0, tokens=8), output(4.0, 0, tokens=4)])
    (step, values), tokens = module.tracker.steps
    loss = (8 * 2 + 4 * 4) / 12
    assert step == 5 and tokens == (5, {"val/tokens": module.tokens_seen})
    assert values["val/loss"] == pytest.approx(loss)
    assert values["val/perplexity"] == pytest.approx(math.exp(loss))
    assert values["val/bits_per_byte"] == pytest.approx(loss / LN2 / 4) == module.val_bits_per_byte
    assert values["val/mtp_1/loss"] == pytest.approx(3.0)
    assert values["val/exit_1/bits_per_byte"] == pytest.approx((loss + 1) / LN2 / 4)
    assert set(values) == {
        *("val/loss", "val/perplexity", "val/bits_per_byte", "val/mtp_1/loss"),
        *("val/exit_1/loss", "val/exit_1/bits_per_byte"),
    }


def test_each_validation_starts_anew_and_a_sanity_check_counts_for_nothing(
    trainer: SimpleNamespace, module: Any
) -> None:
    callback = Perplexity(train_bytes_per_token=4.0)
    trainer.sanity_checking = True
    validate(callback, trainer, module, [output(9.0, 0)])
    assert not module.tracker.steps and module.val_bits_per_byte is None
    trainer.sanity_checking = False
    for nll in (3.0, 2.0):
        validate(callback, trainer, module, [output(nll, 0)])
    assert [value for _, value in module.tracker.series("val/loss")] == [3.0, 2.0]


def test_whole_splits_are_single_results_with_positions(trainer: SimpleNamespace, module: Any) -> None:
    callback = Perplexity(train_bytes_per_token=4.0)
    trainer.state.fn = "validate"
    validate(callback, trainer, module, [output(2.0, 0, tokens=16)])
    trainer.state.fn = "test"
    callback.on_test_epoch_start(trainer, module)
    callback.on_test_batch_end(trainer, module, output(1.0, 0, tokens=16), None, 0)
    callback.on_test_epoch_end(trainer, module)
    results = module.tracker.results
    assert not module.tracker.steps
    assert results["final/val_loss"] == 2.0 and results["test/loss"] == 1.0
    assert results["test/bits_per_byte"] == pytest.approx(1 / LN2 / 3)  # the split's own bytes
    assert [results[f"test/position_{i}/loss"] for i in range(1, 9)] == [1.0] * 8
    assert callback.results["test/perplexity"] == pytest.approx(math.e)
    assert module.val_bits_per_byte is None  # checkpoints are ranked by validations during training alone


def test_the_best_is_recorded_at_the_end_and_after_an_exception(trainer: SimpleNamespace, module: Any) -> None:
    callback = Perplexity(train_bytes_per_token=4.0)
    callback.on_train_end(trainer, module)
    assert not module.tracker.results
    module.best_val_bits_per_byte = 1.5
    callback.on_exception(trainer, module, KeyboardInterrupt())
    assert module.tracker.results == {"best/val_bits_per_byte": 1.5}


def test_other_processes_record_nothing(trainer: SimpleNamespace, module: Any) -> None:
    trainer.is_global_zero = False
    for callback in (Perplexity(train_bytes_per_token=4.0), Accuracy()):
        validate(callback, trainer, module, [output(2.0, 0)])
        for _ in range(3):
            module.advance(losses={"next_token": torch.tensor(1.0)})
            callback.on_train_batch_end(trainer, module, None, None, 0)
    assert not module.tracker.steps and not module.tracker.results


def test_accuracy_of_every_head(trainer: SimpleNamespace, module: Any) -> None:
    callback = Accuracy()
    validate(callback, trainer, module, [output(1.0, 0, tokens=8), output(1.0, 4, tokens=4)])
    ((_, values),) = module.tracker.steps
    assert values == {
        "val/accuracy_top1": 8 / 12,
        "val/accuracy_top5": 1.0,
        "val/mtp_1/accuracy_top1": 0.0,
        "val/mtp_1/accuracy_top5": 1.0,
        "val/exit_1/accuracy_top1": 0.0,
        "val/exit_1/accuracy_top5": 8 / 12,
    }
