"""Attention in C++: against attention written out in float64, at every level this processor has."""

import math
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from torch import Tensor

from superblock.config.model import AttentionConfig, DeltaNetConfig, ModelConfig, MoEConfig, MTPConfig
from superblock.kernels.attention import attend, choose, native_layer, native_positions, rotary
from superblock.kernels.attention import native as module
from superblock.kernels.attention.eager import eager
from superblock.kernels.attention.native import LIBRARY, attention, attention_layer, attention_positions
from superblock.kernels.attention.sdpa import sdpa
from superblock.kernels.native import processor
from superblock.kernels.norm import rms_norm
from superblock.kernels.packing import PackInfo
from superblock.models.language_model import build_model

pytestmark = pytest.mark.skipif(LIBRARY.why_not() is not None, reason=str(LIBRARY.why_not()))
LEVELS = processor.levels()
NAMES = ("output", "dq", "dk", "dv")


@pytest.fixture(params=LEVELS)
def level(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    library = LIBRARY.at(request.param)
    assert library.why_not() is None
    monkeypatch.setattr(module, "LIBRARY", library)
    yield request.param


def make(B: int, T: int, S: int, H: int, G: int, K: int, seed: int = 0) -> list[Tensor]:
    """Queries, keys, values and the output's gradient, exact in bf16."""
    generator = torch.Generator().manual_seed(seed)
    shapes = ((B, T, H, K), (B, S, G, K), (B, S, G, K), (B, T, H, K))
    return [torch.randn(s, generator=generator).bfloat16().double() for s in shapes]


def documents(T: int, rows: int, seed: int = 0) -> PackInfo:
    starts = torch.rand(rows, T, generator=torch.Generator().manual_seed(seed)) < 0.1
    return PackInfo.from_doc_ids(starts.cumsum(1))


def everything(form: Callable[..., Tensor], tensors: list[Tensor], dtype: torch.dtype, **place: Any) -> list[Tensor]:
    """The output and the gradients of queries, keys and values."""
    place = {"pack": None, "window": None, "query_start": 0} | place
    q, k, v = (x.detach().to(dtype).requires_grad_() for x in tensors[:3])
    o = form(q, k, v, **place)
    assert o.dtype == dtype
    return [o.detach(), *torch.autograd.grad(o, (q, k, v), tensors[3].to(dtype))]


def error(actual: Tensor, exact: Tensor) -> float:
    return float((actual.double() - exact.double()).norm() / (exact.double().norm() + 1e-30))


def assert_close(actual: list[Tensor], exact: list[Tensor], bound: float) -> None:
    for name, a, b in zip(NAMES, actual, exact, strict=True):
        assert a.shape == b.shape and a.isfinite().all(), name
        scale = float(b.double().norm()) + 0.1 * math.sqrt(b.numel())  # gradients of a single key are zero
        assert float((a.double() - b).norm()) <= bound * scale, name


CASES = {
    "square": ((2, 130, 130, 4, 2, 64), {}),
    "one token": ((3, 1, 1, 2, 1, 16), {}),
    "three heads of 48": ((1, 65, 65, 6, 2, 48), {}),
    "one kv head of 256": ((1, 37, 37, 5, 1, 256), {}),
    "many short rows": ((9, 5, 5, 2, 2, 80), {}),
    "window": ((2, 150, 150, 4, 2, 32), {"window": 17}),
    "window of one": ((1, 40, 40, 2, 1, 32), {"window": 1}),
    "documents": ((2, 150, 150, 4, 2, 64), {"pack": documents(150, 2)}),
    "documents and window": ((2, 150, 150, 2, 1, 32), {"pack": documents(150, 2), "window": 9}),
    "later queries": ((2, 33, 190, 4, 1, 64), {"query_start": 157}),
    "unused keys": ((1, 20, 190, 4, 2, 64), {"query_start": 70, "window": 30}),
    "decoding": ((2, 1, 300, 4, 2, 64), {"query_start": 299}),
}


@pytest.mark.parametrize("case", CASES)
def test_against_float64(level: str, case: str) -> None:
    sizes, place = CASES[case]
    tensors = make(*sizes)
    exact = everything(eager, tensors, torch.float64, **place)
    assert_close(everything(module.native_attention, tensors, torch.float32, **place), exact, 2e-6)
    assert_close(everything(module.native_attention, tensors, torch.bfloat16, **place), exact, 6e-3)


@pytest.mark.parametrize("rise", ["at once", "slowly", "falling", "in one column"])
@pytest.mark.parametrize("packed", [False, True])
def test_scores_that_rise_from_block_to_block(level: str, rise: str, packed: bool) -> None:
    """Weights are kept relative to the largest score of blocks before: the next may be far above it, or just not."""
    T = 230
    q, k, v, dy = make(2, T, T, 2, 1, 32)
    strength = {
        "at once": torch.where(torch.arange(T) < 150, 1.0, 60.0),
        "slowly": torch.arange(T) / 8,
        "falling": (T - torch.arange(T)) / 8,
        "in one column": torch.ones(T),
    }[rise].double()
    k = k + strength[:, None, None]
    q = q + 1
    if rise == "in one column":
        q[:, 200] *= 40
    tensors = [x.bfloat16().double() for x in (q, k, v, dy)]
    place = {"pack": documents(T, 2)} if packed else {}
    exact = everything(eager, tensors, torch.float64, **place)
    for dtype, bound in ((torch.float32, 2e-6), (torch.bfloat16, 6e-3)):
        o, dq, dk, dv = everything(module.native_attention, tensors, dtype, **place)
        assert max(error(*pair) for pair in zip((o, dk, dv), (exact[0], *exact[2:]), strict=True)) < bound
        if dtype == torch.float32:  # in bf16 the gradients of scores are rounded, and keys so far from 0 multiply that
            assert error(dq, exact[1]) < 3e-5


@settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    T=st.integers(1, 90),
    before=st.integers(0, 70),
    heads=st.sampled_from([(1, 1), (4, 2), (3, 1), (8, 2)]),
    K=st.sampled_from([16, 32, 96]),
    window=st.none() | st.integers(1, 80),
    packed=st.booleans(),
)
def test_any_size(T: int, before: int, heads: tuple[int, int], K: int, window: int | None, packed: bool) -> None:
    before = 0 if packed else before
    tensors = make(2, T, T + before, *heads, K, seed=T)
    place = {"pack": documents(T, 2, seed=T) if packed else None, "window": window, "query_start": before}
    exact = everything(eager, tensors, torch.float64, **place)
    assert_close(everything(module.native_attention, tensors, torch.float32, **place), exact, 3e-6)


