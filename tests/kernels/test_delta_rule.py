"""The gated delta rule: both forms against each other, against transformers, and across document boundaries."""

from collections.abc import Callable
from itertools import pairwise

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from superblock.kernels.delta_rule import gated_delta_rule, native
from superblock.kernels.delta_rule.backend import choose
from superblock.kernels.delta_rule.reference import recurrent_states
from superblock.kernels.packing import PackInfo

NAMES = ("q", "k", "v", "g", "beta", "state")


def error(actual: Tensor, expected: Tensor) -> float:
    actual, expected = actual.detach().double(), expected.detach().double()
    return float((actual - expected).norm() / expected.norm().clamp_min(1e-30))


def make_inputs(
    B: int, T: int, G: int, H: int, K: int, V: int, *, decay: float = 1.0, beta: float = 2.0, seed: int = 0
) -> list[Tensor]:
    """q, k, v, g, beta and an initial state in float64, as leaves."""
    generator = torch.Generator().manual_seed(seed)
    shapes = ((B, T, G, K), (B, T, G, K), (B, T, H, V), (B, T, H), (B, T, H), (B, H, K, V))
    q, k, v, g, b, state = (torch.randn(s, generator=generator, dtype=torch.float64) for s in shapes)
    values = (
        q,
        k,
        v,
        -decay * torch.rand(g.shape, generator=generator, dtype=torch.float64),
        beta * b.sigmoid(),
        state,
    )
    return [x.requires_grad_() for x in values]


def cast(inputs: list[Tensor], dtype: torch.dtype) -> list[Tensor]:
    return [x.detach().to(dtype).requires_grad_() for x in inputs]


def pack_of(lengths: list[int], rows: int = 1) -> PackInfo:
    ids = torch.repeat_interleave(torch.arange(len(lengths)), torch.tensor(lengths))
    return PackInfo.from_doc_ids(ids.expand(rows, -1))


def run(inputs: list[Tensor], backend: str, **options: object) -> tuple[Tensor, Tensor]:
    return gated_delta_rule(*inputs[:5], initial_state=inputs[5], backend=backend, **options)  # type: ignore[arg-type]


def gradients(inputs: list[Tensor], backend: str, **options: object) -> tuple[Tensor, ...]:
    """Gradients of a fixed random function of outputs and final state."""
    o, state = run(inputs, backend, **options)
    generator = torch.Generator().manual_seed(9)
    weights = [torch.randn(x.shape, generator=generator, dtype=torch.float64).to(x.dtype) for x in (o, state)]
    return torch.autograd.grad((o * weights[0]).sum() + (state * weights[1]).sum(), inputs)


