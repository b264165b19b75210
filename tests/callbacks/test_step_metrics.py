"""Speed, memory, experts, norms, divergence and samples, after steps whose values are known."""

import json
import math
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch

from superblock.callbacks import throughput
from superblock.callbacks.expert_health import ExpertHealth, load_statistics
from superblock.callbacks.memory import Memory
from superblock.callbacks.nonfinite import NonFiniteError, NonFiniteGuard
from superblock.callbacks.norms import SAMPLE, Norms
from superblock.callbacks.samples import Samples, as_markdown
from superblock.callbacks.stopwatch import Stopwatch
from superblock.models.cache import DeltaState, KeyValueState
from superblock.training.process import peak_bytes, resident_bytes


class Clock:
    def __init__(self) -> None:
        self.now = 100.0

    def __call__(self) -> float:
        return self.now


def test_stopwatch_leaves_pauses_out() -> None:
    clock = Clock()
    watch = Stopwatch(clock)
    clock.now += 2
    watch.pause()
    clock.now += 5
    watch.pause()
    assert watch.seconds == 2
    watch.go_on()
    watch.go_on()
    clock.now += 1
    assert watch.seconds == 3
    watch.restart()
    assert watch.seconds == 0


def test_throughput_counts_training_alone(
    monkeypatch: pytest.MonkeyPatch, trainer: SimpleNamespace, module: Any
) -> None:
    clock = Clock()
    monkeypatch.setattr(throughput, "matmul_limit", lambda device, dtype: 1e6)
    callback = throughput.Throughput(training_flops_per_token=2000.0)
    callback._watch = Stopwatch(clock)
    trainer.world_size = 2
    callback.on_train_start(trainer, module)
    for i, seconds in enumerate([50.0, 1.0, 1.0, 0.5, 0.5, 1.0, 4.0]):  # the first step plans and allocates
        clock.now += seconds
        module.advance()
        callback.on_train_batch_end(trainer, module, None, None, i)
        if i == 3:
            callback.on_validation_start(trainer, module)
            clock.now += 1000
            callback.on_validation_end(trainer, module)
    assert module.tracker.series("throughput/tokens_per_second") == [(3, 100.0), (6, 150.0), (7, 25.0)]
    assert module.tracker.series("throughput/model_tflop_per_second")[0] == (3, pytest.approx(2e5 / 1e12))
    assert module.tracker.series("throughput/matmul_share")[0] == (3, pytest.approx(0.1))  # of both processes' limit
    callback.on_train_end(trainer, module)
    assert module.tracker.results["final/tokens_per_second"] == 600 / 8
    assert callback.flops_per_second == 75 * 2000 and callback.matmul_share == pytest.approx(0.075)
    again = throughput.Throughput(training_flops_per_token=2000.0)
    again.load_state_dict(json.loads(json.dumps(callback.state_dict())))
    assert again.tokens_per_second == callback.tokens_per_second


def test_throughput_of_a_run_without_a_second_step(trainer: SimpleNamespace, module: Any) -> None:
    callback = throughput.Throughput(training_flops_per_token=1.0)
    callback.on_train_end(trainer, module)
    assert (callback.tokens_per_second, callback.matmul_share, module.tracker.results) == (0.0, 0.0, {})


def test_memory(trainer: SimpleNamespace, module: Any) -> None:
    before = peak_bytes()
    ballast = np.ones(40 * 2**20, dtype=np.uint8)
    assert before < 64 * 2**30 and peak_bytes() >= resident_bytes() - 2**20 > len(ballast)
    module.step = 3
    Memory().on_train_batch_end(trainer, module, None, None, 0)
    ((step, values),) = module.tracker.steps
    assert step == 3 and 40 < values["memory/resident_mib"] <= values["memory/peak_mib"] + 1
    Memory().on_train_end(trainer, module)
    assert module.tracker.results == {"final/memory_peak_mib": pytest.approx(Memory().peak / 2**20, rel=0.01)}


def test_load_statistics_of_known_counts() -> None:
    uniform, collapsed, skewed = [4, 4, 4, 4], [16, 0, 0, 0], [8, 4, 3, 1]
    statistics = load_statistics(torch.tensor([uniform, collapsed, skewed], dtype=torch.float32))
    p = np.array(skewed) / 16
    np.testing.assert_allclose(statistics["load_entropy"], [1, 0, -(p * np.log(p)).sum() / np.log(4)], atol=1e-12)
    np.testing.assert_allclose(statistics["max_violation"], [0, 3, 1])
    np.testing.assert_allclose(statistics["min_load"], [1, 0, 0.25])
    np.testing.assert_allclose(statistics["dead_experts"], [0, 3, 0])
    assert load_statistics(torch.tensor([[5.0]]))["load_entropy"].tolist() == [1.0]  # one expert is as even as can be
    assert all(torch.isfinite(value).all() for value in load_statistics(torch.zeros(2, 4)).values())


def test_expert_health_by_layer_and_mean(trainer: SimpleNamespace, module: Any) -> None:
    module.model = torch.nn.Module()
    for i, bias in enumerate(([0.1, -0.3], [0.0, 0.2])):
        layer = torch.nn.Module()
        layer.register_buffer("balance_bias", torch.tensor(bias))
        module.model.add_module(f"layer{i}", layer)
    callback = ExpertHealth()
    stats = {"gate_entropy": torch.tensor([0.5, 0.7])}
    for i in range(4):
        module.advance(expert_counts_LE=torch.tensor([[4.0, 4.0], [8.0, 0.0]]), router_stats=stats)
        callback.on_train_batch_end(trainer, module, None, None, i)
    ((step, values),) = module.tracker.steps
    assert step == 3
    assert values["experts/layer_1/load_entropy"] == pytest.approx(1) and values[
        "experts/load_entropy"
    ] == pytest.approx(0.5)
    assert values["experts/layer_2/dead_experts"] == 1
    assert values["experts/gate_entropy"] == pytest.approx(0.6)
    assert values["experts/layer_1/bias_absmax"] == pytest.approx(0.3)
    assert len(values) == 3 * 6


