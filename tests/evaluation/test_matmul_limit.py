"""The limit that speed is compared with."""

import torch

from superblock.evaluation import matmul_limit


def test_it_is_measured_once_and_plausible() -> None:
    matmul_limit._remembered.cache_clear()
    limit = matmul_limit.matmul_limit(torch.device("cpu"), torch.float32)
    assert 1e8 < limit < 1e15
    assert matmul_limit.matmul_limit(torch.device("cpu"), torch.float32) == limit
    assert matmul_limit._remembered.cache_info().hits == 1
