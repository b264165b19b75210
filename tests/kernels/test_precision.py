"""Which dtype an operation computes in."""

import pytest
import torch

from superblock.kernels.precision import accumulation_dtype, compute_dtype, fp32_island


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float64])
def test_without_autocast_a_tensor_keeps_its_dtype(dtype: torch.dtype) -> None:
    assert compute_dtype(torch.zeros(1, dtype=dtype)) == dtype


def test_autocast_decides_except_for_float64_and_meta() -> None:
    with torch.autocast("cpu", torch.bfloat16):
        assert compute_dtype(torch.zeros(1)) == torch.bfloat16
        assert compute_dtype(torch.zeros(1, dtype=torch.float16)) == torch.bfloat16
        assert compute_dtype(torch.zeros(1, dtype=torch.float64)) == torch.float64
        assert compute_dtype(torch.zeros(1, device="meta")) == torch.float32
        with fp32_island("cpu"):
            assert compute_dtype(torch.zeros(1)) == torch.float32
            assert (torch.ones(2, 2) @ torch.ones(2, 2)).dtype == torch.float32
        assert (torch.ones(2, 2) @ torch.ones(2, 2)).dtype == torch.bfloat16
    with fp32_island("meta"):
        assert compute_dtype(torch.zeros(1, device="meta")) == torch.float32


def test_accumulation() -> None:
    assert accumulation_dtype(torch.zeros(1, dtype=torch.bfloat16)) == torch.float32
    assert accumulation_dtype(torch.zeros(1, dtype=torch.float64)) == torch.float64
