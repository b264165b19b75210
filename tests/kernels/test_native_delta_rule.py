"""The C++ gated delta rule: against the recurrence in float64 on kind and hard data, at every level this processor has."""

from collections.abc import Iterator
from itertools import pairwise

import pytest
import torch
from torch import Tensor

from superblock.config.model import DeltaNetConfig
from superblock.kernels.delta_rule import convolution
from superblock.kernels.delta_rule import native as module
from superblock.kernels.delta_rule.native import LIBRARY, fused
from superblock.kernels.delta_rule.native_convolution import unfit as native_unfit
from superblock.kernels.delta_rule.reference import recurrent
from superblock.kernels.native import processor
from superblock.kernels.packing import PackInfo
from superblock.models.gated_deltanet import GatedDeltaNet

pytestmark = pytest.mark.skipif(LIBRARY.why_not() is not None, reason=str(LIBRARY.why_not()))
NAMES = ("o", "last", "q", "k", "v", "g", "beta", "initial")
LEVELS = processor.levels()


@pytest.fixture(params=LEVELS)
def level(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    library = LIBRARY.at(request.param)
    assert library.why_not() is None
    monkeypatch.setattr(module, "LIBRARY", library)
    yield request.param


def error(actual: Tensor, expected: Tensor) -> float:
    actual, expected = actual.detach().double(), expected.detach().double()
    return float((actual - expected).norm() / expected.norm().clamp_min(1e-30))


def make_inputs(
    B: int, T: int, G: int, H: int, K: int, V: int, *, decay: float = 1.0, kind: str = "random", seed: int = 0
) -> list[Tensor]:
    """q, k, v, g, beta and an initial state in float64; `hard` keys are nearly equal and written twice over."""
    generator = torch.Generator().manual_seed(seed)
    shapes = ((B, T, G, K), (B, T, G, K), (B, T, H, V), (B, T, H), (B, T, H), (B, H, K, V))
    q, k, v, g, b, state = (torch.randn(s, generator=generator, dtype=torch.float64) for s in shapes)
    g, beta = -decay * torch.rand(g.shape, generator=generator, dtype=torch.float64), 2 * b.sigmoid()
    if kind == "hard":
        k, beta = k[:, :1] + 0.05 * k, 1.95 - 0.95 * (b > 1.5)
    return [x.float().double() for x in (q, k, v, g, beta, state)]


def cast(inputs: list[Tensor], dtype: torch.dtype) -> list[Tensor]:
    return [x.detach().to(dtype).requires_grad_() for x in inputs]


def pack_of(lengths: list[int], rows: int = 1) -> PackInfo:
    ids = torch.repeat_interleave(torch.arange(len(lengths)), torch.tensor(lengths))
    return PackInfo.from_doc_ids(ids.expand(rows, -1))


def everything(form, inputs: list[Tensor], **options) -> list[Tensor]:  # type: ignore[no-untyped-def]
    """Outputs, last state, and the gradients of a fixed random function of both."""
    generator = torch.Generator().manual_seed(9)
    o, last = form(*inputs[:5], initial_state=inputs[5] if len(inputs) > 5 else None, **options)
    weights = [torch.randn(x.shape, generator=generator, dtype=torch.float64).to(x.dtype) for x in (o, last)]
    return [o, last, *torch.autograd.grad((o * weights[0]).sum() + (last * weights[1]).sum(), inputs)]


def assert_close(actual: list[Tensor], exact: list[Tensor], bound: float) -> None:
    for name, a, b in zip(NAMES, actual, exact, strict=False):
        assert error(a, b) < bound * (8 if name in ("g", "beta") else 1), name


SHAPES = [
    (2, 101, 2, 4, 16, 32),
    (1, 70, 1, 1, 64, 64),
    (1, 33, 1, 2, 96, 48),
    (1, 16, 1, 1, 128, 256),
    (2, 5, 1, 3, 32, 16),
]


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("packed", [False, True])
def test_against_the_recurrence_in_float64(level: str, shape: tuple[int, ...], packed: bool) -> None:
    inputs = make_inputs(*shape)
    T = shape[1]
    bounds = sorted({0, T // 7, T // 3, T // 3 + 1, T - T // 4, T})
    pack = pack_of([b - a for a, b in pairwise(bounds)], rows=shape[0]) if packed else None
    exact = everything(recurrent, cast(inputs, torch.float64), pack=pack)
    for chunk in (0, 16, 32, 64):
        assert_close(everything(fused, cast(inputs, torch.float32), pack=pack, chunk_size=chunk), exact, 3e-6)
    with torch.no_grad():
        few = fused(*(x.float() for x in inputs[:5]), pack=pack, initial_state=inputs[5].float())
    assert_close(list(few), exact[:2], 3e-6)


@pytest.mark.parametrize("width", [64, 128])
@pytest.mark.parametrize(("kind", "decay"), [("random", 1.0), ("hard", 0.01), ("random", 40.0)])
@pytest.mark.parametrize("rows", [torch.float32, torch.bfloat16])
def test_no_less_accurate_than_transformers(kind: str, decay: float, width: int, rows: torch.dtype) -> None:
    """Of rows in bf16, whose products are taken as they are, the peer gets the same numbers in fp32."""
    peer = pytest.importorskip("transformers.models.qwen3_next.modeling_qwen3_next")
    inputs = make_inputs(2, 200, 2, 2, width, width, decay=decay, kind=kind)
    inputs[:3] = [x.to(rows).double() for x in inputs[:3]]
    exact = everything(recurrent, cast(inputs, torch.float64))

    def theirs(*args: Tensor, initial_state: Tensor) -> tuple[Tensor, Tensor]:
        options = {"output_final_state": True, "use_qk_l2norm_in_kernel": True, "initial_state": initial_state}
        return peer.torch_chunk_gated_delta_rule(*args, **options)

    peers = everything(theirs, cast(inputs, torch.float32))
    ours = everything(fused, [*cast(inputs[:3], rows), *cast(inputs[3:], torch.float32)])
    for name, found, other, want in zip(NAMES, ours, peers, exact, strict=True):
        if found.dtype == torch.float32:  # gradients of bf16 rows are rounded
            assert error(found, want) <= max(1.1 * error(other, want), 1e-6), name


def test_rows_too_long_for_a_float_count_as_zero(level: str) -> None:
    """Their squares are infinite, whether they are multiplied before or after they are brought to unit length."""
    inputs = make_inputs(1, 40, 1, 1, 48, 16)
    for x in inputs[:2]:
        x[:, [3, 20]] *= 1e30
    rows = [*cast(inputs[:3], torch.bfloat16), *cast(inputs[3:], torch.float32)]
    zero = [x.detach().clone() for x in rows]
    for x in zero[:2]:
        x[:, [3, 20]] = 0
    for found, want in zip(fused(*rows[:5]), fused(*zero[:5]), strict=True):
        assert bool(found.isfinite().all())
        assert torch.equal(found, want)


def test_reads_slices_and_writes_gradients_in_bf16(level: str) -> None:
    """The model's q, k, v: slices of one tensor, one of them expanded, one with the width not innermost."""
    B, T, G, H, K, V = 2, 75, 2, 4, 32, 64
    generator = torch.Generator().manual_seed(1)
    mixed = torch.randn(B, T, 2 * G * K + H * V, generator=generator).bfloat16().requires_grad_()
    gates = make_inputs(B, T, G, H, K, V)[3:5]

    def run(form, mixed: Tensor, dtype: torch.dtype) -> list[Tensor]:  # type: ignore[no-untyped-def]
        q, k, v = mixed.split([G * K, G * K, H * V], dim=-1)
        q = q.unflatten(-1, (G, K))[:, :, :1].expand(-1, -1, G, -1)
        k = k.unflatten(-1, (G, K)).transpose(1, 3).contiguous().transpose(1, 3)
        o, last = form(q, k, v.unflatten(-1, (H, V)), *(x.to(dtype) for x in gates))
        return [o, last, *torch.autograd.grad(o.sin().sum() + last.sum(), mixed)]

    ours, exact = (
        run(fused, mixed, torch.float32),
        run(recurrent, mixed.detach().double().requires_grad_(), torch.float64),
    )
    assert ours[0].dtype == ours[1].dtype == torch.float32
    assert ours[2].dtype == torch.bfloat16
    assert error(ours[0], exact[0]) < 2e-6
    assert error(ours[1], exact[1]) < 2e-6
    assert error(ours[2], exact[2]) < 5e-3


@pytest.mark.parametrize("part", [0, 1])
@pytest.mark.parametrize("continued", [False, True])
def test_gradient_through_the_state_alone_and_the_output_alone(part: int, continued: bool) -> None:
    inputs = make_inputs(1, 70, 1, 2, 16, 16)[: 6 if continued else 5]

    def grads(form, dtype: torch.dtype) -> tuple[Tensor, ...]:  # type: ignore[no-untyped-def]
        leaves = cast(inputs, dtype)
        out = form(*leaves[:5], initial_state=leaves[5] if continued else None)[part]
        return torch.autograd.grad(out.sin().sum(), leaves, materialize_grads=True)

    for name, ours, want in zip(NAMES[2:], grads(fused, torch.float32), grads(recurrent, torch.float64), strict=False):
        assert error(ours, want) < 1e-5 or float((ours - want).abs().max()) < 1e-6, name


def test_packed_documents_equal_separate_ones_even_if_ids_return() -> None:
    inputs = [x.float() for x in make_inputs(1, 100, 1, 2, 32, 32)]
    bounds = [0, 10, 64, 70, 100]
    ids = torch.tensor([0, 1, 0, 1]).repeat_interleave(torch.tensor([b - a for a, b in pairwise(bounds)]))[None]
    o, last = fused(*inputs[:5], pack=PackInfo.from_doc_ids(ids), initial_state=inputs[5])
    for begin, end in pairwise(bounds):
        alone, state = fused(*(x[:, begin:end] for x in inputs[:5]), initial_state=inputs[5] if begin == 0 else None)
        assert error(o[:, begin:end], alone) < 2e-6
    assert error(last, state) < 2e-6


def test_the_same_bits_for_any_number_of_threads() -> None:
    inputs = make_inputs(3, 90, 2, 4, 32, 32)
    before = torch.get_num_threads()
    results = []
    for threads in (1, 2, 3, 1):
        torch.set_num_threads(threads)
        results.append(everything(fused, cast(inputs, torch.float32)))
    torch.set_num_threads(before)
    assert all(torch.equal(a, b) for other in results[1:] for a, b in zip(results[0], other, strict=True))


def test_a_decay_of_zero_and_huge_values_stay_finite() -> None:
    inputs = cast(make_inputs(1, 70, 1, 1, 16, 16), torch.float32)
    with torch.no_grad():
        inputs[3][:, 5] = -1e4  # forgets everything
        inputs[2] *= 1e15
        inputs[1][:, 7] = 0  # a key of length zero
    exact = everything(recurrent, cast(inputs, torch.float64))
    assert_close(everything(fused, inputs), exact, 1e-5)


def test_keeps_nothing_without_gradient() -> None:
    inputs = [x.float() for x in make_inputs(1, 40, 1, 1, 16, 16)]
    saved = fused(*inputs[:5])
    assert not saved[0].requires_grad
    with torch.no_grad():
        states, residuals = torch.ops.superblock.delta_rule(*inputs[:5], None, None, 32, False)[2:]
    assert states.numel() == residuals.numel() == 0


def test_operator_contract() -> None:
    q, k, v, g, beta, state = cast(make_inputs(1, 20, 1, 2, 16, 32), torch.float32)
    ids = torch.tensor([0] * 7 + [1] * 13, dtype=torch.int32)[None]
    for args in ((q, k, v, g, beta, state, ids, 16, True), (q, k, v, g, beta, None, None, 32, True)):
        torch.library.opcheck(torch.ops.superblock.delta_rule.default, args)
    no_grad = tuple(x.detach() for x in (q, k, v, g, beta))
    torch.library.opcheck(torch.ops.superblock.delta_rule.default, (*no_grad, None, None, 0, False))


def test_says_why_it_does_not_fit() -> None:
    q = torch.zeros(1, 4, 1, 16)
    assert module.unfit(q, q, 0) is None
    assert module.unfit(q.double(), q, 0) == "it computes in fp32, which is less than float64"
    assert module.unfit(q[..., :12], q, 0) == "key_dim=12 is not a multiple of 16 up to 256"
    assert (
        module.unfit(q, q.expand(1, 4, 1, 16).repeat(1, 1, 1, 17), 0)
        == "value_dim=272 is not a multiple of 16 up to 256"
    )
    assert module.unfit(q, q, 24) == "chunk_size=24 is not a multiple of 16 up to 128 (0 chooses one)"
    assert module.unfit(q.to("meta"), q, 0) == "it has no kernel for meta"


@pytest.mark.parametrize("autocast", [False, True])
def test_a_mixer_learns_the_same_with_and_without(autocast: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    """Losses of a few steps of the whole layer, whose q, k, v are slices of slices: PyTorch's forms against C++."""
    x = torch.randn(2, 70, 64, generator=torch.Generator().manual_seed(0))
    pack = pack_of([11, 40, 19], rows=2)
    losses = []
    for backend in ("chunked", "native"):
        monkeypatch.setattr(convolution, "unfit", native_unfit if backend == "native" else lambda *_: "off")
        torch.manual_seed(0)
        config = DeltaNetConfig(num_key_heads=2, num_value_heads=4, key_dim=16, value_dim=32, backend=backend)
        layer = GatedDeltaNet(64, config, norm_eps=1e-6)
        for p in layer.parameters():
            torch.nn.init.normal_(p, std=0.3)
        optimizer = torch.optim.SGD(layer.parameters(), lr=0.1)
        for _ in range(4):
            with torch.autocast("cpu", torch.bfloat16, enabled=autocast):
                loss = (layer(x, pack).float() - x.roll(1, dims=1)).square().mean()
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            losses.append(float(loss.detach()))
    torch.testing.assert_close(losses[:4], losses[4:], rtol=2e-2 if autocast else 1e-5, atol=0)
    assert losses[7] < 0.95 * losses[4]


def test_what_does_not_belong_together_is_refused() -> None:
    q, k, v, g, beta, state = (x.float() for x in make_inputs(2, 20, 1, 2, 16, 32))
    for wrong in (
        lambda: fused(q, k[:1], v, g, beta),
        lambda: fused(q, k, v[:, :19], g, beta),
        lambda: fused(q, k, v, g[:1], beta),
        lambda: fused(q, k, v, g, beta[..., :1]),
        lambda: fused(q, k, v, g, beta, initial_state=state[:1]),
        lambda: fused(q, k, v, g, beta, pack=pack_of([7, 13])),
        lambda: fused(*(x.expand(-1, -1, 3, -1) for x in (q, k)), v, g, beta),
    ):
        with pytest.raises(ValueError, match=r"delta rule in C\+\+: "):
            wrong()


@pytest.mark.parametrize("decay", [-1e20, -torch.inf])
def test_a_token_that_forgets_everything_leaves_later_decays_as_they_are(decay: float) -> None:
    inputs = cast(make_inputs(1, 70, 1, 1, 16, 16), torch.float32)
    with torch.no_grad():
        inputs[3][:, [5, 40]] = decay
    exact = recurrent(*cast(inputs, torch.float64)[:5])
    assert_close(list(fused(*inputs[:5])), list(exact), 1e-5)
    grads = torch.autograd.grad(fused(*inputs[:5])[0].sin().sum(), inputs[:5])
    assert all(bool(x.isfinite().all()) for x in grads)


def test_what_is_not_a_number_stays_visible() -> None:
    inputs = [x.float() for x in make_inputs(1, 20, 1, 1, 16, 16)]
    inputs[3][:, 5] = torch.nan
    for tokens in (20, 10):
        o, state = fused(*(x[:, :tokens] for x in inputs[:5]), chunk_size=16)
        assert o[:, 5:].isnan().all() and state.isnan().all()
