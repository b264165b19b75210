"""Attention: its masks, its forms against each other, documents, windows, cached keys, and rotary positions."""

import importlib
import importlib.util
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from superblock.kernels.attention import attend, choose, rotary, xformers
from superblock.kernels.attention import proof as proof_module
from superblock.kernels.attention.masks import visible
from superblock.kernels.attention.proof import Proof
from superblock.kernels.attention.xformers import dense_bias, packed_bias, why_not
from superblock.kernels.cuda_runtime import SONAME
from superblock.kernels.packing import PackInfo

CPU = torch.device("cpu")
needs_xformers = pytest.mark.skipif(importlib.util.find_spec("xformers") is None, reason="xformers is not installed")


def make(B: int, T: int, S: int, H: int, G: int, K: int, dtype: torch.dtype = torch.float32) -> list[Tensor]:
    generator = torch.Generator().manual_seed(T)
    shapes = ((B, T, H, K), (B, S, G, K), (B, S, G, K))
    return [torch.randn(s, generator=generator, dtype=torch.float64).to(dtype).requires_grad_() for s in shapes]


def pack_of(lengths: list[int], rows: int = 1) -> PackInfo:
    ids = torch.repeat_interleave(torch.arange(len(lengths)), torch.tensor(lengths))
    return PackInfo.from_doc_ids(ids.expand(rows, -1))


@settings(max_examples=30, deadline=None)
@given(
    lengths=st.lists(st.integers(1, 9), min_size=1, max_size=4),
    window=st.none() | st.integers(1, 12),
    heads=st.sampled_from([(1, 1), (4, 2), (3, 1)]),
    packed=st.booleans(),
)
def test_sdpa_equals_eager(lengths: list[int], window: int | None, heads: tuple[int, int], packed: bool) -> None:
    T = sum(lengths)
    qkv = make(2, T, T, *heads, 8, torch.float64)
    pack = pack_of(lengths, 2) if packed else None
    both = [attend(*qkv, pack=pack, window=window, backend=b) for b in ("sdpa", "eager")]
    torch.testing.assert_close(both[0], both[1])
    grads = [torch.autograd.grad(o.sin().sum(), qkv) for o in both]
    torch.testing.assert_close(grads[0], grads[1])


