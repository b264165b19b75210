"""RMSNorm against its formula, its gradients, and the dtypes it keeps."""

import pytest
import torch

from superblock.models.norm import RMSNorm, rms_norm


@pytest.mark.parametrize("weight_shape", [(6,), (3, 6)])
def test_formula_and_gradients(weight_shape: tuple[int, ...]) -> None:
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(2, 5, 3, 6, generator=generator, dtype=torch.float64, requires_grad=True)
    weight = torch.randn(weight_shape, generator=generator, dtype=torch.float64, requires_grad=True)
    expected = weight * x / (x.square().mean(-1, keepdim=True) + 1e-3).sqrt()
    torch.testing.assert_close(rms_norm(x, weight, 1e-3), expected)
    assert torch.autograd.gradcheck(lambda x, w: rms_norm(x, w, 1e-3), (x, weight))


def test_zeros_stay_finite() -> None:
    x = torch.zeros(2, 8, requires_grad=True)
    y = rms_norm(x, torch.ones(8), 1e-6)
    y.sum().backward()
    assert (y == 0).all()
    assert torch.isfinite(x.grad).all()  # type: ignore[arg-type]


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float64])
def test_dtype_of_the_input_comes_out(dtype: torch.dtype) -> None:
    norm = RMSNorm(64, 1e-6)
    torch.nn.init.ones_(norm.weight)
    x = torch.randn(4, 64, generator=torch.Generator().manual_seed(0)).to(dtype).requires_grad_()
    with torch.autocast("cpu", torch.bfloat16):
        y = norm(x)
    assert y.dtype == dtype
    exact = x.double() / x.double().square().mean(-1, keepdim=True).sqrt()
    tolerance = 4e-3 if dtype == torch.bfloat16 else 1e-6  # half of bf16's last bit
    torch.testing.assert_close(y.double(), exact, rtol=tolerance, atol=1e-5)
    y.sum().backward()
    assert x.grad is not None and x.grad.dtype == dtype and norm.weight.grad is not None
