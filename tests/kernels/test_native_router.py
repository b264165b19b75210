"""The C++ router, and the whole MoE layer in one operation, against the layer's PyTorch form in float64."""

import copy
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest
import torch
from torch import Tensor

from superblock.config.model import MoEConfig
from superblock.kernels.experts import native, native_router, whole_layer
from superblock.kernels.experts.backend import router_is_native
from superblock.kernels.experts.native_router import Routes, route_native
from superblock.kernels.native import processor
from superblock.models.moe import MoE

LEVELS = processor.levels()
D = 64
VARIANTS: dict[str, dict[str, Any]] = {
    "sigmoid": {"aux_loss": 0.3},
    "softmax": {"score": "softmax", "aux_loss": 0.3, "z_loss": 0.2},
    "no losses": {"aux_loss": 0.0},
    "shared gate": {"shared_gate": True, "route_scale": 2.5},
    "softmax and gate": {"score": "softmax", "shared_gate": True},
    "no shared expert": {"d_shared": 0},
    "many": {"num_experts": 40, "top_k": 7, "aux_loss": 0.1},
    "one": {"num_experts": 1, "top_k": 1},
}


@pytest.fixture(autouse=True, scope="module")
def _built() -> None:
    if reason := native.LIBRARY.why_not():
        pytest.skip(reason)


def layer(**changes: Any) -> MoE:
    """A layer in fp32 whose bias matters."""
    config = MoEConfig(
        **({"num_experts": 8, "top_k": 2, "d_expert": 32, "d_shared": 32, "backend": "native"} | changes)
    )
    moe, generator = MoE(D, config, norm_eps=1e-6), torch.Generator().manual_seed(0)
    with torch.no_grad():
        for tensor in (*moe.parameters(), moe.balance_bias):
            tensor.normal_(0, 0.2, generator=generator)
    return moe


def tokens(count: int) -> Tensor:
    return torch.randn(1, count, D, generator=torch.Generator().manual_seed(count))


def outcome(moe: MoE, x: Tensor, whole: bool = False) -> dict[str, Tensor]:
    """Output, reports and all gradients of a function of output and loss; `whole` with the residual stream."""
    x = x.detach().requires_grad_()
    y, routing = moe(x, residual=whole)
    grads = torch.autograd.grad(y.double().sin().sum() + 3 * routing.loss, [x, *moe.parameters()], allow_unused=True)
    named = zip(["x", *dict(moe.named_parameters())], grads, strict=True)
    reports = {"y": y, "loss": routing.loss, "counts": routing.counts_E, "stats": routing.stats}
    return reports | {name: torch.zeros(()) if grad is None else grad for name, grad in named}


def exact(moe: MoE, x: Tensor, whole: bool = False) -> dict[str, Tensor]:
    slow = copy.deepcopy(moe).double()
    slow.config.backend = "loop"
    return outcome(slow, x.double(), whole)


def assert_near(actual: dict[str, Tensor], expected: dict[str, Tensor], bound: float) -> None:
    for name, b in expected.items():
        assert (actual[name].double() - b.double()).norm() <= bound * b.double().norm() + 1e-9, name


@contextmanager
def level(name: str) -> Iterator[None]:
    other = native.LIBRARY.at(name)
    assert other.why_not() is None
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(native, "LIBRARY", other)
        patch.setattr(native_router, "LIBRARY", other)
        patch.setattr(whole_layer, "LIBRARY", other)
        yield


@pytest.fixture(params=[False, True], ids=["steps", "whole"])
def whole(request: pytest.FixtureRequest) -> bool:
    return bool(request.param)


@pytest.mark.parametrize("variant", VARIANTS)
@pytest.mark.parametrize("count", [1, 45, 256])
def test_layer(variant: str, count: int, whole: bool) -> None:
    moe, x = layer(**VARIANTS[variant]), tokens(count)
    assert_near(outcome(moe, x, whole), exact(moe, x, whole), 1e-5)


@pytest.mark.parametrize("name", LEVELS)
def test_every_level(name: str, whole: bool) -> None:
    for variant in ("shared gate", "softmax", "many"):
        moe, x = layer(**VARIANTS[variant]), tokens(77)
        with level(name):
            want = exact(moe, x, whole)
            assert_near(outcome(moe, x, whole), want, 1e-5)
            with torch.autocast("cpu", torch.bfloat16):
                assert_near(outcome(moe, x, whole), want, 3e-2)