@pytest.mark.parametrize("kind", ["large", "one key", "far below zero", "equal"])
def test_extreme_scores(level: str, kind: str) -> None:
    """No worse than torch's own form where weights are almost one-hot, vanish, or are all the same."""
    q, k, v, dy = make(1, 140, 140, 4, 2, 64)
    if kind == "large":
        q = q * 40
    elif kind == "one key":
        k[:, 3] = 50 * q[:, 7, ::2]
    elif kind == "far below zero":
        q, k = q.abs() * 30, -k.abs()
    else:
        k = k[:, :1].expand_as(k)
    exact = everything(eager, [q, k, v, dy], torch.float64)
    for dtype, slack in ((torch.float32, 2e-6), (torch.bfloat16, 4e-3)):
        ours = everything(module.native_attention, [q, k, v, dy], dtype)
        theirs = everything(sdpa, [q, k, v, dy], dtype)
        for name, a, b, c in zip(NAMES, ours, theirs, exact, strict=True):
            size = float(c.norm()) + 1e-2 * math.sqrt(c.numel())
            assert float((a - c).norm()) <= 1.5 * float((b - c).norm()) + slack * size, (name, dtype)


def test_what_is_not_a_number_stays_visible() -> None:
    q, k, v, _ = (x.float() for x in make(1, 40, 40, 2, 1, 32))
    k[0, 20] = math.nan
    o = attention(q, k, v, None, 0, 0)[0]
    assert o[:, :20].isfinite().all() and o[:, 20:].isnan().all()
    rows = torch.ones(1, 40, 6, 32)
    rows[0, 20, 4] = math.nan  # a gate
    y = attention_layer(rows, *torch.ones(2, 32), torch.arange(40)[None], False, 2, 1, 0, 4, 1e4, 1e-6)[0]
    assert torch.equal(y.isnan().any(-1).nonzero(), torch.tensor([[0, 20, 0]]))


def test_documents_that_began_before_the_row() -> None:
    q, k, v, _ = (x.float() for x in make(1, 40, 40, 2, 1, 32))
    y = attention(q, k, v, torch.arange(1000, 1040)[None], 0, 0)[0]
    assert torch.equal(y, attention(q, k, v, None, 0, 0)[0])


