"""The C++ gates of Gated DeltaNet at every level of this processor: against float64, strides, odd sizes, extremes."""

from collections.abc import Iterator

import pytest
import torch
from torch import Tensor

from superblock.kernels.delta_rule import native_gates
from superblock.kernels.delta_rule.gates import delta_gates, reference_gates
from superblock.kernels.native import processor

LEVELS = processor.levels()
if reason := native_gates.LIBRARY.why_not():
    pytest.skip(reason, allow_module_level=True)


@pytest.fixture(params=LEVELS, scope="module")
def _level(request: pytest.FixtureRequest) -> Iterator[None]:
    library = native_gates.LIBRARY.at(request.param)
    assert library.why_not() is None
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(native_gates, "LIBRARY", library)
        yield


def draw(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def inputs_of(tokens: tuple[int, ...], D: int, H: int, *, spread: float = 1.0) -> list[Tensor]:
    return [draw(*tokens, D), spread * draw(2 * H, D, seed=1) / D**0.5, draw(H, seed=2), draw(H, seed=3)]


def compare(inputs: list[Tensor], strength: float = 2.0, rtol: float = 3e-6) -> None:
    """Both results and all gradients against the formula in float64."""
    leaves = [t.detach().requires_grad_() for t in inputs]
    exact = [t.detach().double().requires_grad_() for t in inputs]
    found, want = delta_gates(*leaves, strength=strength), reference_gates(*exact, strength)
    for ours, theirs in zip(found, want, strict=True):
        assert ours.dtype == torch.float32
        torch.testing.assert_close(ours.double(), theirs, rtol=rtol, atol=1e-7)
    grads = [draw(*want[0].shape, seed=4), draw(*want[0].shape, seed=5)]
    pairs = zip(
        torch.autograd.grad(found, leaves, grads),
        torch.autograd.grad(want, exact, [d.double() for d in grads]),
        strict=True,
    )
    for ours, theirs in pairs:
        assert (ours - theirs).norm() <= rtol * theirs.norm() + 1e-7


@pytest.mark.usefixtures("_level")
@pytest.mark.parametrize("tokens", [(1,), (3, 5), (2, 64), (2, 130)])
@pytest.mark.parametrize("D,H", [(1, 1), (37, 3), (256, 4), (64, 11)])
def test_against_float64(tokens: tuple[int, ...], D: int, H: int) -> None:
    compare(inputs_of(tokens, D, H))
    compare(inputs_of(tokens, D, H), strength=1.0)


@pytest.mark.usefixtures("_level")
def test_more_tiles_than_blocks() -> None:
    compare(inputs_of((1, 64 * 150 + 7), 5, 2))


@pytest.mark.usefixtures("_level")
def test_strides_do_not_matter() -> None:
    x, *parameters = inputs_of((2, 70), 80, 3)
    for view in (x[..., 3:50], x[:, 5:], x.transpose(0, 1), x[:1].expand(3, -1, -1), x.transpose(1, 2)):
        weight = draw(view.shape[-1], 6, seed=1).t()
        compare([view, weight, *parameters[1:]])


@pytest.mark.usefixtures("_level")
def test_saturated_gates() -> None:
    """Far out on both sides softplus is x or e^x, and sigmoid 1 or e^x; nothing overflows."""
    compare(inputs_of((2, 70), 40, 3, spread=20.0), rtol=2e-5)  # e^50 has the error of the 50 times 50
    x, weight = torch.tensor([[200.0], [-200.0], [0.0], [torch.nan]]), torch.ones(2, 1)
    g, beta = delta_gates(x, weight, torch.zeros(1), torch.zeros(1), strength=1.0)
    torch.testing.assert_close(g[:3, 0], torch.tensor([-200.0, 0.0, -0.6931472]))
    torch.testing.assert_close(beta[:3, 0], torch.tensor([1.0, 0.0, 0.5]))
    assert g[3].isnan().all() and beta[3].isnan().all(), "a broken input must not look like a number"


def test_autocast_rounds_nothing() -> None:
    inputs = inputs_of((2, 30), 40, 3)
    want = delta_gates(*inputs, strength=2.0)
    with torch.autocast("cpu", torch.bfloat16):
        found = delta_gates(*inputs, strength=2.0)
    assert all(torch.equal(a, b) for a, b in zip(found, want, strict=True))


def test_every_thread_count_gives_the_same_bits() -> None:
    found = []
    for threads in (1, 2):
        torch.set_num_threads(threads)
        leaves = [t.requires_grad_() for t in inputs_of((3, 500), 40, 3)]
        g, beta = delta_gates(*leaves, strength=2.0)
        found.append([g, beta, *torch.autograd.grad((g * beta).sum(), leaves)])
    torch.set_num_threads(1)
    assert all(torch.equal(a, b) for a, b in zip(*found, strict=True))


def test_operators_describe_themselves() -> None:
    torch.library.opcheck(
        native_gates.delta_gates.registered, (*(t.requires_grad_() for t in inputs_of((2, 7), 20, 3)), 2.0)
    )


@pytest.mark.parametrize("default", [torch.float64, torch.bfloat16])
def test_the_default_dtype_does_not_matter(default: torch.dtype) -> None:
    """Memory that C++ writes to has a dtype of its own."""
    torch.set_default_dtype(default)
    try:
        compare([t.float() for t in inputs_of((2, 130), 40, 3)])
    finally:
        torch.set_default_dtype(torch.float32)