def test_under_autocast_the_router_stays_exact(whole: bool) -> None:
    moe, x = layer(aux_loss=0.3), tokens(100)
    with torch.autocast("cpu", torch.bfloat16):
        mixed = outcome(moe, x, whole)
    single, want = outcome(moe, x, whole), exact(moe, x, whole)
    assert torch.equal(mixed["counts"], single["counts"]) and torch.equal(mixed["loss"], single["loss"])
    assert mixed["y"].dtype == (torch.float32 if whole else torch.bfloat16)
    assert {mixed[n].dtype for n, _ in moe.named_parameters()} == {torch.float32}
    assert_near(mixed, want, 3e-2)


def routes(logits: Tensor, **settings: Any) -> Routes:
    """Routes of tokens with these logits [N, 8]."""
    h = torch.zeros(len(logits), 32)
    h[:, :8] = logits
    return route_native(
        h, torch.eye(8, 32), torch.zeros(8), **({"top_k": 2, "score": "sigmoid", "scale": 1.0} | settings)
    )


def test_equals_go_to_the_first_and_nan_to_an_expert_that_exists() -> None:
    logits = torch.zeros(40, 8)
    logits[1, 5] = 1
    logits[2:4] = torch.nan
    logits[4, 2] = torch.nan
    logits[5] = -torch.inf
    for score in ("sigmoid", "softmax"):
        out = routes(logits, score=score)
        assert out.index_Nk[0].tolist() == [0, 1] and out.index_Nk[1].tolist() == [5, 0]
        assert ((out.index_Nk >= 0) & (out.index_Nk < 8)).all()
        assert (out.index_Nk[:, 0] != out.index_Nk[:, 1]).all()
        assert out.counts_E.sum() == 80
        assert out.weight_Nk[2].isnan().all() and out.weight_Nk[0].tolist() == [0.5, 0.5]


def test_extreme_logits() -> None:
    """Scores near 0 and 1 give finite losses and gradients; tiny ones still show imbalance."""
    logits = torch.full((64, 8), -60.0)
    logits[:, 0] += 5
    logits[:32] += 140
    for score in ("sigmoid", "softmax"):
        leaf = logits.clone().requires_grad_()
        out = routes(leaf, score=score, aux_loss=1.0)
        grad = torch.autograd.grad(out.loss + out.weight_Nk.square().sum(), leaf)[0]
        assert grad.isfinite().all() and out.weight_Nk.isfinite().all()
    assert routes(torch.full((64, 8), -60.0).index_fill(1, torch.tensor([0]), -55.0), aux_loss=1.0).loss > 3


def test_strides_threads_and_half_inputs() -> None:
    h, router = torch.randn(75, 128), torch.randn(8, 64)
    bias, settings = torch.zeros(8), {"top_k": 2, "score": "sigmoid", "scale": 1.0, "aux_loss": 0.1}
    plain = route_native(h[:, :64].contiguous(), router, bias, **settings)
    for strided in (h[:, :64], h[:, :64].t().contiguous().t()):
        assert all(map(torch.equal, route_native(strided, router, bias, **settings), plain))
    before = torch.get_num_threads()
    try:
        torch.set_num_threads(2)
        assert all(map(torch.equal, route_native(h[:, :64], router, bias, **settings), plain))
    finally:
        torch.set_num_threads(before)
    half = h[:, :64].bfloat16().requires_grad_()
    rounded = route_native(half, router, bias, **settings)
    assert all(map(torch.equal, rounded, route_native(half.float(), router, bias, **settings)))
    assert torch.autograd.grad(rounded.weight_Nk.square().sum(), half)[0].dtype == torch.bfloat16


def test_the_operations_keep_torch_contracts(clean_parts: None) -> None:
    h, router, bias = torch.randn(20, 32, requires_grad=True), torch.randn(5, 32, requires_grad=True), torch.zeros(4)
    settings = (2, True, 1.0, 0.1, 0.1)
    torch.library.opcheck(native_router.route.registered, (h, router, bias, *settings))
    with torch.no_grad():
        weight, index, gate, loss, counts, _, scores, lse = native_router.route(h, router, bias, *settings)
        kept = (h.detach(), router.detach(), bias, index, weight, gate, counts, scores, lse)
    torch.library.opcheck(native_router.route_backward.registered, (weight, gate, loss, *kept, *settings))
    for variant in ("shared gate", "softmax", "no shared expert"):
        moe, x = layer(**VARIANTS[variant]), tokens(20)[0].requires_grad_()
        p, c = dict(moe.named_parameters()), moe.config
        names = ("norm.weight", "router.weight", "shared_gate", "", "gate_up", "down", "shared_gate_up", "shared_down")
        weights = [moe.balance_bias if not name else p.get(name) for name in names]
        chosen = (1e-6, torch.float32, c.top_k, c.score == "softmax", c.route_scale, c.aux_loss, c.z_loss)
        torch.library.opcheck(whole_layer.moe_layer.registered, (x, *weights, *chosen, True))
        still = [None if t is None else t.detach() for t in (x, *weights)]
        with torch.no_grad():
            y, loss, counts, _, kept = whole_layer.moe_layer(*still, *chosen, True)
        del still[names.index("") + 1]
        torch.library.opcheck(whole_layer.moe_layer_backward.registered, (y, loss, *still, counts, kept, *chosen, True))