def test_strides(level: str) -> None:
    """Slices of a projection, transposed and expanded tensors, and gradients of such outputs."""
    for dtype in (torch.float32, torch.bfloat16):
        rows = torch.randn(2, 70, 8, 64, generator=torch.Generator().manual_seed(1)).to(dtype)
        q, k, v = rows[:, :, :4], rows[:, :, 4:6], rows[:, :, 6:]
        expected = attention(q.contiguous(), k.contiguous(), v.contiguous(), None, 0, 0)[0]
        assert torch.equal(attention(q, k, v, None, 0, 0)[0], expected)
        views = [x.transpose(1, 2).contiguous().transpose(1, 2) for x in (q, k, v)]
        assert torch.equal(attention(*views, None, 0, 0)[0], expected)
        last = [x.permute(0, 2, 3, 1).contiguous().permute(0, 3, 1, 2) for x in (q, k, v)]
        assert torch.equal(attention(*last, None, 0, 0)[0], expected)
        one, many = k[:, :, :1].expand(-1, -1, 2, -1), k[:, :, :1].repeat(1, 1, 2, 1)
        assert torch.equal(attention(q, one, v, None, 0, 0)[0], attention(q, many, v, None, 0, 0)[0])
        leaves = [x.detach().requires_grad_() for x in (q, k, v)]
        grads = [
            torch.autograd.grad(attention(*leaves, None, 0, 0)[0], leaves, dy)
            for dy in (torch.ones(()).to(dtype).expand(2, 70, 4, 64), torch.ones(2, 70, 4, 64, dtype=dtype))
        ]
        assert all(torch.equal(a, b) for a, b in zip(*grads, strict=True))


def layer_of_steps(rows: Tensor, weights: list[Tensor], pack: PackInfo, window: int | None, fraction: float) -> Tensor:
    """`native_layer` in PyTorch, for four query and two kv heads."""
    normed = rms_norm(rows[:, :, :6], torch.cat([weights[0].expand(4, -1), weights[1].expand(2, -1)]), 1e-6)
    turned = rotary(normed, pack.position_ids_BT, fraction=fraction, theta=1e4)
    o = eager(turned[:, :, :4], turned[:, :, 4:], rows[:, :, 6:8], pack=pack, window=window, query_start=0)
    return o * rows[:, :, 8:].sigmoid() if rows.shape[2] > 8 else o


@pytest.mark.parametrize("gated", [True, False])
@pytest.mark.parametrize(("fraction", "window", "packed"), [(0.25, None, True), (1.0, 30, False), (0.0, None, False)])
def test_whole_layer(level: str, gated: bool, fraction: float, window: int | None, packed: bool) -> None:
    generator = torch.Generator().manual_seed(2)
    rows = torch.randn(2, 90, 12 if gated else 8, 64, generator=generator).bfloat16().double()
    weights = [torch.rand(64, generator=generator).double() + 0.5 for _ in range(2)]
    dy = torch.randn(2, 90, 4, 64, generator=generator).bfloat16().double()
    pack = documents(90, 2) if packed else PackInfo.dense(2, 90)
    leaves = [x.requires_grad_() for x in (rows, *weights)]
    exact = layer_of_steps(rows, weights, pack, window, fraction)
    wanted = torch.autograd.grad(exact, leaves, dy)
    for dtype, bound in ((torch.float32, 3e-6), (torch.bfloat16, 8e-3)):
        mine = [rows.detach().to(dtype).requires_grad_(), *(w.detach().float().requires_grad_() for w in weights)]
        place = {"heads": (4, 2), "fraction": fraction, "theta": 1e4, "eps": 1e-6}
        o = native_layer(*mine, pack, window=window, **place)
        assert o.dtype == dtype
        grads = torch.autograd.grad(o, mine, dy.to(dtype))
        assert [g.dtype for g in grads] == [dtype, torch.float32, torch.float32]
        assert error(o.detach(), exact.detach()) < bound
        for a, b in zip(grads, wanted, strict=True):
            assert error(a, b) < bound
        # the same steps one after the other, as a cache takes them
        with torch.no_grad():
            turned = native_positions(*mine, pack, **place)
            o2 = attend(
                turned[:, :, :4], turned[:, :, 4:], mine[0][:, :, 6:8], pack=pack, window=window, backend="native"
            )
            o2 = o2 * mine[0][:, :, 8:].sigmoid() if gated else o2
        assert error(o2, exact.detach()) < bound


def test_threads_and_repetition_give_the_same_bits() -> None:
    """Of whatever the number of threads as long as every thread has kv heads enough; for a fixed number always."""
    for sizes in ((4, 100, 100, 4, 2, 32), (1, 200, 200, 2, 1, 32)):
        q, k, v, dy = (x.bfloat16() for x in make(*sizes))
        seen = []
        for threads in (1, 2, 2):
            torch.set_num_threads(threads)
            seen.append(everything(module.native_attention, [q, k, v, dy], torch.bfloat16))
        assert all(torch.equal(a, b) for a, b in zip(seen[1], seen[2], strict=True))
        if sizes[0] == 4:
            assert all(torch.equal(a, b) for a, b in zip(seen[0], seen[1], strict=True))
        else:  # keys are split among threads: sums in another order
            assert all(error(a, b) < 3e-3 for a, b in zip(seen[0], seen[1], strict=True))


