"""The C++ experts against the loop in float64: every level, dtype, stride and gradient, and the tiles under emulation."""

import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
import torch
from torch import Tensor

from superblock.kernels.experts import mix_experts, native
from superblock.kernels.experts.backend import choose
from superblock.kernels.native import NativeLibrary, processor
from superblock.kernels.native.build import build

LEVELS = processor.levels()
NAMES = ("x", "gate_up", "down", "weight", "shared_gate_up", "shared_down", "shared_weight")
BOUNDS = {torch.float32: 3e-6, torch.bfloat16: 1.2e-2}


@pytest.fixture(autouse=True, scope="module")
def _built() -> None:
    if reason := native.LIBRARY.why_not():
        pytest.skip(reason)


def make(
    N: int, D: int = 64, F: int = 96, G: int = 32, E: int = 5, k: int = 2, *, used: int | None = None
) -> dict[str, Tensor]:
    """Inputs in float64 by name, among them indices that use the first `used` experts; G 0 is no shared expert."""
    generator = torch.Generator().manual_seed(N + D)
    shapes = dict(zip(NAMES, ((N, D), (E, 2 * F, D), (E, D, F), (N, k), (2 * G, D), (D, G), (N,)), strict=True))
    if not G:
        shapes = {name: shape for name, shape in shapes.items() if "shared" not in name}
    tensors = {name: torch.randn(shape, generator=generator, dtype=torch.float64) for name, shape in shapes.items()}
    for name in tensors:
        if "gate_up" in name or "down" in name:
            tensors[name] *= tensors[name].shape[-1] ** -0.5
    return tensors | {"index": torch.rand(N, used or E, generator=generator).topk(k, dim=1).indices}


def outcome(tensors: dict[str, Tensor], backend: str, *, dtype: torch.dtype | None = None) -> dict[str, Tensor]:
    """Output, powers and gradients of a fixed function of it, in the inputs' dtype or under autocast to `dtype`."""
    leaves = {name: t.detach().requires_grad_() for name, t in tensors.items() if name in NAMES}
    shared = (leaves["shared_gate_up"], leaves["shared_down"]) if "shared_down" in leaves else None
    inputs = (leaves["x"], leaves["gate_up"], leaves["down"], tensors["index"], leaves["weight"])
    with torch.autocast("cpu", torch.bfloat16, enabled=dtype == torch.bfloat16):
        y, power = mix_experts(*inputs, shared=shared, shared_weight_N=leaves.get("shared_weight"), backend=backend)
    grads = torch.autograd.grad(y.double().sin().sum(), list(leaves.values()))
    return {"y": y, "power": power} | dict(zip(leaves, grads, strict=True))


def cast(tensors: dict[str, Tensor], dtype: torch.dtype) -> dict[str, Tensor]:
    return {name: t.to(dtype) if t.is_floating_point() else t for name, t in tensors.items()}


def assert_near(actual: dict[str, Tensor], expected: dict[str, Tensor], bound: float) -> None:
    for name, b in expected.items():
        a = actual[name]
        assert (a.double() - b.double()).norm() <= bound * b.double().norm() + 1e-9, name


@contextmanager
def library(other: NativeLibrary) -> Iterator[None]:
    assert other.why_not() is None, other.why_not()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(native, "LIBRARY", other)
        yield


@pytest.mark.parametrize("level", LEVELS)
@pytest.mark.parametrize("N", [1, 33, 150, 700])
def test_every_level_equals_the_loop(level: str, N: int) -> None:
    tensors = make(N)
    exact = outcome(tensors, "loop")
    single = cast(tensors, torch.float32)
    with library(native.LIBRARY.at(level)):
        assert_near(outcome(single, "native"), exact, BOUNDS[torch.float32])
        mixed = outcome(single, "native", dtype=torch.bfloat16)
        half = outcome(cast(tensors, torch.bfloat16), "native")
    assert mixed["y"].dtype == half["y"].dtype == torch.bfloat16
    assert {mixed[name].dtype for name in NAMES} == {torch.float32}
    assert {half[name].dtype for name in NAMES} == {torch.bfloat16}
    assert_near(mixed, exact, BOUNDS[torch.bfloat16])
    assert_near(half, exact, 2e-2)