def test_one_operation_serves_where_it_can() -> None:
    def in_one(moe: MoE) -> bool:
        return type(moe(tokens(5), residual=True)[0].grad_fn).__name__ == "moe_layerBackward"

    assert in_one(layer()) and in_one(layer(**VARIANTS["softmax and gate"]))
    seed, hooked, half = layer(), layer(), layer().bfloat16()
    seed.norm = None  # the literal wiring
    hooked.router.register_forward_hook(lambda *_: None)
    assert not any(map(in_one, (layer(backend="sorted"), seed, hooked)))
    assert half(tokens(5).bfloat16(), residual=True)[0].dtype == torch.bfloat16


def test_a_whole_layer_of_any_strides_and_dtype() -> None:
    moe, x = layer(shared_gate=True, aux_loss=0.3), tokens(70)
    plain = outcome(moe, x, whole=True)
    turned = x.transpose(1, 2).contiguous().transpose(1, 2)
    for strided in (turned, torch.cat([x, x], dim=-1)[..., :D]):
        found = outcome(moe, strided, whole=True)
        assert all(torch.equal(found[name], value) for name, value in plain.items())
    before = torch.get_num_threads()
    try:
        torch.set_num_threads(2)
        assert torch.equal(outcome(moe, x, whole=True)["y"], plain["y"])
    finally:
        torch.set_num_threads(before)
    half = copy.deepcopy(moe).bfloat16()
    rounded = outcome(half, x.bfloat16(), whole=True)
    assert rounded["y"].dtype == rounded["x"].dtype == rounded["gate_up"].dtype == torch.bfloat16
    assert_near(rounded, exact(half, x.bfloat16(), whole=True) | {"counts": rounded["counts"]}, 3e-2)


def test_only_what_needs_a_gradient_gets_one() -> None:
    moe, x = layer(shared_gate=True, aux_loss=0.3), tokens(40)
    every = outcome(moe, x, whole=True)
    for kept in dict(moe.named_parameters()):
        for name, parameter in moe.named_parameters():
            parameter.requires_grad_(name == kept)
        y, routing = moe(x, residual=True)
        (y.double().sin().sum() + 3 * routing.loss).backward()
        gradient = moe.get_parameter(kept).grad
        assert gradient is not None and torch.allclose(gradient, every[kept], rtol=1e-6, atol=1e-7), kept
    alone = x.detach().requires_grad_()
    moe.requires_grad_(False)
    losses = [moe(alone, residual=way)[1].loss for way in (True, False)]
    a, b = (torch.autograd.grad(loss, alone)[0] for loss in losses)
    torch.testing.assert_close(a, b)
    with torch.no_grad():
        assert moe(alone, residual=True)[0].grad_fn is None
    moe.requires_grad_(True)
    moe.zero_grad()
    moe(x, residual=True)[1].loss.backward()
    asked = {name for name, parameter in moe.named_parameters() if parameter.grad is not None}
    assert {"router.weight", "norm.weight"} <= asked and not {
        "gate_up",
        "down",
        "shared_gate_up",
        "shared_down",
    } & asked


def test_the_balance_may_move_before_the_backward_pass() -> None:
    for whole in (False, True):
        moe = layer()
        y, routing = moe(tokens(40), residual=whole)
        moe.balance(routing.counts_E, 1e-3)
        y.sum().backward()


def test_choice() -> None:
    h, router = torch.randn(4, 64), torch.randn(8, 64)
    assert router_is_native("auto", h, router, score="sigmoid", z_loss=0.0)
    assert not router_is_native("sorted", h, router, score="sigmoid", z_loss=0.0)
    assert not router_is_native("auto", h.double(), router.double(), score="sigmoid", z_loss=0.0)
    with pytest.raises(RuntimeError, match="cannot run the router: it has the z-loss of a softmax only; use 'sorted'"):
        router_is_native("native", h, router, score="sigmoid", z_loss=0.1)