def test_operators() -> None:
    q, k, v, _ = (x.float().requires_grad_() for x in make(2, 20, 20, 4, 2, 16))
    positions = documents(20, 2).position_ids_BT
    check: Any = torch.library.opcheck
    check(attention.registered, (q, k, v, positions, 5, 0))
    check(attention.registered, (q, k, v, None, 0, 0))
    for heads in (8, 12):
        rows = torch.randn(2, 20, heads, 16, requires_grad=True)
        weights = [torch.ones(16, requires_grad=True) for _ in range(2)]
        check(attention_layer.registered, (rows, *weights, positions, True, 4, 2, 0, 4, 1e4, 1e-6))
    check(
        attention_positions.registered, (rows.detach(), *(w.detach() for w in weights), positions, 4, 2, 4, 1e4, 1e-6)
    )


def test_wrong_use() -> None:
    q, k, v, _ = (x.float() for x in make(1, 20, 20, 4, 2, 16))
    for arguments in ((q, k.bfloat16(), v), (q, k[:, :, :1], v), (q[:, :, :3], k, v), (q, k[:, :10], v[:, :10])):
        with pytest.raises(ValueError, match=r"attention in C\+\+"):
            attention(*arguments, None, 0, 0)
    with pytest.raises(ValueError, match="heads of 16, 32, ... 256 dimensions, not of 24"):
        attention(*(torch.randn(1, 8, 2, 24) for _ in range(3)), None, 0, 0)
    with pytest.raises(ValueError, match="position -1 is negative"):
        rows = torch.randn(1, 3, 8, 16)
        attention_layer(rows, *torch.ones(2, 16), torch.tensor([[0, 1, -1]]), False, 4, 2, 0, 4, 1e4, 1e-6)


def test_choice() -> None:
    assert choose("auto", "cpu") == choose("native", "cpu", dtype=torch.float32, head_dim=256) == "native"
    assert choose("auto", "cpu", head_dim=24) == choose("auto", "cpu", dtype=torch.float64) == "sdpa"
    with pytest.raises(RuntimeError, match="'native' cannot run: it computes in float32 or bfloat16, not in float64"):
        choose("native", "cpu", dtype=torch.float64)
    with pytest.raises(RuntimeError, match="'native' cannot run: it has no kernels for cuda"):
        choose("native", "cuda")


def losses(backend: str, copy_rows: bool, monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """Of three steps of a small whole model in fp32."""
    if copy_rows:  # rows whose last dimension is not contiguous reach the kernel
        whole = attention_layer

        def strided(rows: Tensor, *rest: Any) -> tuple[Tensor, ...]:
            result: tuple[Tensor, ...] = whole(rows.permute(0, 2, 3, 1).contiguous().permute(0, 3, 1, 2), *rest)
            return result

        monkeypatch.setattr(module, "attention_layer", strided)
    config = ModelConfig(
        d_model=64, vocab_size=64, num_superblocks=2, max_sequence_length=96,
        gdn=DeltaNetConfig(num_key_heads=2, num_value_heads=2, key_dim=16, value_dim=16),
        gqa=AttentionConfig(num_heads=4, num_kv_heads=2, head_dim=32, backend=backend),
        moe=MoEConfig(num_experts=4, top_k=2, d_expert=32, d_shared=32), mtp=MTPConfig(last="block", d_block=32),
    )  # fmt: skip
    model: Any = build_model(config, seed=0)
    ids = torch.randint(0, 64, (2, 97), generator=torch.Generator().manual_seed(0))
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    seen = []
    for _ in range(3):
        optimizer.zero_grad()
        logits = model(ids[:, :-1], documents(96, 2)).logits_BTV
        loss = torch.nn.functional.cross_entropy(logits.flatten(0, 1), ids[:, 1:].flatten())
        loss.backward()
        optimizer.step()
        seen.append(float(loss.detach()))
    return seen


@pytest.mark.parametrize("copy_rows", [False, True])
def test_losses_of_a_whole_model(copy_rows: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    expected = losses("sdpa", False, monkeypatch)
    assert losses("native", copy_rows, monkeypatch) == pytest.approx(expected, rel=1e-5)
    assert expected[2] < expected[0]
