"""Operators made of C++ kernels: what eager code, watching modes, compilers and stand-ins for memory get to see."""

from typing import Any

import pytest
import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from superblock.kernels.native import native_operator
from superblock.kernels.native.operator import NativeOperator
from superblock.kernels.norm import native as norm

SEEN: list[str] = []


@native_operator("test_cube")
def cube(x: Tensor, scale: float) -> tuple[Tensor, Tensor]:
    """scale * x^3, and x^2 for backward."""
    assert type(x) in (Tensor, torch.nn.Parameter), "a kernel reads memory"
    SEEN.append("called")
    square = x.detach() ** 2
    return scale * square * x.detach(), square


@cube.register_fake
def _(x: Tensor, scale: float) -> tuple[Tensor, Tensor]:
    return torch.empty_like(x), torch.empty_like(x)


def _save(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor]) -> None:
    ctx.scale = inputs[1]
    ctx.save_for_backward(output[1])
    ctx.mark_non_differentiable(output[1])


def _gradient(ctx: Any, dy: Tensor, _: None) -> tuple[Tensor, None]:
    (square,) = ctx.saved_tensors
    return 3 * ctx.scale * square * dy, None


cube.register_autograd(_gradient, setup_context=_save)


class Watch(TorchDispatchMode):
    def __init__(self) -> None:
        super().__init__()
        self.names: list[str] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.names.append(str(func))
        return func(*args, **(kwargs or {}))


def both(call: Any, x: Tensor) -> tuple[Tensor, Tensor]:
    y = call(x, 2.0)[0]
    return y, torch.autograd.grad(y.sum(), x)[0]


def test_eager_and_registered_agree() -> None:
    x = torch.tensor([1.0, -2.0, 3.0], requires_grad=True)
    for y, dx in (both(cube, x), both(cube.registered, x), both(torch.ops.superblock.test_cube, x)):
        assert y.tolist() == [2.0, -16.0, 54.0] and dx.tolist() == [6.0, 24.0, 54.0]


def test_node_only_where_a_gradient_is_wanted() -> None:
    x = torch.ones(2)
    assert cube(x, 1.0)[0].grad_fn is None
    x.requires_grad_()
    y, kept = cube(x, 1.0)
    assert y.grad_fn is not None and not kept.requires_grad
    with torch.no_grad():
        assert cube(x, 1.0)[0].grad_fn is None


def test_modes_see_the_operator() -> None:
    with Watch() as watch:
        cube(torch.ones(2), 1.0)
    assert "superblock.test_cube.default" in watch.names


def test_compilers_see_the_operator() -> None:
    graphs: list[str] = []

    def backend(graph: torch.fx.GraphModule, _: Any) -> Any:
        graphs.append(graph.code)
        return graph.forward

    x = torch.tensor([1.0, -2.0, 3.0], requires_grad=True)
    y = torch.compile(lambda x: cube(x, 2.0)[0] + 1, backend=backend, fullgraph=True)(x)
    assert "superblock.test_cube" in graphs[0]
    assert y.tolist() == [3.0, -15.0, 55.0]


def test_stand_ins_never_reach_the_kernel() -> None:
    from torch._subclasses.fake_tensor import FakeTensorMode

    mode = FakeTensorMode()
    fake = mode.from_tensor(torch.ones(3))
    SEEN.clear()
    assert cube(fake, 1.0)[0].shape == (3,)
    assert cube(torch.ones(3, device="meta"), 1.0)[0].device.type == "meta"
    assert not SEEN


def test_tracers_and_transformations_see_the_operator() -> None:
    with torch.no_grad():
        traced = torch.jit.trace(lambda x: cube(x, 2.0)[0], torch.ones(3))
    assert traced(torch.full((5,), 2.0)).tolist() == [16.0] * 5
    assert torch.func.vmap(lambda x: cube(x, 2.0)[0])(torch.full((2, 2), 2.0)).tolist() == [[16.0] * 2] * 2


def test_an_integer_is_a_float_where_a_float_is_meant() -> None:
    assert cube(torch.ones(2), 2)[0].tolist() == [2.0, 2.0]
    x, w = torch.randn(3, 16), torch.ones(16)
    if reason := norm.LIBRARY.why_not():
        pytest.skip(reason)
    for eps in (1, 1.0):
        torch.testing.assert_close(
            norm.rms_norm(x, w, eps, torch.float32, False)[0], x / (x.square().mean(-1, keepdim=True) + 1).sqrt()
        )


def test_what_is_written_to_counts_as_changed() -> None:
    @native_operator("test_double", mutates=("x",))
    def double(x: Tensor) -> Tensor:
        x.data.mul_(2)
        return x.detach().clone()

    x = torch.ones(2)
    assert double(x).tolist() == [2.0, 2.0] and x.tolist() == [2.0, 2.0] and x._version == 1
    kept = torch.ones(2, requires_grad=True) * 3
    y = kept.square()
    double(kept)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        y.sum().backward()


def test_differentiable_once() -> None:
    x = torch.ones(2, requires_grad=True)
    (dx,) = torch.autograd.grad(cube(x, 1.0)[0].sum(), x, create_graph=True)
    with pytest.raises(RuntimeError, match="once_differentiable|does not require grad"):
        dx.sum().backward()


def test_recomputation_gives_the_same_gradient() -> None:
    from torch.utils.checkpoint import checkpoint

    x = torch.tensor([1.0, -2.0, 3.0], requires_grad=True)
    y = checkpoint(lambda x: cube(x, 2.0)[0], x, use_reentrant=False)
    assert torch.autograd.grad(y.sum(), x)[0].tolist() == [6.0, 24.0, 54.0]


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_kernel_gives_the_same_bits_both_ways(dtype: torch.dtype) -> None:
    x, w = torch.randn(5, 7, 48, requires_grad=True), torch.randn(48, requires_grad=True)
    if reason := norm.LIBRARY.why_not():
        pytest.skip(reason)
    results = []
    for call in (norm.rms_norm, norm.rms_norm.registered):
        y = call(x, w, 1e-5, dtype, False)[0]
        results.append([y, *torch.autograd.grad(y.float().sin().sum(), (x, w))])
    assert all(torch.equal(a, b) for a, b in zip(*results, strict=True))
    assert isinstance(norm.rms_norm, NativeOperator) and norm.rms_norm.__doc__
