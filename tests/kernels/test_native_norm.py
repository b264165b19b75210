"""The C++ norms at every level of this processor: against float64, any strides and widths, both results, extremes."""

from collections.abc import Callable, Iterator

import pytest
import torch
from torch import Tensor

from superblock.kernels.native import processor
from superblock.kernels.native.rows import rows_of
from superblock.kernels.norm import gated_rms_norm, native, rms_norm, rms_norm_and_wide
from superblock.kernels.norm.reference import reference_gated_rms_norm, reference_rms_norm

LEVELS = processor.levels()
HALF, FULL = torch.bfloat16, torch.float32
if reason := native.LIBRARY.why_not():
    pytest.skip(reason, allow_module_level=True)


@pytest.fixture(params=LEVELS, scope="module")
def _level(request: pytest.FixtureRequest) -> Iterator[None]:
    library = native.LIBRARY.at(request.param)
    assert library.why_not() is None
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(native, "LIBRARY", library)
        yield


def draw(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def compare(
    form: Callable[..., Tensor], reference: Callable[..., Tensor], inputs: list[Tensor], out: torch.dtype
) -> None:
    """Result and all gradients against the reference in float64."""
    leaves = [t.detach().requires_grad_() for t in inputs]
    exact = [t.detach().double().requires_grad_() for t in inputs]
    y, want = form(*leaves), reference(*exact)
    dy = draw(*want.shape, seed=9).to(out)
    assert y.dtype == out and y.shape == want.shape
    torch.testing.assert_close(y.double(), want, rtol=4e-3 if out == HALF else 2e-6, atol=1e-6)
    pairs = zip(torch.autograd.grad(y, leaves, dy), torch.autograd.grad(want, exact, dy.double()), strict=True)
    for (ours, theirs), given in zip(pairs, inputs, strict=True):
        assert ours.dtype == given.dtype
        bound = 4e-3 if given.dtype == HALF else 2e-6
        assert (ours.double() - theirs).norm() <= bound * theirs.norm() + 1e-7


@pytest.mark.usefixtures("_level")
@pytest.mark.parametrize("shape", [(1, 1), (5,), (3, 256), (2, 70, 61), (2, 3, 4, 16), (1, 300, 3), (0, 8)])
@pytest.mark.parametrize("given", [FULL, HALF])
@pytest.mark.parametrize("out", [FULL, HALF])
def test_against_float64(shape: tuple[int, ...], given: torch.dtype, out: torch.dtype) -> None:
    inputs = [draw(*shape).to(given), draw(shape[-1], seed=1)]
    compare(lambda x, w: rms_norm(x, w, 1e-5, dtype=out), lambda x, w: reference_rms_norm(x, w, 1e-5), inputs, out)


@pytest.mark.usefixtures("_level")
@pytest.mark.parametrize("D", [64, 37])
@pytest.mark.parametrize("gate", [FULL, HALF])
@pytest.mark.parametrize("out", [FULL, HALF])
def test_gated_against_float64(D: int, gate: torch.dtype, out: torch.dtype) -> None:
    row = 4 * draw(2, 40, 9, D + 5, seed=2).to(gate)
    inputs = [draw(2, 40, 3, D), draw(D, seed=1), row[:, :, 2:5, :D]]
    compare(
        lambda x, w, z: gated_rms_norm(x, w, z, 1e-5, dtype=out),
        lambda x, w, z: reference_gated_rms_norm(x, w, z, 1e-5),
        inputs,
        out,
    )


@pytest.mark.usefixtures("_level")
@pytest.mark.parametrize("dtype", [FULL, HALF])
def test_weights_of_each_head(dtype: torch.dtype) -> None:
    heads = draw(2, 33, 10, 24).to(dtype)[:, :, 1:7]
    compare(lambda x, w: rms_norm(x, w, 1e-5), lambda x, w: reference_rms_norm(x, w, 1e-5), [heads, draw(6, 24)], dtype)


STRIDED = {
    "columns": lambda x: x[:, 3:9],
    "part of a row": lambda x: x[..., 2:31],
    "time first": lambda x: x.transpose(0, 1),
    "width not contiguous": lambda x: x.transpose(1, 2),
    "expanded": lambda x: x[:1].expand(3, -1, -1),
    "backwards": lambda x: x[:, ::3],
}


@pytest.mark.usefixtures("_level")
@pytest.mark.parametrize("view", STRIDED.values(), ids=STRIDED.keys())
def test_strides_do_not_matter(view: Callable[[Tensor], Tensor]) -> None:
    x = view(draw(2, 12, 40))
    w = draw(x.shape[-1], seed=1)
    gate = view(draw(2, 12, 40, seed=3))
    found, same = [], []
    for results, strided in ((found, True), (same, False)):
        leaves = [(t if strided else t.contiguous()).detach().requires_grad_() for t in (x, w, gate)]
        y = rms_norm(leaves[0], w, 1e-5) + gated_rms_norm(leaves[0], leaves[1], leaves[2], 1e-5)
        dy = draw(*y.shape, seed=4)
        dy = dy.transpose(0, -1).contiguous().transpose(0, -1) if strided else dy
        results += [y, *torch.autograd.grad(y, leaves, dy)]
    for a, b in zip(found, same, strict=True):
        assert torch.equal(a, b)


@pytest.mark.usefixtures("_level")
def test_both_results_share_one_gradient() -> None:
    x, w = draw(2, 50, 40).requires_grad_(), draw(40, seed=1).requires_grad_()
    half, wide = rms_norm_and_wide(x, w, 1e-5, dtype=HALF)
    assert half.dtype == HALF and wide.dtype == FULL
    assert torch.equal(half, wide.to(HALF))
    d_half, d_wide = draw(2, 50, 40, seed=5).to(HALF), draw(2, 50, 40, seed=6)
    want = reference_rms_norm(x, w, 1e-5)
    for outputs, grads, total in (
        ((half, wide), (d_half, d_wide), d_half.float() + d_wide),
        ((half,), (d_half,), d_half.float()),
        ((wide,), (d_wide,), d_wide),
    ):
        ours = torch.autograd.grad(outputs, (x, w), grads, retain_graph=True)
        theirs = torch.autograd.grad(want, (x, w), total, retain_graph=True)
        torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-5)
    same = rms_norm_and_wide(x, w, 1e-5, dtype=FULL)
    assert same[0] is same[1]


