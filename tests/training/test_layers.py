"""Layers that are recomputed or compiled compute what plain ones do, hold less, and count their experts once."""

import functools
from typing import Any

import pytest
import torch
from small_training import TOTAL, T, batch_at, small_config, small_model, small_optimizer, train
from torch import Tensor, nn
from torch.autograd.graph import saved_tensors_hooks
from torch.distributed.device_mesh import init_device_mesh

from superblock.config.fields import ConfigError
from superblock.config.trainer import TrainerConfig
from superblock.kernels.native.collection import prepare
from superblock.kernels.packing import PackInfo
from superblock.models.language_model import SuperblockModel, build_model
from superblock.training.layers import prepare_layers
from superblock.training.sharding import shard

PLAIN = {"moe__backend": "sorted", "gdn__backend": "chunked", "gqa__backend": "sdpa"}
"""Forms that run everywhere; the compiler stops before the first two."""
WHOLE = {
    "gdn__key_dim": 16, "gdn__value_dim": 16, "gdn__chunk_size": 16, "gqa__head_dim": 16, "moe__d_expert": 32,
    "moe__d_shared": 32,
}  # fmt: skip
"""Sizes that C++ takes, so that every layer is one operation where there is a compiler."""
both_forms = pytest.mark.parametrize("form", [PLAIN, WHOLE], ids=["steps", "whole"])


def prepared(form: dict[str, Any] = PLAIN, /, **settings: Any) -> SuperblockModel:
    model = small_model(**form)
    prepare_layers(model, TrainerConfig(**settings))
    return model


def one_pass(model: nn.Module) -> tuple[int, Tensor, dict[str, Tensor]]:
    """Bytes kept for the backward pass beside parameters, expert counts, and gradients."""
    tokens_BT = batch_at(0)
    kept: dict[int, int] = {}
    weights = {parameter.untyped_storage().data_ptr() for parameter in model.parameters()}

    def note(x: Tensor) -> Tensor:
        if x.untyped_storage().data_ptr() not in weights:
            kept[x.untyped_storage().data_ptr()] = x.untyped_storage().nbytes()
        return x

    with saved_tensors_hooks(note, lambda x: x):
        output = model(tokens_BT[:, :-1], PackInfo.dense(len(tokens_BT), T), tokens_BT[:, 1:].contiguous())
    held = sum(kept.values())
    sum(term.total for term in output.losses.values()).backward()
    assert output.expert_counts_LE is not None
    return held, output.expert_counts_LE, {name: p.grad for name, p in model.named_parameters() if p.grad is not None}


def test_recomputing_saves_memory_and_changes_nothing() -> None:
    held, counts, grads = one_pass(prepared())
    assert int(counts.sum()) == 4 * 4 * T * 2  # layers, rows, tokens, experts per token
    before = held
    for mode in ("selective", "full"):
        held, again, found = one_pass(prepared(activation_checkpointing=mode))
        assert held < 0.75 * before, (mode, held, before)
        before = held
        assert torch.equal(again, counts)
        assert found.keys() == grads.keys()
        for name, value in grads.items():
            assert torch.equal(found[name], value), (mode, name)


@both_forms
@pytest.mark.parametrize("mode", ["selective", "full"])
def test_training_is_the_same(mode: str, form: dict[str, Any]) -> None:
    expected = small_model(**form)
    model = prepared(form, activation_checkpointing=mode)
    assert model.state_dict().keys() == expected.state_dict().keys()
    losses = train(expected, small_optimizer(expected), range(TOTAL))
    assert train(model, small_optimizer(model), range(TOTAL)) == losses


def test_without_gradients_nothing_is_wrapped(monkeypatch: pytest.MonkeyPatch) -> None:
    """Evaluation and decoding have other shapes than training."""
    seen: list[torch.Size] = []

    def stand_in(forward: Any, **_: Any) -> Any:
        return lambda x, *rest: seen.append(x.shape) or forward(x, *rest)

    monkeypatch.setattr(torch, "compile", stand_in)
    model = prepared(compile=True)
    with torch.no_grad():
        model(batch_at(0)[:, :5])
    assert seen == []
    model(batch_at(0))
    assert seen == [(4, T + 1, 32)] * 4


@both_forms
@pytest.mark.parametrize("mode", ["none", "full"])
def test_compiled_layers_train_the_same(mode: str, form: dict[str, Any], monkeypatch: pytest.MonkeyPatch) -> None:
    """Tracing and automatic differentiation as for real, without the code generator, which takes its time."""
    monkeypatch.setattr(torch, "compile", functools.partial(torch.compile, backend="aot_eager"))
    graphs = compile_and_compare(mode, form)
    assert graphs["stats"]["unique_graphs"] > (3 if form is PLAIN else 1)
    assert not any("recompile" in reason for reason in graphs.get("graph_break", ()))


@pytest.mark.slow
def test_compiled_layers_train_the_same_with_generated_code() -> None:
    compile_and_compare("none", PLAIN)


def compile_and_compare(mode: str, form: dict[str, Any]) -> dict[str, Any]:
    """Trains a compiled model beside a plain one; returns what the compiler counted."""
    from torch._dynamo.utils import counters

    prepare()  # as a run does at its start: a library that is built inside a compiled region would be traced
    torch.compiler.reset()
    counters.clear()
    expected = small_model(**form)
    model = prepared(form, compile=True, activation_checkpointing=mode)
    losses = train(expected, small_optimizer(expected), range(6))
    assert train(model, small_optimizer(model), range(6)) == pytest.approx(losses, abs=1e-5)
    assert model.state_dict().keys() == expected.state_dict().keys()
    return dict(counters)


def test_another_family_is_refused() -> None:
    for settings, key in (({"compile": True}, "compile=true"), ({"activation_checkpointing": "full"}, "=full")):
        with pytest.raises(ConfigError, match=f"{key}: works with model.family=superblock only"):
            prepare_layers(nn.Linear(2, 2), TrainerConfig(**settings))


@both_forms
@pytest.mark.filterwarnings("error")  # FSDP2 says in one when a layer's output is a view
@pytest.mark.parametrize("mode", ["none", "selective", "full"])
def test_recomputed_layers_are_sharded(group_of_one: None, mode: str, form: dict[str, Any]) -> None:
    """The order of training: wrapped first, cut last."""
    settings = TrainerConfig(activation_checkpointing=mode)
    config = small_config(**form)
    expected = build_model(config, seed=1)
    prepare = functools.partial(prepare_layers, config=settings)
    model = shard(config, seed=1, mesh=init_device_mesh("cpu", (1,)), device="cpu", prepare=prepare)
    losses = train(expected, small_optimizer(expected), range(TOTAL))
    assert train(model, small_optimizer(model), range(TOTAL)) == pytest.approx(losses, abs=2e-6)