@pytest.mark.parametrize(
    "sizes", [(40, 32, 32, 0, 2, 1), (64, 128, 64, 64, 8, 2), (50, 32, 64, 160, 3, 3), (300, 288, 32, 0, 4, 2)]
)
def test_sizes(sizes: tuple[int, int, int, int, int, int]) -> None:
    tensors = make(*sizes)
    exact = outcome(tensors, "loop")
    for dtype in BOUNDS:
        assert_near(outcome(cast(tensors, torch.float32), "native", dtype=dtype), exact, BOUNDS[dtype])


def test_empty_experts_and_no_tokens() -> None:
    for N in (90, 2, 0):
        tensors = cast(make(N, used=2), torch.float32)
        have = outcome(tensors, "native")
        assert_near(have, outcome(cast(tensors, torch.float64), "loop"), BOUNDS[torch.float32])
        assert not have["gate_up"][2:].any() and not have["down"][2:].any()


def test_extreme_values() -> None:
    """Gates from -4000 to 4000 saturate without infinities; a NaN stays in its token."""
    tensors = make(70)
    tensors["x"] *= torch.logspace(-3, 3, 70, dtype=torch.float64)[:, None]
    tensors["x"][5] = 0
    exact = outcome(tensors, "loop")
    for dtype in BOUNDS:
        have = outcome(cast(tensors, torch.float32), "native", dtype=dtype)
        assert_near({"y": have["y"]}, {"y": exact["y"]}, BOUNDS[dtype])
        assert all(t.isfinite().all() for t in have.values())
    tensors["x"][9, 3] = torch.nan
    y = outcome(cast(tensors, torch.float32), "native", dtype=torch.bfloat16)["y"]
    assert y[9].isnan().all() and y[:9].isfinite().all() and y[10:].isfinite().all()


def test_strides_do_not_matter() -> None:
    tensors = cast(make(75), torch.float32)
    plain = outcome(tensors, "native")

    def turned(t: Tensor) -> Tensor:
        return t.transpose(0, -1).contiguous().transpose(0, -1)

    def cut(t: Tensor) -> Tensor:
        return torch.cat([t, t], -1)[..., : t.shape[-1]]

    for change in (turned, cut):
        changed = {name: change(t) for name, t in tensors.items()}
        assert not changed["x"].is_contiguous()
        for name, t in outcome(changed, "native").items():
            assert torch.equal(t, plain[name]), name
    expanded = tensors | {"x": tensors["x"][:1].expand(75, -1), "weight": tensors["weight"][:1].expand(75, -1)}
    copied = {name: t.contiguous() for name, t in expanded.items()}
    assert torch.equal(outcome(expanded, "native")["y"], outcome(copied, "native")["y"])


def test_upstream_gradients_of_any_strides() -> None:
    tensors = cast(make(40), torch.float32)
    x = tensors["x"].requires_grad_()
    y, _ = mix_experts(x, tensors["gate_up"], tensors["down"], tensors["index"], tensors["weight"], backend="native")
    for dy in (torch.ones(()).expand(40, 64), torch.ones(64, 40).t(), torch.ones(40, 128)[:, :64]):
        have, want = (torch.autograd.grad(y, x, g, retain_graph=True)[0] for g in (dy, dy.contiguous()))
        assert torch.equal(have, want)


def test_threads_and_repetitions_give_the_same_bits() -> None:
    tensors = cast(make(333), torch.float32)
    before = torch.get_num_threads()
    try:
        for dtype in BOUNDS:
            runs = []
            for threads in (1, 2, 2, 3, 3):
                torch.set_num_threads(threads)
                runs.append(outcome(tensors, "native", dtype=dtype))
            for name in runs[0]:
                assert torch.equal(runs[1][name], runs[2][name]) and torch.equal(runs[3][name], runs[4][name]), name
            assert torch.equal(runs[0]["y"], runs[1]["y"]) and torch.equal(runs[0]["power"], runs[3]["power"])
            assert torch.equal(runs[0]["x"], runs[3]["x"])
            assert_near(runs[3], runs[0], 1e-5)
    finally:
        torch.set_num_threads(before)