@pytest.mark.parametrize("backend", ["sdpa", "eager"])
@pytest.mark.parametrize("window", [None, 3])
def test_packed_documents_equal_separate_ones(backend: str, window: int | None) -> None:
    lengths = [1, 6, 2, 8]
    qkv = make(1, 17, 17, 4, 2, 8)
    o = attend(*qkv, pack=pack_of(lengths), window=window, backend=backend)
    parts = zip(*(x.split(lengths, dim=1) for x in qkv), strict=True)
    alone = [attend(*part, pack=None, window=window, backend=backend) for part in parts]
    torch.testing.assert_close(o, torch.cat(alone, dim=1), rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("backend", ["sdpa", "eager"])
@pytest.mark.parametrize("window", [None, 1, 4, 40])
def test_cached_keys_equal_the_whole_sequence(backend: str, window: int | None) -> None:
    q, k, v = make(2, 12, 12, 4, 2, 8)
    whole = attend(q, k, v, pack=None, window=window, backend="eager")
    for start, end, keys in ((0, 5, 5), (5, 9, 9), (9, 12, 12), (11, 12, 12), (3, 4, 12)):
        part = attend(
            q[:, start:end], k[:, :keys], v[:, :keys], pack=None, window=window, query_start=start, backend=backend
        )
        torch.testing.assert_close(part, whole[:, start:end], rtol=1e-5, atol=1e-6)


def test_windows_against_transformers() -> None:
    masks = pytest.importorskip("transformers.masking_utils")
    for window in (1, 3, 7, 50):
        theirs = masks.sliding_window_causal_mask_function(window)
        ours = visible(7, 7, pack=None, window=window, query_start=0, device=CPU)
        want = [[bool(theirs(0, 0, torch.tensor(i), torch.tensor(j))) for j in range(7)] for i in range(7)]
        assert ours is not None
        assert ours[0, 0].tolist() == want


@needs_xformers
@pytest.mark.parametrize("window", [None, 1, 3, 50])
def test_masks_against_xformers(window: int | None) -> None:
    pack = PackInfo.from_doc_ids(torch.tensor([[0, 0, 0, 1, 1, 1, 1], [0, 1, 1, 1, 1, 2, 2]]))
    bias = packed_bias(pack, window).materialize((1, 1, 14, 14))[0, 0] == 0
    ours = visible(7, 7, pack=pack, window=window, query_start=0, device=CPU)
    assert ours is not None
    assert torch.equal(bias, torch.block_diag(*(m.float() for m in ours[:, 0])).bool())
    for T, S in ((7, 7), (3, 7), (1, 7)):
        dense = dense_bias(T, S, window)
        want = visible(T, S, pack=None, window=window, query_start=S - T, device=CPU)
        if dense is None:
            assert want is None
        else:
            assert want is not None
            assert torch.equal(dense.materialize((1, 1, T, S))[0, 0] == 0, want[0, 0])


def definition(q: Tensor, k: Tensor, v: Tensor, attn_bias: object = None) -> Tensor:
    """What xFormers' kernels compute."""
    bias = 0.0 if attn_bias is None else attn_bias.materialize((1, 1, q.shape[1], k.shape[1]))  # type: ignore[attr-defined]
    scores = torch.einsum("bthk,bshk->bhts", q, k) * q.shape[-1] ** -0.5 + bias
    return torch.einsum("bhts,bshk->bthk", scores.softmax(-1).to(v.dtype), v)


@needs_xformers
@pytest.mark.parametrize("case", [(None, None, 9), (3, None, 9), (None, [4, 5], 9), (3, [4, 5], 9), (None, None, 2)])
def test_what_xformers_is_given(
    case: tuple[int | None, list[int] | None, int], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its CUDA kernels replaced by their definition: layout, repeated heads and biases give our attention."""
    ops = importlib.import_module("xformers.ops")
    from superblock.kernels.attention.xformers import memory_efficient

    monkeypatch.setattr(ops, "memory_efficient_attention", definition)
    window, lengths, T = case
    q, k, v = make(2, T, 9, 4, 2, 8)
    pack = None if lengths is None else pack_of(lengths, 2)
    place = {"pack": pack, "window": window, "query_start": 9 - T}
    torch.testing.assert_close(memory_efficient(q, k, v, **place), attend(q, k, v, backend="eager", **place))


@pytest.mark.parametrize("pack", [None, pack_of([20, 30], 2)])
def test_16_bit_autocast_and_strides(pack: PackInfo | None) -> None:
    q, k, v = make(2, 50, 50, 4, 2, 16)
    exact = attend(q, k, v, pack=pack, backend="eager")
    with torch.autocast("cpu", torch.bfloat16):
        o = attend(q, k, v.bfloat16(), pack=pack)
        grads = torch.autograd.grad(o.float().sin().sum(), (q, k, v))
    assert o.dtype == torch.bfloat16
    torch.testing.assert_close(o.float(), exact, rtol=2e-2, atol=2e-2)
    for a, b in zip(grads, torch.autograd.grad(exact.sin().sum(), (q, k, v)), strict=True):
        assert (a - b).norm() < 2e-2 * b.norm()
    strided = [x.detach().permute(0, 2, 3, 1).contiguous().permute(0, 3, 1, 2) for x in (q, k, v)]
    torch.testing.assert_close(attend(*strided, pack=pack), attend(q, k, v, pack=pack), rtol=1e-5, atol=1e-6)


def test_choice_of_backend() -> None:
    assert choose("sdpa", "cuda") == choose("auto", "cpu", dtype=torch.float64) == "sdpa"
    assert choose("eager", "cpu") == "eager"
    with pytest.raises(ValueError, match="'flash' is unknown; choose one of"):
        choose("flash", "cpu")
    with pytest.raises(RuntimeError, match="no kernels for cpu; use 'sdpa'"):
        choose("xformers", "cpu")


@needs_xformers
def test_xformers_that_cannot_load_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    library = importlib.import_module("xformers._cpp_lib")
    gpu = torch.device("cuda")
    monkeypatch.setattr(library, "_built_with_cuda", False)
    monkeypatch.setattr(xformers, "load_cuda_12", lambda: None)
    assert "needs libcudart.so.12" in str(why_not(gpu)) and "superblock[gpu]" in str(why_not(gpu))
    monkeypatch.setattr(xformers, "load_cuda_12", lambda: Path("libcudart.so.12"))
    assert "does not load" in str(why_not(gpu))
    monkeypatch.setattr(library, "_built_with_cuda", True)
    assert why_not(gpu) is None


@needs_xformers
def test_auto_takes_xformers_where_it_is_proven(monkeypatch: pytest.MonkeyPatch) -> None:
    """Only for documents and windows: whole rows need no mask in torch's own kernels."""
    seen = {"reason": None}
    monkeypatch.setattr(proof_module, "proof", lambda device, dtype, head_dim: Proof("fa2F-pt", 1e-3, seen["reason"]))
    assert choose("auto", "cuda") == choose("xformers", "cuda") == "xformers"
    assert choose("auto", "cuda", masked=False) == "sdpa"
    seen["reason"] = "its fa2F-pt differs"
    assert choose("auto", "cuda") == "sdpa"
    with pytest.raises(RuntimeError, match="its fa2F-pt differs; use 'sdpa'"):
        choose("xformers", "cuda")


@needs_xformers
def test_the_proof_accepts_the_definition_and_refuses_anything_else(monkeypatch: pytest.MonkeyPatch) -> None:
    """On a processor with xFormers' kernels replaced by their definition, then by one that leaks between documents."""
    monkeypatch.setattr(xformers, "why_not", lambda device: None)
    monkeypatch.setattr(proof_module, "_operator", lambda qkv, pack: "fa2F-pt")
    ops = importlib.import_module("xformers.ops")
    monkeypatch.setattr(ops, "memory_efficient_attention", definition)
    right = proof_module._compare(CPU, torch.bfloat16, 32)
    assert right.reason is None and 0 < right.error < 2e-2 and right.operator == "fa2F-pt"
    causal = importlib.import_module("xformers.ops.fmha.attn_bias").LowerTriangularMask()
    monkeypatch.setattr(ops, "memory_efficient_attention", lambda q, k, v, attn_bias: definition(q, k, v, causal))
    assert "its fa2F-pt differs from the reference by" in str(proof_module._compare(CPU, torch.bfloat16, 32).reason)
    proof_module.proof.cache_clear()
    monkeypatch.undo()
    monkeypatch.setattr(xformers, "why_not", lambda device: None)
    assert "it failed on a small problem" in str(proof_module.proof(CPU, torch.bfloat16, 32).reason)
    assert "no torch.float64 kernel" in str(proof_module.proof(CPU, torch.float64, 32).reason)
    proof_module.proof.cache_clear()


@pytest.mark.skipif(sys.platform != "linux" or shutil.which("gcc") is None, reason="needs a C compiler for Linux")
def test_cuda_12_is_found_by_name_after_it_was_loaded_by_path(tmp_path: Path) -> None:
    """A stand-in for NVIDIA's wheel and for an extension that asks for it, in a process of their own."""
    folder = tmp_path / "site" / "nvidia" / "cuda_runtime" / "lib"
    folder.mkdir(parents=True)
    (tmp_path / "a.c").write_text("int runtime_version(void) { return 12; }\n")
    (tmp_path / "b.c").write_text("int runtime_version(void); int ask(void) { return runtime_version(); }\n")
    library, extension = folder / SONAME, tmp_path / "extension.so"
    for line in (
        ["gcc", "-shared", "-fPIC", f"-Wl,-soname,{SONAME}", "-o", library, tmp_path / "a.c"],
        ["gcc", "-shared", "-fPIC", "-o", extension, tmp_path / "b.c", f"-L{folder}", f"-l:{SONAME}"],
    ):
        subprocess.run(list(map(str, line)), check=True)
    script = f"""
import ctypes, sys
from superblock.kernels.cuda_runtime import load_cuda_12
assert load_cuda_12() is None
try:
    ctypes.CDLL({str(extension)!r})
    raise SystemExit("the loader found it by itself")
except OSError:
    pass
sys.path.append({str(tmp_path / "site")!r})
assert str(load_cuda_12()) == {str(library)!r} == str(load_cuda_12())
print(ctypes.CDLL({str(extension)!r}).ask())
"""
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout.strip()) == (0, "12"), done.stderr


@pytest.mark.parametrize("fraction", [0.25, 0.5, 1.0])
def test_rotary_against_transformers(fraction: float) -> None:
    peer = pytest.importorskip("transformers.models.qwen3_next.modeling_qwen3_next")
    positions = torch.tensor([[0, 1, 2, 3, 4], [7, 8, 0, 1, 1000]])
    rope = {"rope_type": "default", "rope_theta": 1e4, "partial_rotary_factor": fraction}
    config = peer.Qwen3NextConfig(head_dim=32, rope_parameters=rope, partial_rotary_factor=fraction)
    x = torch.randn(2, 5, 3, 32, generator=torch.Generator().manual_seed(0))
    cos, sin = peer.Qwen3NextRotaryEmbedding(config)(x, positions)
    want, _ = peer.apply_rotary_pos_emb(x, x, cos, sin, unsqueeze_dim=2)
    torch.testing.assert_close(rotary(x, positions, fraction=fraction, theta=1e4), want, rtol=1e-6, atol=1e-6)


def test_rotary_positions() -> None:
    x = torch.randn(1, 9, 2, 16, generator=torch.Generator().manual_seed(0))
    assert rotary(x, torch.arange(9)[None], fraction=0.0, theta=1e4) is x
    packed = rotary(x, pack_of([4, 5]).position_ids_BT, fraction=0.5, theta=1e4)
    alone = [rotary(part, torch.arange(part.shape[1])[None], fraction=0.5, theta=1e4) for part in x.split([4, 5], 1)]
    assert torch.equal(packed, torch.cat(alone, dim=1))
    far = torch.full((1, 9), 5000)
    half = rotary(x.bfloat16(), far, fraction=1.0, theta=1e4)
    assert half.dtype == torch.bfloat16
    torch.testing.assert_close(half.float(), rotary(x, far, fraction=1.0, theta=1e4), rtol=2e-2, atol=2e-2)
    # only distances matter to a product of a query and a key
    q, k = x[:, :1], x[:, 1:2]
    products = [
        (
            rotary(q, torch.tensor([[a]]), fraction=1.0, theta=1e4)
            * rotary(k, torch.tensor([[b]]), fraction=1.0, theta=1e4)
        ).sum()
        for a, b in ((10, 4), (110, 104))
    ]
    torch.testing.assert_close(products[0], products[1], rtol=1e-4, atol=1e-4)