@pytest.mark.parametrize("shape", [(2, 100, 2, 4, 16, 24), (1, 257, 2, 2, 64, 128)])
@pytest.mark.parametrize("beta", [1.0, 2.0])
def test_against_transformers(shape: tuple[int, ...], beta: float) -> None:
    peer = pytest.importorskip("transformers.models.qwen3_next.modeling_qwen3_next")
    q, k, v, g, b, _ = cast(make_inputs(*shape, beta=beta), torch.float32)
    repeated = [x.repeat_interleave(v.shape[2] // q.shape[2], dim=2) for x in (q, k)]
    forms: tuple[tuple[str, Callable[..., tuple[Tensor, Tensor]], float], ...] = (
        ("recurrent", peer.torch_recurrent_gated_delta_rule, 1e-6),
        ("chunked", peer.torch_chunk_gated_delta_rule, 5e-6),
    )
    for backend, theirs, bound in forms:
        o, state = gated_delta_rule(q, k, v, g, b, backend=backend)
        for their_form, slack in ((theirs, bound), (forms[0][1], 5e-6)):
            their_o, their_state = their_form(*repeated, v, g, b, output_final_state=True, use_qk_l2norm_in_kernel=True)
            assert error(o, their_o) < slack
            assert error(state, their_state) < slack


@pytest.mark.parametrize("decay", [0.1, 1.0, 16.0])
@pytest.mark.parametrize("packed", [False, True])
def test_gradients_equal_autograd_of_the_recurrence_in_float64(decay: float, packed: bool) -> None:
    inputs = make_inputs(2, 101, 2, 4, 16, 24, decay=decay)
    pack = pack_of([10, 22, 32, 7, 30], rows=2) if packed else None
    exact = gradients(inputs, "recurrent", pack=pack)
    for dtype, bound in ((torch.float64, 1e-12), (torch.float32, 1e-5)):
        for name, ours, want in zip(NAMES, gradients(cast(inputs, dtype), "chunked", pack=pack), exact, strict=True):
            assert error(ours, want) < bound * (5 if name == "g" else 1), name


def test_stable_for_nearly_equal_keys_written_twice_over() -> None:
    q, k, v, g, beta, state = make_inputs(1, 130, 2, 2, 32, 32, decay=0.01)
    hard = cast([q, k[:, :1] + 0.05 * k, v, g, torch.full_like(beta, 1.95), state], torch.float32)
    same = cast(hard, torch.float64)
    assert error(run(hard, "chunked")[0], run(same, "recurrent")[0]) < 1e-5
    for name, ours, want in zip(NAMES, gradients(hard, "chunked"), gradients(same, "recurrent"), strict=True):
        assert error(ours, want) < 2e-5, name


@settings(max_examples=40, deadline=None)
@given(data=st.data())
def test_forms_agree_on_any_shape_and_boundaries(data: st.DataObject) -> None:
    lengths = data.draw(st.lists(st.integers(1, 40), min_size=1, max_size=5))
    B, G, R = data.draw(st.integers(1, 2)), data.draw(st.integers(1, 2)), data.draw(st.integers(1, 3))
    K, V = data.draw(st.integers(1, 9)), data.draw(st.integers(1, 9))
    size = data.draw(st.sampled_from([8, 16, 32, 64]))
    inputs = make_inputs(B, sum(lengths), G, G * R, K, V, decay=data.draw(st.sampled_from([0.0, 0.5, 8.0])))
    pack = pack_of(lengths, B)
    for ours, want in zip(
        gradients(inputs, "chunked", pack=pack, chunk_size=size), gradients(inputs, "recurrent", pack=pack), strict=True
    ):
        torch.testing.assert_close(ours, want, rtol=1e-8, atol=1e-10)
    for got, want in zip(
        run(inputs, "chunked", pack=pack, chunk_size=size), run(inputs, "recurrent", pack=pack), strict=True
    ):
        torch.testing.assert_close(got, want, rtol=1e-9, atol=1e-11)


@pytest.mark.parametrize("backend", ["chunked", "recurrent"])
def test_packed_documents_equal_separate_ones(backend: str) -> None:
    bounds = [0, 10, 64, 70, 100]  # inside a chunk and at its edges, for chunks of 32 and 64
    inputs = cast(make_inputs(1, 100, 2, 4, 16, 24), torch.float32)
    o, state = run(inputs, backend, pack=pack_of([b - a for a, b in pairwise(bounds)]))
    for begin, end in pairwise(bounds):
        first = inputs[5] if begin == 0 else None
        alone, last = gated_delta_rule(*(x[:, begin:end] for x in inputs[:5]), initial_state=first, backend=backend)
        assert error(o[:, begin:end], alone) < 5e-6
    assert error(state, last) < 5e-6


def test_rows_have_their_own_boundaries() -> None:
    inputs = cast(make_inputs(2, 60, 1, 2, 8, 8), torch.float32)
    rows = [pack_of([7, 53]), pack_of([41, 19])]
    both = PackInfo.from_doc_ids(torch.cat([p.doc_ids_BT for p in rows]))
    o, state = run(inputs, "chunked", pack=both)
    for b, pack in enumerate(rows):
        alone, last = run([x[b : b + 1] for x in inputs], "chunked", pack=pack)
        assert error(o[b : b + 1], alone) < 1e-6
        assert error(state[b : b + 1], last) < 1e-6


@pytest.mark.parametrize("first", ["chunked", "recurrent"])
@pytest.mark.parametrize("second", ["chunked", "recurrent"])
def test_continues_from_a_state(first: str, second: str) -> None:
    inputs = cast(make_inputs(2, 100, 2, 4, 16, 24), torch.float32)
    whole, final = run(inputs, "chunked")
    head, state = run([*(x[:, :37] for x in inputs[:5]), inputs[5]], first)
    tail, last = run([*(x[:, 37:] for x in inputs[:5]), state], second)
    assert error(torch.cat([head, tail], dim=1), whole) < 5e-6
    assert error(last, final) < 5e-6


@pytest.mark.parametrize("backend", ["chunked", "recurrent"])
def test_the_past_does_not_see_the_future(backend: str) -> None:
    inputs = cast(make_inputs(1, 70, 2, 2, 8, 8), torch.float32)
    changed = [x.detach().clone() for x in inputs]
    for x in changed[:5]:
        x[:, 41:] *= 0.5
    a, b = run(inputs, backend)[0], run(changed, backend)[0]
    assert torch.equal(a[:, :41], b[:, :41])
    assert not torch.equal(a[:, 41:], b[:, 41:])


def test_strides_do_not_matter() -> None:
    inputs = cast(make_inputs(2, 70, 2, 4, 16, 24), torch.float32)
    order = ((0, 2, 3, 1), (0, 2, 3, 1), (0, 2, 3, 1), (0, 2, 1), (0, 2, 1), (0, 1, 3, 2))  # time or width innermost
    strided = []
    for x, dims in zip(inputs, order, strict=True):
        back = [dims.index(d) for d in range(x.dim())]
        strided.append(x.detach().permute(dims).contiguous().permute(back).requires_grad_())
    assert not strided[0].is_contiguous()
    assert all(torch.equal(a, b) for a, b in zip(run(strided, "chunked"), run(inputs, "chunked"), strict=True))
    for a, b in zip(gradients(strided, "chunked"), gradients(inputs, "chunked"), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("shape", [(1, 8, 1, 1, 4, 4), (2, 33, 1, 2, 4, 4)])
def test_inputs_are_left_as_they_are(shape: tuple[int, ...]) -> None:
    inputs = cast(make_inputs(*shape), torch.float32)
    before = [x.detach().clone() for x in inputs]
    gradients(inputs, "chunked")
    assert all(torch.equal(x, y) for x, y in zip(inputs, before, strict=True))


@pytest.mark.parametrize("backend", ["chunked", "recurrent"])
def test_autocast_changes_nothing(backend: str) -> None:
    inputs = cast(make_inputs(2, 40, 2, 4, 16, 24), torch.float32)
    plain = run(inputs, backend)
    with torch.autocast("cpu", torch.bfloat16):
        mixed = run(inputs, backend)
        inside = gradients(inputs, "chunked")
    assert all(x.dtype == torch.float32 and torch.equal(x, y) for x, y in zip(mixed, plain, strict=True))
    grads = [torch.autograd.grad(o.sin().sum(), inputs[:5]) for o in (mixed[0], plain[0])]
    assert all(torch.equal(x, y) for x, y in zip(*grads, strict=True))
    assert all(torch.equal(x, y) for x, y in zip(inside, gradients(inputs, "chunked"), strict=True))


def test_16_bit_inputs_are_computed_in_fp32() -> None:
    half = cast(make_inputs(2, 70, 2, 4, 16, 24), torch.bfloat16)
    o, state = run(half, "chunked")
    assert o.dtype == state.dtype == torch.float32
    exact = run(cast(half, torch.float64), "recurrent")
    assert error(o, exact[0]) < 5e-6
    assert error(state, exact[1]) < 5e-6
    ours, want = gradients(half, "chunked"), gradients(cast(half, torch.float64), "recurrent")
    for name, a, b in zip(NAMES, ours, want, strict=True):
        assert a.dtype == torch.bfloat16
        assert error(a, b) < 5e-3, name


def test_gradient_through_the_state_alone_and_the_output_alone() -> None:
    inputs = make_inputs(1, 40, 1, 2, 8, 8)
    for part in (0, 1):
        ours, want = (
            torch.autograd.grad(run(inputs, b)[part].sin().sum(), inputs, materialize_grads=True)
            for b in ("chunked", "recurrent")
        )
        for got, exact in zip(ours, want, strict=True):
            torch.testing.assert_close(got, exact, rtol=1e-9, atol=1e-12)


def test_without_gradients() -> None:
    inputs = cast(make_inputs(1, 40, 1, 2, 8, 8), torch.float32)
    with torch.no_grad():
        o, _ = run(inputs, "chunked")
    assert not o.requires_grad
    assert torch.equal(o, run(inputs, "chunked")[0])


def test_states_after_every_token() -> None:
    *inputs, _ = make_inputs(1, 6, 1, 2, 4, 4)
    states = recurrent_states(*inputs)
    for t in range(6):
        _, state = gated_delta_rule(*(x[:, : t + 1] for x in inputs), backend="recurrent")
        assert torch.equal(states[:, t], state)


def test_choice_of_backend(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(native, "unfit", lambda *_: "it is off")
    one, two = (torch.zeros(1, T, 1, 16) for T in (1, 2))
    assert choose("auto", one, one) == "recurrent"
    assert choose("auto", one, one, training=True) == "chunked"
    assert choose("auto", two, two) == "chunked"
    with pytest.raises(ValueError, match="'fast' is unknown; choose one of auto, native, chunked, recurrent, fla"):
        choose("fast", two, two)
    with pytest.raises(RuntimeError, match="'native' cannot run: it is off; use 'chunked'"):
        choose("native", two, two)
    with pytest.raises(RuntimeError, match="'fla' cannot run: it has no kernels for cpu; use 'chunked'"):
        choose("fla", two, two)
    monkeypatch.undo()
    assert choose("auto", two.double(), two.double()) == "chunked"
    assert choose("auto", two[..., :12], two) == "chunked"
    assert choose("auto", two, two, chunk_size=8) == "chunked"
    assert choose("auto", two.to("meta"), two.to("meta")) == "chunked"
