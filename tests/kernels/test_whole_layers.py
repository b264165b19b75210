"""Mixers as one operation each, with norm, projections and residual stream: against the same steps in float64."""

import copy
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from superblock.config.model import AttentionConfig, DeltaNetConfig
from superblock.kernels.attention import native as attention_native
from superblock.kernels.attention import whole_layer as attention_layer
from superblock.kernels.delta_rule import native as rule_native
from superblock.kernels.delta_rule import native_convolution, native_gates
from superblock.kernels.delta_rule import whole_layer as delta_layer
from superblock.kernels.experts import native as experts_native
from superblock.kernels.experts import whole_layer as moe_layer
from superblock.kernels.native import processor
from superblock.kernels.norm import native as norm_native
from superblock.kernels.packing import PackInfo
from superblock.models.attention import GroupedQueryAttention
from superblock.models.gated_deltanet import GatedDeltaNet
from superblock.models.norm import RMSNorm

D, EPS = 32, 1e-6
LAYERS = (attention_layer, delta_layer, moe_layer)
LIBRARIES = (*LAYERS, attention_native, rule_native, native_convolution, native_gates, norm_native, experts_native)
DELTA: dict[str, dict[str, Any]] = {
    "plain": {},
    "shared keys": {"num_value_heads": 4, "value_dim": 32},
    "positive": {"negative_eigenvalues": False, "conv_width": 2},
    "chunks of 16": {"chunk_size": 16},
}
ATTENTION: dict[str, dict[str, Any]] = {
    "plain": {},
    "no gate": {"output_gate": False, "rope_fraction": 1.0},
    "window": {"window": 9, "num_kv_heads": 4},
}
KINDS = [("delta", name) for name in DELTA] + [("attention", name) for name in ATTENTION]
Mixer = GatedDeltaNet | GroupedQueryAttention


@pytest.fixture(autouse=True, scope="module")
def _built() -> None:
    for module in LIBRARIES:
        if reason := module.LIBRARY.why_not():
            pytest.skip(reason)


def make(kind: str, variant: str) -> tuple[Mixer, RMSNorm]:
    mixer: Mixer
    if kind == "delta":
        sizes = {"num_key_heads": 2, "num_value_heads": 2, "key_dim": 16, "value_dim": 16} | DELTA[variant]
        mixer = GatedDeltaNet(D, DeltaNetConfig(**sizes), norm_eps=EPS)
    else:
        sizes = {"num_heads": 4, "num_kv_heads": 2, "head_dim": 16, "rope_fraction": 0.5} | ATTENTION[variant]
        mixer = GroupedQueryAttention(D, AttentionConfig(**sizes), norm_eps=EPS)
    norm = RMSNorm(D, EPS)
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter in (*mixer.parameters(), *norm.parameters()):
            parameter.normal_(0, 0.3, generator=generator)
    return mixer, norm


def tokens(T: int = 45) -> Tensor:
    return torch.randn(2, T, D, generator=torch.Generator().manual_seed(1))


def packs(T: int) -> list[PackInfo]:
    starts = torch.rand(2, T, generator=torch.Generator().manual_seed(2)) < 0.1
    return [PackInfo.dense(2, T), PackInfo.from_doc_ids(starts.cumsum(1))]


def outcome(mixer: Mixer, norm: RMSNorm, x: Tensor, pack: PackInfo) -> dict[str, Tensor]:
    x = x.detach().requires_grad_()
    y = mixer(x, pack, norm=norm)
    named = {"x": x, "norm": norm.weight, **dict(mixer.named_parameters())}
    return {"y": y} | dict(zip(named, torch.autograd.grad(y.double().sin().sum(), list(named.values())), strict=True))


def exact(mixer: Mixer, norm: RMSNorm, x: Tensor, pack: PackInfo) -> dict[str, Tensor]:
    slow, slow_norm = copy.deepcopy(mixer).double(), copy.deepcopy(norm).double()
    slow.config.backend = "recurrent" if isinstance(slow, GatedDeltaNet) else "eager"
    return outcome(slow, slow_norm, x.double(), pack)


def assert_near(actual: dict[str, Tensor], expected: dict[str, Tensor], bound: float) -> None:
    for name, b in expected.items():
        assert (actual[name].double() - b.double()).norm() <= bound * b.double().norm() + 1e-9, name