@pytest.mark.parametrize("name", NAMES)
def test_only_one_input_needs_a_gradient(name: str) -> None:
    tensors = cast(make(40), torch.float32)
    every = outcome(tensors, "native")
    leaves = tensors | {name: tensors[name].clone().requires_grad_()}
    shared = (leaves["shared_gate_up"], leaves["shared_down"])
    inputs = [leaves[n] for n in ("x", "gate_up", "down", "index", "weight")]
    y, power = mix_experts(*inputs, shared=shared, shared_weight_N=leaves["shared_weight"], backend="native")
    assert not power.requires_grad
    assert torch.equal(torch.autograd.grad(y.double().sin().sum(), leaves[name])[0], every[name])
    with torch.no_grad():
        assert torch.equal(mix_experts(*inputs, backend="native")[0], mix_experts(*inputs, backend="native")[0])


def test_the_operations_keep_torch_contracts() -> None:
    tensors = cast(make(20), torch.float32)
    inputs = [tensors[n].requires_grad_(n in NAMES) for n in ("x", "gate_up", "down", "index", "weight", *NAMES[4:])]
    torch.library.opcheck(native.mix_experts_native.registered, (*inputs, torch.float32, True))
    detached = [t.detach() for t in inputs]
    with torch.no_grad():
        y, _, *kept = native.mix_experts_native(*detached, torch.bfloat16, True)
    torch.library.opcheck(native.mix_experts_backward.registered, (y, *detached, *kept, torch.bfloat16, True))


def test_wrong_use_is_an_error_in_words() -> None:
    tensors = cast(make(10), torch.float32)
    inputs = [tensors[n] for n in ("x", "gate_up", "down", "index", "weight")]
    with pytest.raises(ValueError, match="indices from 0 to 7 for 5 experts"):
        mix_experts(
            *inputs[:3], tensors["index"].clamp(max=0).index_fill(0, torch.tensor([3]), 7), inputs[4], backend="native"
        )
    narrow = cast(make(10, D=48), torch.float32)
    with pytest.raises(RuntimeError, match="width 48 is not a multiple of 32; use 'sorted'"):
        choose("native", narrow["x"], narrow["gate_up"], narrow["down"])
    assert choose("auto", narrow["x"], narrow["gate_up"], narrow["down"]) == "sorted"
    assert choose("auto", *inputs[:3]) == "native"
    with pytest.raises(RuntimeError, match="no torch.float64 kernel"):
        choose("native", *(t.double() for t in inputs[:3]))
    with pytest.raises(RuntimeError, match="processors only"):
        choose("native", *(t.to("meta") for t in inputs[:3]))


@pytest.fixture(scope="module")
def emulated(tmp_path_factory: pytest.TempPathFactory) -> NativeLibrary:
    """The experts as they are built for AMX, with the tiles' operations in plain C++."""
    folder, copy = Path(native.__file__).parent, tmp_path_factory.mktemp("emulated")
    for header in folder.glob("*.h"):
        shutil.copy(header, copy)
    source = copy / "native.cpp"
    source.write_text("#define EMULATE_TILES\n" + (folder / "native.cpp").read_text())
    built = NativeLibrary(source, check=lambda: None, level="avx512_bf16")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("SUPERBLOCK_CACHE", str(copy))
        assert built.why_not() is None
    return built


@pytest.mark.skipif("avx512_bf16" not in LEVELS, reason="the tiles' operands are packed with AVX-512")
@pytest.mark.parametrize("N", [1, 150, 600])
def test_tiles_under_emulation(emulated: NativeLibrary, N: int) -> None:
    tensors = make(N)
    exact = outcome(tensors, "loop")
    with library(emulated):
        assert_near(
            outcome(cast(tensors, torch.float32), "native", dtype=torch.bfloat16), exact, BOUNDS[torch.bfloat16]
        )


def test_the_code_for_tiles_compiles(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    if processor.best_level() == "plain":
        pytest.skip("needs a compiler for x86-64")
    monkeypatch.setenv("SUPERBLOCK_CACHE", str(tmp_path))
    assert build(native.LIBRARY.source, "amx").exists()
