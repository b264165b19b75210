"""The C++ SwiGLU product at every level of this processor: against float64, strides, odd widths, extremes."""

from collections.abc import Iterator

import pytest
import torch
from torch import Tensor

from superblock.kernels.native import processor
from superblock.kernels.swiglu import native, reference_swiglu, swiglu

LEVELS = processor.levels()
if reason := native.LIBRARY.why_not():
    pytest.skip(reason, allow_module_level=True)


@pytest.fixture(params=LEVELS, scope="module", autouse=True)
def _level(request: pytest.FixtureRequest) -> Iterator[None]:
    library = native.LIBRARY.at(request.param)
    assert library.why_not() is None
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(native, "LIBRARY", library)
        yield


def draw(*shape: int, seed: int = 0) -> Tensor:
    return 4 * torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def compare(rows: Tensor, dy: Tensor) -> None:
    leaf, exact = rows.detach().requires_grad_(), rows.detach().double().requires_grad_()
    y, want = swiglu(leaf), reference_swiglu(exact)
    rtol = 4e-3 if rows.dtype == torch.bfloat16 else 2e-6
    assert y.dtype == rows.dtype
    torch.testing.assert_close(y.double(), want, rtol=rtol, atol=1e-6)
    [ours], [theirs] = torch.autograd.grad(y, leaf, dy), torch.autograd.grad(want, exact, dy.double())
    torch.testing.assert_close(ours.double(), theirs, rtol=rtol, atol=1e-5)


@pytest.mark.parametrize("shape", [(2,), (1, 256), (3, 7, 62), (0, 8), (2, 3, 5, 34)])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_against_float64(shape: tuple[int, ...], dtype: torch.dtype) -> None:
    compare(draw(*shape).to(dtype), draw(*shape[:-1], shape[-1] // 2, seed=1).to(dtype))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_strides_do_not_matter(dtype: torch.dtype) -> None:
    x = draw(4, 9, 50).to(dtype)
    for view in (x[..., 3:41], x[:, ::2], x.transpose(0, 1), x[:1].expand(3, -1, -1), x[:, :8].transpose(1, 2)):
        dy = draw(view.shape[-1] // 2, *view.shape[:-1], seed=2).to(dtype).movedim(0, -1)
        compare(view, dy)


def test_far_out() -> None:
    x = torch.tensor([[200.0, -200.0, 0.0, torch.nan, 2.0, 2.0, 2.0, 2.0]])
    y = swiglu(x)
    assert torch.equal(y[:, :3], torch.tensor([[400.0, 0.0, 0.0]])) and y[0, 3].isnan()


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_the_operator_describes_itself(dtype: torch.dtype) -> None:
    torch.library.opcheck(native.swiglu.registered, (draw(2, 3, 38).to(dtype).requires_grad_(),))
