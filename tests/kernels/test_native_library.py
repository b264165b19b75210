"""Building, caching, checking and calling C++ sources, with sources of the test's own."""

import threading
from pathlib import Path

import pytest
import torch

from superblock.kernels.native import NativeLibrary, build, processor
from superblock.kernels.native.build import BuildError

SOURCE = """
#include "gemm.h"
ENTRY void exponential(const float* x, float* y, bf16* rounded, int64_t n, double factor, int64_t threads) {
#pragma omp parallel num_threads(threads)
  {
    FlushSubnormals flush;
#pragma omp for
    for (int64_t i = 0; i < n; i += W) {
      V value = vexp(load(x + i)) * (float)factor;
      store(y + i, value);
      store(rounded + i, value);
    }
  }
}
ENTRY void product(const float* a, const float* b, float* c, float* transposed, int64_t threads) {
  gemm<16, 32, 8, false, false, FULL>(a, 8, b, 32, c, 32, 0.f, c, 32);
  transpose<16, 32>(c, 32, transposed, 16);
}
"""

pytestmark = pytest.mark.skipif(not processor.FLAGS or build.openmp() is None, reason="no GNU OpenMP in torch")


@pytest.fixture
def source(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A source in a folder of its own, with an empty cache."""
    monkeypatch.setenv("SUPERBLOCK_CACHE", str(tmp_path / "cache"))
    monkeypatch.delenv(processor.VARIABLE, raising=False)
    path = tmp_path / "operation" / "native.cpp"
    path.parent.mkdir()
    path.write_text(SOURCE)
    return path


@pytest.mark.parametrize("level", processor.levels())
def test_exponential_rounding_and_products_at_every_level(source: Path, level: str) -> None:
    library = NativeLibrary(source, check=lambda: None).at(level)
    assert library.why_not() is None
    x = torch.cat([torch.linspace(-100, 87, 4096 - 3), torch.tensor([0.0, -87.5, float("-inf")])])
    y, rounded = torch.empty_like(x), torch.empty_like(x, dtype=torch.bfloat16)
    library.call("exponential", x, y, rounded, len(x), 1.0)
    wanted = x.double().exp()
    normal = wanted > 1.2e-38
    torch.testing.assert_close(y[normal].double(), wanted[normal], rtol=5e-7, atol=0)
    assert (y[~normal] <= 1.2e-38).all()
    assert torch.equal(rounded, y.bfloat16())
    x[::3] = torch.nan
    library.call("exponential", x, y, rounded, len(x), 1.0)
    assert torch.equal(y.isnan(), x.isnan()) and torch.equal(rounded.isnan(), x.isnan())
    a, b, c, transposed = torch.randn(16, 8), torch.randn(8, 32), torch.empty(16, 32), torch.empty(32, 16)
    library.call("product", a, b, c, transposed)
    torch.testing.assert_close(c.double(), a.double() @ b.double(), rtol=1e-5, atol=1e-5)
    assert torch.equal(transposed, c.t())


def test_bf16_stores_nan_and_infinity(source: Path) -> None:
    source.write_text(SOURCE.replace("vexp(load(x + i))", "load(x + i)"))
    for level in processor.levels():
        library = NativeLibrary(source, check=lambda: None).at(level)
        assert library.why_not() is None
        x = torch.tensor([float("nan"), float("inf"), float("-inf"), 1.00390625] * 4)  # the last lies between two bf16
        y, rounded = torch.empty_like(x), torch.empty_like(x, dtype=torch.bfloat16)
        library.call("exponential", x, y, rounded, len(x), 1.0)
        torch.testing.assert_close(rounded, x.bfloat16(), equal_nan=True, rtol=0, atol=0)


def test_built_once_and_again_when_source_or_header_changes(source: Path) -> None:
    first = build.build(source, "plain")
    stamp = first.stat().st_mtime_ns
    assert build.build(source, "plain") == first and first.stat().st_mtime_ns == stamp
    source.touch()
    assert build.library_path(source, "plain") == first, "what counts is the text"
    (source.parent / "own.h").write_text("// a header beside it")
    assert build.library_path(source, "plain") != first
    assert build.library_path(source, "avx2").name != first.name
    assert not [path for path in first.parent.iterdir() if path.suffix in (".tmp", ".o")]


def test_many_at_once_build_once(source: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    compiled = []
    original = build._compile
    monkeypatch.setattr(build, "_compile", lambda *a: (compiled.append(a), original(*a)))
    found: list[Path] = []
    threads = [threading.Thread(target=lambda: found.append(build.build(source, "plain"))) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(compiled) == 1 and len(set(found)) == 1 and len(found) == 4


def test_reasons_in_words(source: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def reason(check=lambda: None) -> str:  # type: ignore[no-untyped-def]
        return NativeLibrary(source, check=check).why_not() or ""

    def disagree() -> None:
        raise AssertionError("gradient of k is off by 0.5")

    assert "differs from its reference" in reason(disagree) and "off by 0.5" in reason(disagree)
    assert "fails its check" in reason(lambda: torch.zeros(2).reshape(3))
    monkeypatch.setenv(processor.VARIABLE, "off")
    assert reason() == "SUPERBLOCK_NATIVE=off"
    monkeypatch.setenv(processor.VARIABLE, "avx1024")
    assert "unknown; choose one of auto, off, plain" in reason()
    monkeypatch.setenv(processor.VARIABLE, "amx")
    monkeypatch.setattr(processor, "best_level", lambda: "avx2")
    assert reason() == "SUPERBLOCK_NATIVE=amx: this processor has avx2 at most"
    monkeypatch.delenv(processor.VARIABLE)
    source.write_text(SOURCE.replace("vexp", "exponentiate"))
    assert "native.cpp does not compile" in reason() and "exponentiate" in reason()


def test_no_compiler_and_no_place(source: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("SUPERBLOCK_CACHE", str(tmp_path / "file"))
    assert str(tmp_path / "file") in (NativeLibrary(source, check=lambda: None).why_not() or "")
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.delenv("CXX", raising=False)
    build.compiler.cache_clear()
    try:
        assert "no C++ compiler" in (NativeLibrary(source, check=lambda: None).why_not() or "")
        with pytest.raises(BuildError, match="no C"):
            build.build(source, "plain")
    finally:
        monkeypatch.undo()
        build.compiler.cache_clear()


def test_only_one_pool_of_threads(source: Path) -> None:
    library = NativeLibrary(source, check=lambda: None)
    assert library.why_not() is None
    loaded = {Path(line.split()[-1]) for line in Path("/proc/self/maps").read_text().splitlines() if "libgomp" in line}
    pools = {
        path for path in loaded if path.parent.suffix != ".libs"
    }  # of wheels that other tests imported: scikit-learn
    assert pools == {build.openmp()}


def test_levels_are_ordered_by_what_they_need(monkeypatch: pytest.MonkeyPatch) -> None:
    everything = set().union(*processor._NEEDS.values())
    expected = {"amx": everything, "avx512_bf16": everything - {"amx_bf16"}, "plain": {"avx512f", "avx512_bf16"}}
    for level, flags in expected.items():
        monkeypatch.setattr(processor, "flags", lambda flags=flags: frozenset(flags))
        monkeypatch.setattr("platform.machine", lambda: "x86_64")
        processor.best_level.cache_clear()
        assert processor.best_level() == level
    monkeypatch.setattr("platform.machine", lambda: "arm64")
    processor.best_level.cache_clear()
    assert processor.best_level() == "plain"
    monkeypatch.undo()
    processor.best_level.cache_clear()


def test_an_older_compiler_gets_the_level_it_knows(
    source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    names = processor.levels()
    newest = [flag for flag in processor.FLAGS[names[-1]] if flag not in processor.FLAGS[names[-2:][0]]]
    if not newest:
        pytest.skip("there is no level below this one")
    older = tmp_path / "older-g++"
    refuse = f'case "$*" in *{newest[-1]}*) echo "error: unrecognized {newest[-1]}" >&2; exit 1;; esac'
    older.write_text(f'#!/bin/sh\n{refuse}\nexec {build.compiler()[0]} "$@"\n')
    older.chmod(0o755)
    monkeypatch.setenv("CXX", str(older))
    build.compiler.cache_clear()
    try:
        library = NativeLibrary(source, check=lambda: None)
        assert library.why_not() is None and library.level == library.wanted_level == names[-2]
        monkeypatch.setenv(processor.VARIABLE, names[-1])
        assert newest[-1] in (NativeLibrary(source, check=lambda: None).why_not() or ""), (
            "what is forced is not replaced"
        )
    finally:
        build.compiler.cache_clear()


def test_without_shared_threads_only_when_forced(source: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As with clang, or where torch has another OpenMP: one thread would do the work of all."""
    found = build.compiler()[0]
    monkeypatch.setattr(build, "compiler", lambda: (found, "some clang version 19"))
    torch.set_num_threads(2)
    assert "one of torch's 2 threads" in (NativeLibrary(source, check=lambda: None).why_not() or "")
    monkeypatch.setenv(processor.VARIABLE, "plain")
    x = torch.linspace(-3, 3, 64)
    y, rounded = torch.empty_like(x), torch.empty_like(x, dtype=torch.bfloat16)
    library = NativeLibrary(source, check=lambda: None)
    assert library.why_not() is None
    library.call("exponential", x, y, rounded, len(x), 1.0)
    torch.testing.assert_close(y, x.exp())


def test_torch_s_own_pool_among_others(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch, "__file__", "/my things/torch/__init__.py")
    beside, others = Path("/my things/torch/lib/libgomp.so.1"), ("/a/scikit_learn.libs/libgomp-1.so", "/z/libgomp.so.1")
    maps = [f"7f00-7f01 r-xp 0 0:0 1      {path}\n" for path in (*others, beside)]
    monkeypatch.setattr(Path, "read_text", lambda self: "".join(maps))
    build.openmp.cache_clear()
    try:
        assert build.openmp() == beside
    finally:
        monkeypatch.undo()
        build.openmp.cache_clear()


def test_checked_in_plain_torch(source: Path) -> None:
    seen = []
    torch.set_default_dtype(torch.bfloat16)
    try:
        with torch.device("meta"):
            library = NativeLibrary(source, check=lambda: seen.append(torch.zeros(1)))
            assert library.why_not() is None
        assert torch.get_default_dtype() == torch.bfloat16
    finally:
        torch.set_default_dtype(torch.float32)
    assert (seen[0].dtype, seen[0].device.type) == (torch.float32, "cpu")