def in_one(y: Tensor) -> bool:
    return type(y.grad_fn).__name__ in ("delta_layerBackward", "grouped_query_layerBackward")


@pytest.fixture
def calls(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The names of the C++ entry points that run."""
    seen: list[str] = []
    for module in LIBRARIES:

        def call(name: str, *arguments: Any, real: Any = module.LIBRARY.call) -> None:
            seen.append(name)
            real(name, *arguments)

        monkeypatch.setattr(module.LIBRARY, "call", call)
    return seen


@pytest.mark.parametrize("packed", [0, 1], ids=["rows", "documents"])
@pytest.mark.parametrize(("kind", "variant"), KINDS)
def test_against_float64(kind: str, variant: str, packed: int) -> None:
    (mixer, norm), x = make(kind, variant), tokens()
    pack = packs(45)[packed]
    want = exact(mixer, norm, x, pack)
    assert_near(outcome(mixer, norm, x, pack), want, 3e-5)
    with torch.autocast("cpu", torch.bfloat16):
        mixed = outcome(mixer, norm, x, pack)
        with norm.register_forward_hook(lambda *_: None):  # which takes it apart
            steps = outcome(mixer, norm, x, pack)
    assert {t.dtype for t in mixed.values()} == {torch.float32}
    for name, b in want.items():
        mine, theirs = ((form[name].double() - b).norm() / b.norm() for form in (mixed, steps))
        assert mine < 1.5 * theirs + 2e-3 < 0.2, name


@pytest.mark.parametrize("name", processor.levels())
def test_every_level(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    for module in LIBRARIES:
        other = module.LIBRARY.at(name)
        assert other.why_not() is None and other.level == name
        monkeypatch.setattr(module, "LIBRARY", other)
    for kind, variant in (("delta", "shared keys"), ("attention", "window")):
        (mixer, norm), x = make(kind, variant), tokens()
        want = exact(mixer, norm, x, packs(45)[1])
        assert_near(outcome(mixer, norm, x, packs(45)[1]), want, 3e-5)
        with torch.autocast("cpu", torch.bfloat16):
            assert_near(outcome(mixer, norm, x, packs(45)[1]), want, 0.1)


@pytest.mark.parametrize("kind", ["delta", "attention"])
def test_one_node_and_what_the_steps_give(kind: str) -> None:
    """The same numbers, but for the order of sums and one rounding of the branch less."""
    (mixer, norm), x, pack = make(kind, "plain"), tokens(), packs(45)[0]
    for autocast in (False, True):
        with torch.autocast("cpu", torch.bfloat16, enabled=autocast):
            x.requires_grad_()
            y = mixer(x, pack, norm=norm)
            assert in_one(y)
            h = norm.for_products(x)
            if isinstance(mixer, GatedDeltaNet):
                steps = mixer.out(mixer._mix(mixer.qkvz(h), norm(x), pack, None))
            else:
                steps = mixer(h, pack)
            assert (y - x - steps).norm() < (4e-3 if autocast else 1e-6) * steps.norm()


@pytest.mark.parametrize("kind", ["delta", "attention"])
def test_strides_and_half_precision(kind: str) -> None:
    (mixer, norm), x, pack = make(kind, "plain"), tokens(), packs(45)[1]
    plain = outcome(mixer, norm, x, pack)
    for strided in (x.transpose(1, 2).contiguous().transpose(1, 2), torch.cat([x, x], dim=-1)[..., :D]):
        found = outcome(mixer, norm, strided, pack)
        assert all(torch.equal(found[name], value) for name, value in plain.items())
    half = copy.deepcopy(mixer).bfloat16(), copy.deepcopy(norm).bfloat16()
    rounded = outcome(*half, x.bfloat16(), pack)
    assert {t.dtype for t in rounded.values()} == {torch.bfloat16}
    assert_near(rounded, exact(*half, x.bfloat16(), pack), 6e-2)


@pytest.mark.parametrize("kind", ["delta", "attention"])
def test_only_what_needs_a_gradient_gets_one(kind: str) -> None:
    (mixer, norm), x, pack = make(kind, "plain"), tokens(), packs(45)[1]
    every = outcome(mixer, norm, x, pack)
    parameters = {"norm": norm.weight, **dict(mixer.named_parameters())}
    for kept in parameters:
        for name, parameter in parameters.items():
            parameter.requires_grad_(name == kept)
            parameter.grad = None
        mixer(x, pack, norm=norm).double().sin().sum().backward()
        gradient = parameters[kept].grad
        assert gradient is not None and torch.allclose(gradient, every[kept], rtol=1e-6, atol=1e-7), kept
    with torch.no_grad():
        assert torch.equal(mixer(x, pack, norm=norm), every["y"])


@pytest.mark.parametrize("kind", ["delta", "attention"])
def test_what_stands_in_a_module_s_place_is_used(kind: str) -> None:
    """An adapter around a projection, or a hook on it, must not be passed by."""

    class Adapter(nn.Module):
        def __init__(self, inner: nn.Module) -> None:
            super().__init__()
            self.inner = inner

        def forward(self, x: Tensor) -> Tensor:
            y: Tensor = self.inner(x)
            return 2 * y

    (mixer, norm), x, pack = make(kind, "plain"), tokens(), packs(45)[0]
    before = mixer(x, pack, norm=norm)
    hooked: list[Any] = []
    handle = mixer.out.register_forward_hook(lambda *_: hooked.append(1))
    assert torch.equal(mixer(x, pack, norm=norm), before) and hooked == [1]
    handle.remove()
    adapted: Any = mixer
    adapted.out = Adapter(mixer.out)
    torch.testing.assert_close(mixer(x, pack, norm=norm) - x, 2 * (before - x))


@pytest.mark.parametrize("kind", ["delta", "attention"])
def test_nothing_that_was_done_to_a_module_is_passed_by(kind: str) -> None:
    x, pack = tokens(), packs(45)[0]
    mixer, norm = make(kind, "plain")
    plain = mixer(x, pack, norm=norm)
    assert in_one(plain)
    with_bias: Any = mixer
    with_bias.out = nn.Linear(*reversed(mixer.out.weight.shape))
    with torch.no_grad():
        with_bias.out.weight.copy_(make(kind, "plain")[0].out.weight)
        with_bias.out.bias.fill_(7.0)
    torch.testing.assert_close(mixer(x, pack, norm=norm), plain + 7)
    seen: list[int] = []
    mixer, norm = make(kind, "plain")
    mixer.out.register_full_backward_hook(lambda *_: seen.append(1))
    mixer(x, pack, norm=norm).sum().backward()
    assert seen == [1]
    mixer, norm = make(kind, "plain")
    patched: Any = mixer.out
    patched.forward = lambda y: 0 * nn.Linear.forward(patched, y)
    assert torch.equal(mixer(x, pack, norm=norm), x)
    mixer, norm = make(kind, "plain")
    handle = nn.modules.module.register_module_forward_hook(lambda module, *_: seen.append(type(module) is nn.Linear))
    mixer(x, pack, norm=norm)
    handle.remove()
    assert seen.count(True) >= 2
    with FlopCounterMode(display=False) as counter:
        mixer(x, pack, norm=norm)
    assert counter.get_total_flops() == 2 * 90 * (next(mixer.children()).weight.numel() + mixer.out.weight.numel())
    assert not in_one(mixer.double()(x.double(), pack, norm=norm.double()))
    half, norm = make(kind, "plain")
    with pytest.raises(RuntimeError, match="dtype"):  # as a module would
        half.bfloat16()(x, pack, norm=norm)


@pytest.mark.parametrize("kind", ["delta", "attention"])
def test_an_integer_epsilon(kind: str) -> None:
    (mixer, norm), x, pack = make(kind, "plain"), tokens(), packs(45)[1]
    for module in (mixer.norm, norm) if isinstance(mixer, GatedDeltaNet) else (norm,):
        module.eps = 1
    if isinstance(mixer, GroupedQueryAttention):
        mixer.norm_eps = 1
    assert_near(outcome(mixer, norm, x, pack), exact(mixer, norm, x, pack), 3e-5)


def test_explicit_backends_are_kept(calls: list[str]) -> None:
    for kind, backend in (("delta", "chunked"), ("attention", "eager")):
        mixer, norm = make(kind, "plain")
        mixer.config.backend = backend
        assert_near(outcome(mixer, norm, tokens(), packs(45)[1]), exact(mixer, norm, tokens(), packs(45)[1]), 3e-5)
    assert not [name for name in calls if "layer" in name or "rule" in name or "attention" in name]


def test_a_subclass_with_methods_of_its_own_is_taken_step_by_step() -> None:
    class Open(GatedDeltaNet):
        def gates(self, x_BTD: Tensor) -> tuple[Tensor, Tensor]:
            g, beta = super().gates(x_BTD)
            return g, 0 * beta  # nothing is ever written

    (mixer, norm), x, pack = make("delta", "plain"), tokens(), packs(45)[0]
    other = Open(D, mixer.config, norm_eps=EPS)  # type: ignore[arg-type]
    other.load_state_dict(mixer.state_dict())
    assert torch.equal(other(x, pack, norm=norm), x)


@pytest.mark.parametrize("kind", ["delta", "attention"])
def test_projections_of_two_dtypes_and_gradients_that_are_only_known_to_be_zero(kind: str) -> None:
    (mixer, norm), x, pack = make(kind, "plain"), tokens().requires_grad_(), packs(45)[0]
    y = mixer(x, pack, norm=norm)
    assert in_one(y) and not torch.autograd.grad(y, x, torch._efficientzerotensor(y.shape))[0].any()
    next(mixer.children()).bfloat16()
    with torch.autocast("cpu", torch.bfloat16):
        mixed = mixer(x, pack, norm=norm)
    assert not in_one(mixed) and (mixed - y).norm() < 2e-2 * y.norm()


@pytest.mark.parametrize("kind", ["delta", "attention"])
def test_shapes_that_do_not_belong_together(kind: str) -> None:
    (mixer, norm), pack = make(kind, "plain"), packs(45)[1]
    with pytest.raises(ValueError, match="norm is"):
        mixer(torch.randn(2, 45, 2 * D), pack, norm=norm)
    with pytest.raises(ValueError, match="documents is|positions is"):
        mixer(torch.randn(2, 46, D), pack, norm=norm)
    mixer.out = nn.Linear(mixer.out.in_features + 32, D, bias=False)
    with pytest.raises(ValueError, match=r"output is \[32, \d+\], not \[32, \d+\]"):
        mixer(tokens(), pack, norm=norm)


def test_the_operations_keep_torch_contracts(clean_parts: None) -> None:
    x, pack = tokens(20).requires_grad_(), packs(20)[1]
    for dtype in (torch.float32, torch.bfloat16):
        mixer, norm = make("delta", "shared keys")
        weights = [norm.weight, *(mixer.get_parameter(name) for name in (
            "qkvz.weight", "conv", "ba.weight", "A_log", "dt_bias", "norm.weight", "out.weight"))]  # fmt: skip
        arguments = (x, *weights, pack.doc_ids_BT.contiguous(), 2, 2.0, EPS, dtype, 16, True)
        torch.library.opcheck(delta_layer.delta_layer.registered, arguments)
        still = [t.detach() for t in (x, *weights)]
        with torch.no_grad():
            y, kept = delta_layer.delta_layer(*still, *arguments[9:])
        check = (y, *still, pack.doc_ids_BT.contiguous(), kept, 2, 2.0, EPS, dtype, 16)
        torch.library.opcheck(delta_layer.delta_layer_backward.registered, check)

        attention, norm = make("attention", "no gate")
        names = ("qkvg.weight", "query_norm", "key_norm", "out.weight")
        weights = [norm.weight, *(attention.get_parameter(name) for name in names)]
        settings = (True, 4, 2, 0, 8, 1e4, EPS)
        torch.library.opcheck(
            attention_layer.grouped_query_layer.registered, (x, *weights, pack.position_ids_BT, *settings, dtype)
        )
        still = [t.detach() for t in (x, *weights)]
        with torch.no_grad():
            y, kept = attention_layer.grouped_query_layer(*still, pack.position_ids_BT, *settings, dtype)
        torch.library.opcheck(
            attention_layer.grouped_query_layer_backward.registered,
            (y, *still, pack.position_ids_BT, kept, *settings, dtype),
        )


@pytest.mark.parametrize("module", LAYERS, ids=["attention", "delta", "moe"])
def test_a_layer_is_checked_when_its_library_is_loaded(module: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    module.check()
    right = module.reference_layer
    monkeypatch.setattr(module, "reference_layer", lambda *args, **named: right(*args, **named) * 1.001)
    with pytest.raises(AssertionError, match=r"_layer: the output is off by [0-9.e-]+"):
        module.check()