@pytest.mark.usefixtures("_level")
def test_extreme_rows() -> None:
    x = torch.stack([torch.zeros(33), 1e15 * draw(33), 1e-15 * draw(33), draw(33)])
    x[3, 32] = torch.nan
    z = torch.stack([torch.full((33,), v) for v in (100.0, -100.0, 0.0, 1.0)])
    y = rms_norm(x, torch.ones(33), 1e-6)
    torch.testing.assert_close(y[:3].double(), reference_rms_norm(x[:3].double(), torch.ones(33), 1e-6))
    assert y[3].isnan().all()
    gated = gated_rms_norm(x, torch.ones(33), z, 1e-6)
    torch.testing.assert_close(
        gated[:3].double(), reference_gated_rms_norm(x[:3].double(), torch.ones(33), z[:3].double(), 1e-6)
    )
    nan = gated_rms_norm(draw(1, 33), torch.ones(33), torch.full((1, 33), torch.nan), 1e-6)
    assert nan.isnan().all()


def test_every_thread_count_gives_the_same_bits() -> None:
    found = []
    for threads in (1, 2):
        torch.set_num_threads(threads)
        x, w, z = (t.requires_grad_() for t in (draw(7, 100, 40), draw(40, seed=1), draw(7, 100, 40, seed=2)))
        y = rms_norm(x, w, 1e-5) + gated_rms_norm(x, w, z, 1e-5)
        found.append([y, *torch.autograd.grad(y.sum(), (x, w, z))])
    torch.set_num_threads(1)
    assert all(torch.equal(a, b) for a, b in zip(*found, strict=True))


def test_rows_of_copies_only_what_it_must() -> None:
    x = draw(4, 6, 8)
    for view in (x, x[:, 1:4], x[..., 2:5], x.transpose(0, 1), x[0], x[0, 0], x[:1].expand(3, -1, -1)):
        assert rows_of(view).tensor is view
    for view in (x.transpose(1, 2), draw(2, 3, 4, 5).transpose(0, 1)):
        assert rows_of(view).tensor.is_contiguous()


@pytest.mark.parametrize("dtype", [FULL, HALF])
def test_operators_describe_themselves(dtype: torch.dtype) -> None:
    x, w, z = draw(2, 3, 4, 20), draw(20, seed=1), draw(2, 3, 4, 20, seed=2)
    for leaf in (x, w, z):
        leaf.requires_grad_()
    torch.library.opcheck(native.rms_norm.registered, (x, w, 1e-5, dtype, dtype == HALF))
    torch.library.opcheck(native.gated_rms_norm.registered, (x, w, z.to(dtype), 1e-5, dtype))


@pytest.mark.parametrize("default", [torch.float64, torch.bfloat16])
def test_the_default_dtype_does_not_matter(default: torch.dtype) -> None:
    """Memory that C++ writes to has a dtype of its own."""
    x, gate, weight = (t.requires_grad_() for t in (draw(70, 64), draw(70, 64, seed=1), draw(64, seed=2)))

    def results() -> list[Tensor]:
        y, gated = rms_norm(x, weight, 1e-6), gated_rms_norm(x, weight, gate, 1e-6)
        return [y, gated, *torch.autograd.grad((y * gated).sum(), (x, weight, gate))]

    want = results()
    torch.set_default_dtype(default)
    try:
        found = results()
    finally:
        torch.set_default_dtype(torch.float32)
    assert all(torch.equal(a, b) for a, b in zip(found, want, strict=True))
