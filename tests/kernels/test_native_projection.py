"""Products of projections (native/projection.h) by themselves: any number of tokens, panels of columns, every level."""

from collections.abc import Iterator

import pytest
import torch
from torch import Tensor

from superblock.kernels.native import NativeLibrary, processor

SOURCE = """
#include "projection.h"
template <class F>
static void with_operand(int64_t half, F f) {
#if defined(__AVX512BF16__)
  if (half) return f((bf16)0);
#endif
  f(0.0f);
}
ENTRY void times(void* x, int64_t stride, void* weight, int64_t transposed, int64_t half, void* y, int64_t N, int64_t K,
                 int64_t columns, int64_t threads) {
  Matrix from{x, stride, half != 0}, w{weight, transposed ? K : columns, false}, to{y, columns, half != 0};
  with_operand(half, [&](auto operand) {
    project<decltype(operand)>(from, N, K, {w, transposed != 0}, columns, threads,
                               [&](int64_t n, int64_t j) { to.ask(n, j, BLOCK); },
                               [&](int64_t n, int64_t j, V value) { to.put(n, j, value); });
  });
}
ENTRY void gradient_of(void* dy, void* x, int64_t half, float* dw, int64_t N, int64_t M, int64_t K, int64_t threads) {
  with_operand(half, [&](auto operand) {
    weight_gradient<decltype(operand)>({dy, M, half != 0}, {x, K, half != 0}, N, M, K, dw, threads);
  });
}
"""
LEVELS = [*processor.levels(), *(["tiles"] if "avx512_bf16" in processor.levels() else [])]


@pytest.fixture(scope="module", params=LEVELS)
def library(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> NativeLibrary:
    """For a level, or with the tiles of AMX in plain C++."""
    tiles = request.param == "tiles"
    source = tmp_path_factory.mktemp("projection") / "native.cpp"
    source.write_text(("#define EMULATE_TILES\n" if tiles else "") + SOURCE)
    built = NativeLibrary(source, check=lambda: None, level="avx512_bf16" if tiles else request.param)
    if reason := built.why_not():
        pytest.skip(reason)
    return built


@pytest.fixture(params=[1, 2], ids=["one thread", "two threads"])
def _threads(request: pytest.FixtureRequest) -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(request.param)
    yield
    torch.set_num_threads(before)


def assert_near(y: Tensor, want: Tensor, dtype: torch.dtype) -> None:
    assert (y.double() - want).norm() <= (6e-3 if dtype == torch.bfloat16 else 1e-6) * want.norm()


@pytest.mark.usefixtures("_threads")
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=["fp32", "bf16"])
@pytest.mark.parametrize(("N", "K", "columns"), [(1, 32, 32), (33, 64, 96), (95, 96, 32), (40, 2048, 288)])
def test_products(library: NativeLibrary, dtype: torch.dtype, N: int, K: int, columns: int) -> None:
    """2048 x 288 is more than one panel, which the second cache holds; rows lie apart."""
    for transposed in (True, False):
        x = torch.randn(N, K + 16)[:, :K].to(dtype)
        weight = torch.randn(columns, K) if transposed else torch.randn(K, columns)
        y = torch.full((N + 1, columns), 7.0, dtype=dtype)
        library.call("times", x, x.stride(0), weight, transposed, dtype == torch.bfloat16, y, N, K, columns)
        assert_near(y[:N], x.double() @ (weight.t() if transposed else weight).double(), dtype)
        assert (y[N] == 7).all()


@pytest.mark.usefixtures("_threads")
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=["fp32", "bf16"])
@pytest.mark.parametrize(("N", "M", "K"), [(0, 32, 32), (1, 32, 32), (77, 96, 64), (2100, 64, 32)])
def test_gradients_of_weights(library: NativeLibrary, dtype: torch.dtype, N: int, M: int, K: int) -> None:
    """2100 tokens are more than are packed at a time."""
    dy, x, dw = torch.randn(N, M).to(dtype), torch.randn(N, K).to(dtype), torch.full((M, K), 7.0)
    library.call("gradient_of", dy, x, dtype == torch.bfloat16, dw, N, M, K)
    assert_near(dw, dy.double().t() @ x.double(), dtype)


def test_the_bits_do_not_depend_on_threads(library: NativeLibrary) -> None:
    dy, x = torch.randn(150, 64), torch.randn(150, 96)
    found, before = [], torch.get_num_threads()
    for threads in (1, 2, 3):
        torch.set_num_threads(threads)
        found.append(torch.empty(64, 96))
        library.call("gradient_of", dy, x, False, found[-1], 150, 64, 96)
    torch.set_num_threads(before)
    assert all(torch.equal(found[0], other) for other in found[1:])
