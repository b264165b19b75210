"""The C++ convolution: against shifted products in float64, at every level this processor has."""

from collections.abc import Iterator

import pytest
import torch
from torch import Tensor

from superblock.kernels.delta_rule import causal_conv
from superblock.kernels.delta_rule import native_convolution as module
from superblock.kernels.delta_rule.convolution import shifted_conv
from superblock.kernels.delta_rule.native_convolution import LIBRARY, fused_conv
from superblock.kernels.native import processor
from superblock.kernels.packing import PackInfo

pytestmark = pytest.mark.skipif(LIBRARY.why_not() is not None, reason=str(LIBRARY.why_not()))
LEVELS = processor.levels()
NAMES = ("y", "last", "x", "weight", "state")


@pytest.fixture(params=LEVELS)
def level(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    library = LIBRARY.at(request.param)
    assert library.why_not() is None
    monkeypatch.setattr(module, "LIBRARY", library)
    yield request.param


def make(B: int, T: int, C: int, W: int) -> list[Tensor]:
    generator = torch.Generator().manual_seed(T)
    return [torch.randn(s, generator=generator).bfloat16().double() for s in ((B, T, C), (C, W), (B, W - 1, C))]


def everything(form, tensors: list[Tensor], dtype: torch.dtype, pack: PackInfo | None = None) -> list[Tensor]:  # type: ignore[no-untyped-def]
    """Results and gradients; the weights stay fp32 beside bf16 inputs, as in the model."""
    x, weight, *state = (t.detach().to(dtype).requires_grad_() for t in tensors)
    if dtype == torch.bfloat16:
        weight = weight.detach().float().requires_grad_()
    y, last = form(x, weight, pack=pack, state_BWC=state[0] if state else None)
    generator = torch.Generator().manual_seed(5)
    loss = sum((o.double() * torch.randn(o.shape, generator=generator, dtype=torch.float64)).sum() for o in (y, last))
    return [y, last, *torch.autograd.grad(loss, (x, weight, *state))]


def assert_close(actual: list[Tensor], exact: list[Tensor], bound: float) -> None:
    for name, a, b in zip(NAMES, actual, exact, strict=False):
        assert float((a.double() - b).detach().norm()) <= bound * float(b.detach().norm()), name


@pytest.mark.parametrize(
    ("T", "C", "W"), [(37, 48, 4), (1, 16, 4), (2, 144, 4), (16, 128, 3), (33, 16, 1), (70, 272, 16)]
)
@pytest.mark.parametrize("packed", [False, True])
def test_against_shifts_in_float64(level: str, T: int, C: int, W: int, packed: bool) -> None:
    tensors = make(2, T, C, W)
    pack = None
    if packed:
        generator = torch.Generator().manual_seed(3)
        pack = PackInfo.from_doc_ids((torch.rand(2, T, generator=generator) < 0.2).cumsum(1))
    for inputs in (tensors, tensors[:2]):
        exact = everything(shifted_conv, inputs, torch.float64, pack)
        assert_close(everything(fused_conv, inputs, torch.float32, pack), exact, 1e-6)
        assert_close(everything(fused_conv, inputs, torch.bfloat16, pack), exact, 6e-3)


def test_reads_slices_and_any_strides(level: str) -> None:
    wide = torch.randn(3, 40, 80, generator=torch.Generator().manual_seed(0))
    weight = make(1, 1, 48, 4)[1]
    inputs = (
        wide[..., 16:64],
        wide[:1, :, :48].expand(3, -1, -1),
        wide[..., :48].transpose(0, 1),
        torch.randn(3, 48, 40).transpose(1, 2),
    )
    for x in inputs:
        assert_close(
            everything(fused_conv, [x, weight], torch.float32),
            everything(shifted_conv, [x, weight], torch.float64),
            1e-6,
        )
    x = wide[..., 16:64]
    y = fused_conv(x, weight.float())[0]
    assert torch.equal(y, fused_conv(x.contiguous(), weight.float())[0])
    assert y.is_contiguous()


def test_the_same_bits_for_any_number_of_threads() -> None:
    tensors = make(3, 90, 272, 4)
    before = torch.get_num_threads()
    results = []
    for threads in (1, 2, 3):
        torch.set_num_threads(threads)
        results.append(everything(fused_conv, tensors, torch.float32))
    torch.set_num_threads(before)
    assert all(torch.equal(a, b) for other in results[1:] for a, b in zip(results[0], other, strict=True))


def test_extreme_values_stay_finite() -> None:
    tensors = make(1, 20, 16, 4)
    tensors[0] *= 1e15
    results = everything(fused_conv, tensors, torch.float32)
    assert all(bool(x.isfinite().all()) for x in results)
    assert_close(results[:2], everything(shifted_conv, tensors, torch.float64)[:2], 1e-6)


def test_operator_contract_and_choice() -> None:
    x, weight, state = (t.float().requires_grad_() for t in make(1, 20, 16, 4))
    ids = torch.tensor([0] * 7 + [1] * 13, dtype=torch.int32)[None]
    for args in ((x, weight, state, ids), (x, weight, None, None)):
        torch.library.opcheck(torch.ops.superblock.causal_conv.default, args)
    assert torch.equal(causal_conv(x, weight)[0], fused_conv(x, weight)[0])
    for other in (x.double(), x[..., :12], x.half()):
        assert module.unfit(other, weight) is not None


def test_what_does_not_belong_together_is_refused() -> None:
    x, weight, state = (t.float() for t in make(2, 20, 16, 4))
    pack = PackInfo.from_doc_ids(torch.tensor([[0] * 7 + [1] * 13]))
    for wrong in (
        lambda: fused_conv(x, weight[:8]),
        lambda: fused_conv(x, weight, state_BWC=state[:1]),
        lambda: fused_conv(x, weight, state_BWC=state[:, 1:]),
        lambda: fused_conv(x, weight, pack=pack),
    ):
        with pytest.raises(ValueError, match=r"convolution in C\+\+: (weights|a state|documents) "):
            wrong()
