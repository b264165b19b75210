"""Experts: the fast forms against the loop, with empty experts, in 16 bit, and with any strides."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from superblock.kernels.experts import mix_experts
from superblock.kernels.experts.backend import choose
from superblock.kernels.experts.sorted import HALF_ROWS, _plan


def make(N: int, D: int, F: int, E: int, k: int, *, used: int | None = None) -> tuple[list[Tensor], Tensor]:
    """x, gate_up, down, routing weights in float64 as leaves, and indices that use the first `used` experts."""
    generator = torch.Generator().manual_seed(N + E)
    shapes = ((N, D), (E, 2 * F, D), (E, D, F), (N, k))
    x, gate_up, down, weight = (torch.randn(s, generator=generator, dtype=torch.float64) for s in shapes)
    index = (
        torch.rand(N, used or E, generator=generator).topk(k, dim=1).indices
        if N
        else torch.empty(0, k, dtype=torch.long)
    )
    values = (x, gate_up * D**-0.5, down * F**-0.5, weight.abs())
    return [t.requires_grad_() for t in values], index


def outcome(leaves: list[Tensor], index: Tensor, backend: str) -> list[Tensor]:
    """Output and gradients of a fixed function of it."""
    x, gate_up, down, weight = leaves
    y, _ = mix_experts(x, gate_up, down, index, weight, backend=backend)
    return [y, *torch.autograd.grad(y.double().sin().sum(), leaves)]


def cast(leaves: list[Tensor], dtype: torch.dtype) -> list[Tensor]:
    return [t.detach().to(dtype).requires_grad_() for t in leaves]


def assert_near(actual: list[Tensor], expected: list[Tensor], bound: float) -> None:
    for name, a, b in zip(("y", "x", "gate_up", "down", "weight"), actual, expected, strict=True):
        assert (a.double() - b.double()).norm() <= bound * b.double().norm() + 1e-12, name


@settings(max_examples=25, deadline=None)
@given(N=st.integers(0, 40), E=st.integers(2, 6), k=st.integers(1, 2), used=st.integers(2, 6))
def test_sorted_equals_loop(N: int, E: int, k: int, used: int) -> None:
    leaves, index = make(N, 8, 16, E, k, used=min(used, E))
    assert_near(outcome(leaves, index, "sorted"), outcome(leaves, index, "loop"), 1e-12)


@pytest.mark.parametrize("backend", ["sorted", "grouped", "loop"])
@pytest.mark.parametrize("used", [5, 2])
def test_fp32_and_16_bit(backend: str, used: int) -> None:
    exact_leaves, index = make(60, 16, 24, 5, 2, used=used)
    exact = outcome(exact_leaves, index, "loop")
    assert_near(outcome(cast(exact_leaves, torch.float32), index, backend), exact, 1e-6)
    half = outcome(cast(exact_leaves, torch.bfloat16), index, backend)
    assert {t.dtype for t in half} == {torch.bfloat16}
    assert_near(half, exact, 2e-2)
    leaves = cast(exact_leaves, torch.float32)
    with torch.autocast("cpu", torch.bfloat16):
        mixed = outcome(leaves, index, backend)
    assert mixed[0].dtype == torch.bfloat16
    assert {t.dtype for t in mixed[1:]} == {torch.float32}
    assert_near(mixed, exact, 2e-2)
    for grad in mixed[2:4]:
        assert not grad[used:].any(), "an expert without tokens has a gradient"


@pytest.mark.parametrize("backend", ["sorted", "grouped"])
def test_strides_do_not_matter(backend: str) -> None:
    leaves, index = make(30, 16, 24, 4, 2)
    leaves = cast(leaves, torch.float32)
    plain = outcome(leaves, index, backend)
    strided = [t.detach().transpose(-1, -2).contiguous().transpose(-1, -2).requires_grad_() for t in leaves]
    assert not strided[0].is_contiguous()
    assert_near(outcome(strided, index.t().contiguous().t(), backend), plain, 1e-6)


def test_a_token_depends_on_itself_alone() -> None:
    leaves, index = make(20, 8, 16, 4, 2)
    leaves = cast(leaves, torch.float32)
    whole = mix_experts(leaves[0], leaves[1], leaves[2], index, leaves[3], backend="sorted")[0]
    one = mix_experts(leaves[0][7:8], leaves[1], leaves[2], index[7:8], leaves[3][7:8], backend="sorted")[0]
    torch.testing.assert_close(whole[7:8], one, rtol=1e-5, atol=1e-6)


def test_only_some_inputs_need_gradients() -> None:
    leaves, index = make(20, 8, 16, 4, 2)
    x, gate_up, down, weight = leaves
    frozen = mix_experts(x, gate_up.detach(), down.detach(), index, weight, backend="sorted")[0]
    grads = torch.autograd.grad(frozen.sin().sum(), (x, weight))
    want = outcome(leaves, index, "loop")
    torch.testing.assert_close(grads, (want[1], want[4]))
    with torch.no_grad():
        assert not mix_experts(*leaves[:3], index, weight, backend="sorted")[0].requires_grad


@settings(max_examples=25, deadline=None)
@given(N=st.integers(0, 300), E=st.integers(1, 5), multiple=st.sampled_from([1, HALF_ROWS]))
def test_plan_gives_every_choice_one_row(N: int, E: int, multiple: int) -> None:
    index = torch.randint(E, (N, 2), generator=torch.Generator().manual_seed(N))
    plan = _plan(index, E, multiple)
    assert all(end % multiple == 0 for end in plan.ends)
    assert len(plan.token_P) == plan.ends[-1]
    rows = plan.place_Nk.flatten()
    assert len(rows.unique()) == len(rows)
    for token in range(N):
        for choice in range(2):
            row = int(plan.place_Nk[token, choice])
            expert = int(index[token, choice])
            assert plan.ends[expert] <= row < plan.ends[expert + 1]
            assert plan.token_P[row] == token


def test_choice_of_backend() -> None:
    leaves, _ = make(4, 8, 16, 2, 1)
    assert choose("auto", *leaves[:3]) == "loop"  # float64
    single = cast(leaves, torch.float32)
    assert choose("auto", *single[:3]) == "sorted"
    assert choose("grouped", *single[:3]) == "grouped"
    with pytest.raises(RuntimeError, match=r"no torch\.float64 kernel; use 'sorted'"):
        choose("grouped", *leaves[:3])
    narrow = cast(make(4, 12, 16, 2, 1)[0], torch.bfloat16)
    with pytest.raises(RuntimeError, match=r"rows of 12 torch\.bfloat16 elements are not a multiple of 16 bytes"):
        choose("grouped", *narrow[:3])
    with pytest.raises(ValueError, match="'fast' is unknown"):
        choose("fast", *single[:3])
