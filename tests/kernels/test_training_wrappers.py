"""The hand-written gradients inside what training puts around them: activation checkpointing and 16-bit FSDP2 weights."""

from pathlib import Path

import pytest
import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from superblock.kernels.cross_entropy import linear_cross_entropy
from superblock.kernels.delta_rule import causal_conv, gated_delta_rule
from superblock.kernels.experts import mix_experts


class Block(nn.Module):
    """Every custom autograd function in one small model."""

    def __init__(self) -> None:
        super().__init__()
        generator = torch.Generator().manual_seed(0)
        shapes = {"conv": (16, 4), "gates": (4, 16), "gate_up": (3, 16, 16), "down": (3, 16, 8), "table": (20, 16)}
        for name, shape in shapes.items():
            self.register_parameter(name, nn.Parameter(0.3 * torch.randn(shape, generator=generator)))

    def forward(self, x_BTD: Tensor, labels_BT: Tensor) -> Tensor:
        y = causal_conv(x_BTD, self.conv)[0].unflatten(-1, (2, 8))
        g, beta = (y.flatten(-2) @ self.gates.t().to(y.dtype)).sigmoid().chunk(2, dim=-1)
        y = gated_delta_rule(y, y.flip(-1), y, -g, beta)[0].flatten(-2).flatten(0, 1)
        scores, index = (y.detach() @ torch.ones(16, 3)).softmax(-1).topk(2, dim=-1)
        y, _ = mix_experts(y, self.gate_up, self.down, index, scores)
        return linear_cross_entropy(y, self.table, labels_BT.flatten(), chunk=7)


def batch() -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(1)
    return torch.randn(2, 12, 16, generator=generator), torch.randint(20, (2, 12), generator=generator)


def test_activation_checkpointing_changes_nothing() -> None:
    model, (x, labels) = Block(), batch()
    plain = torch.autograd.grad(model(x, labels), list(model.parameters()))
    again = torch.autograd.grad(checkpoint(model, x, labels, use_reentrant=False), list(model.parameters()))
    assert all(torch.equal(a, b) for a, b in zip(plain, again, strict=True))
    assert all(g.any() for g in plain)


@pytest.mark.parametrize("half", [False, True])
def test_sharded_weights(half: bool, tmp_path: Path) -> None:
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.fsdp import MixedPrecisionPolicy, fully_shard

    model, (x, labels) = Block(), batch()
    want = torch.autograd.grad(model(x, labels), list(model.parameters()))
    dist.init_process_group("gloo", init_method=f"file://{tmp_path}/store", rank=0, world_size=1)
    try:
        policy = MixedPrecisionPolicy(param_dtype=torch.bfloat16 if half else None, reduce_dtype=torch.float32)
        fully_shard(model, mesh=init_device_mesh("cpu", (1,)), mp_policy=policy)
        model(x, labels).backward()
        for name, parameter, exact in zip(dict(model.named_parameters()), model.parameters(), want, strict=True):
            grad = parameter.grad.full_tensor()  # type: ignore[union-attr]
            assert grad.dtype == torch.float32, name
            assert (grad - exact).norm() < (5e-2 if half else 1e-6) * exact.norm(), name
    finally:
        dist.destroy_process_group()