def test_expert_health_of_a_model_without_experts(trainer: SimpleNamespace, module: Any) -> None:
    module.step = 3
    ExpertHealth().on_train_batch_end(trainer, module, None, None, 0)
    assert not module.tracker.steps


def test_norms_of_a_known_update(trainer: SimpleNamespace, module: Any) -> None:
    torch.manual_seed(0)
    module.model = torch.nn.Linear(3 * SAMPLE, 1)
    callback = Norms()
    for i in range(3):
        before = [p.detach().clone() for p in module.model.parameters()]
        callback.on_train_batch_start(trainer, module, None, i)
        with torch.no_grad():
            for p in module.model.parameters():
                p.mul_(1.25)
        module.advance(gradient_norm=torch.tensor(2.5))
        callback.on_train_batch_end(trainer, module, None, None, i)
    ((step, values),) = module.tracker.steps
    assert step == 3 and values["norms/gradient"] == 2.5
    assert values["norms/update_ratio"] == pytest.approx(0.25, rel=1e-5)
    assert values["norms/parameters"] == pytest.approx(
        1.25 * math.sqrt(sum(float(p.square().sum()) for p in before)), rel=1e-5
    )


def test_state_norms_come_from_one_sequence_of_the_split(trainer: SimpleNamespace, module: Any) -> None:
    def model(ids: torch.Tensor, *, cache: Any, last_only: bool) -> None:
        assert ids.shape == (1, 4) and last_only
        cache.states[0, 0] = DeltaState(recurrent_BHKV=torch.full((1, 2, 3, 3), 2.0))
        cache.states[0, 1] = KeyValueState()
        cache.states[1, 0] = DeltaState(recurrent_BHKV=torch.full((1, 2, 3, 3), -4.0))

    module.model, module.step = model, 6
    batch: Any = SimpleNamespace(input_ids_BT=torch.zeros(8, 4, dtype=torch.int64))
    for i in range(2):
        Norms().on_validation_batch_end(trainer, module, None, batch, i)
    trainer.state.fn = "validate"
    Norms().on_validation_batch_end(trainer, module, None, batch, 0)
    assert module.tracker.steps == [(6, {"norms/state_rms": 3.0, "norms/state_absmax": 4.0})]


@pytest.mark.parametrize("device", ["cpu", "cuda"])
def test_divergence_names_the_first_bad_step(device: str, trainer: SimpleNamespace, module: Any) -> None:
    module.device = torch.device(device)  # tensors stay where they are; only the moment of looking differs
    guard = NonFiniteGuard()
    with pytest.raises(NonFiniteError, match=r"step 2: the gradient norm and the mtp/1 loss is not finite") as error:
        for i, bad in enumerate([1.0, math.nan, math.nan]):
            module.advance(
                losses={"next_token": torch.tensor(1.0), "mtp/1": torch.tensor(bad)},
                gradient_norm=torch.tensor(bad * math.inf),
            )
            if i == 0:
                module.last_gradient_norm = torch.tensor(1.0)
            guard.on_train_batch_end(trainer, module, None, None, i)
    assert module.step == (2 if device == "cpu" else 3)
    assert "optim.learning_rate=0.001" in str(error.value)


def test_a_flag_is_read_before_a_checkpoint_is_written(trainer: SimpleNamespace, module: Any) -> None:
    module.device = torch.device("cuda")
    guard = NonFiniteGuard()
    module.advance(losses={"next_token": torch.tensor(math.inf)})
    guard.on_train_batch_end(trainer, module, None, None, 0)
    with pytest.raises(NonFiniteError, match="step 1: the next_token loss"):
        guard.state_dict()
    guard.check()  # told once


def test_an_overflow_while_fp16_searches_its_scale_is_no_divergence(trainer: SimpleNamespace, module: Any) -> None:
    module.config.trainer.precision = "fp16"
    module.advance(losses={"next_token": torch.tensor(1.0)}, gradient_norm=torch.tensor(math.inf))
    NonFiniteGuard().on_train_batch_end(trainer, module, None, None, 0)


def test_samples_of_a_complete_run(trainer: SimpleNamespace, module: Any) -> None:
    calls = []

    def generate(prompt: str, tokens: int, seed: int) -> str:
        calls.append((prompt, tokens, seed))
        return f"f{seed}():\n    pass  # `x`"

    samples = Samples(generate, ["def ", "class "], count=3, tokens=40, seed=7)
    module.step = 6
    samples.on_train_end(trainer, module)
    assert not calls  # interrupted
    module.step = 7
    samples.on_train_end(trainer, module)
    assert calls == [("def ", 40, 7), ("class ", 40, 8), ("def ", 40, 9)]
    assert module.tracker.texts["samples.md"] == as_markdown(samples.texts, 7)
    assert "    def f7():\n        pass" in module.tracker.texts["samples.md"]
    with pytest.raises(ValueError, match="prompt"):
        Samples(generate, [], count=1, tokens=4)
