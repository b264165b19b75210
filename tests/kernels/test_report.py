"""What is said about the kernels of a run, and how all C++ sources are made ready."""

import importlib
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from superblock.config.fields import ConfigError
from superblock.config.model import ModelConfig
from superblock.kernels.native import NativeLibrary, collection, processor
from superblock.kernels.native.collection import Prepared, libraries, prepare
from superblock.kernels.report import Choice, choices, describe, tags

CPU = torch.device("cpu")
SOURCE = """#include <cstdint>
extern "C" __attribute__((visibility("default"))) void fill(float* x, int64_t n, int64_t threads) { for (int64_t i = 0; i < n; ++i) x[i] = 3; }
"""


@pytest.fixture
def unloaded(monkeypatch: pytest.MonkeyPatch) -> Iterator[dict[str, NativeLibrary]]:
    """Every library as at the start of a process; afterwards as it was."""
    found = libraries()
    for library in found.values():
        for name, value in {"_tried": False, "_handle": None, "_reason": None, "_level": None}.items():
            monkeypatch.setattr(library, name, value)
    yield found


def test_libraries_are_found_without_a_list(root: Path) -> None:
    folder = root / "platform" / "superblock" / "kernels"
    found = libraries()
    assert {library.source for library in found.values()} == set(folder.glob("*/*.cpp"))
    assert "delta_rule.native" in found


def test_sources_are_compiled_side_by_side_and_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SUPERBLOCK_CACHE", str(tmp_path / "cache"))  # kernels are otherwise kept between sessions
    made = {}
    for name in ("one", "two"):
        (tmp_path / name).mkdir()
        source = tmp_path / name / "native.cpp"
        source.write_text(SOURCE)
        made[f"{name}.native"] = NativeLibrary(source, check=lambda: None, level="plain")
    (tmp_path / "two" / "native.cpp").write_text("this is no C++")
    monkeypatch.setattr(collection, "libraries", lambda: made)
    said: list[str] = []
    prepared = prepare(said.append)
    if reason := made["one.native"].why_not():
        pytest.skip(reason)
    assert said == ["compiling 2 C++ sources"]
    assert prepared.level == "plain" and prepared.seconds > 0 and prepared.reason is None
    assert "does not compile" in prepared.refused["two.native"]
    x = torch.zeros(3)
    made["one.native"].call("fill", x, 3)
    assert x.tolist() == [3, 3, 3]
    again = {"one.native": NativeLibrary(made["one.native"].source, check=lambda: None, level="plain")}
    monkeypatch.setattr(collection, "libraries", lambda: again)
    assert prepare(said.append) == Prepared("plain", 0.0, {}) and len(said) == 1


def test_one_line_where_there_is_no_compiler(
    unloaded: dict[str, NativeLibrary], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    build = importlib.import_module("superblock.kernels.native.build")
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.delenv("CXX", raising=False)
    build.compiler.cache_clear()
    prepared = prepare(lambda text: pytest.fail(f"said {text}"))
    found = choices(ModelConfig(), CPU, torch.bfloat16)
    build.compiler.cache_clear()
    first, second = describe(found, prepared)
    assert first == "PyTorch, no C++: no C++ compiler (g++ or clang++) on the path; apt install g++"
    assert second.startswith("attention sdpa, delta rule chunked, experts sorted, cross-entropy chunked, norm torch")
    assert tags(found, prepared)["kernels.native"] == "none"


def test_turned_off_by_the_environment(unloaded: dict[str, NativeLibrary], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(processor.VARIABLE, "off")
    prepared = prepare()
    assert prepared.reason == "SUPERBLOCK_NATIVE=off"
    assert describe(choices(ModelConfig(), CPU, torch.float32), prepared)[0] == "PyTorch, no C++: SUPERBLOCK_NATIVE=off"


def test_what_does_not_fit_says_why() -> None:
    config = ModelConfig()
    config.gdn.key_dim = 40
    prepared = replace(prepare(), seconds=6.2)
    if prepared.reason:
        pytest.skip(prepared.reason)
    found = choices(config, CPU, torch.bfloat16)
    rule = next(choice for choice in found if choice.operation == "delta rule")
    assert rule.backend == "chunked" and "key_dim=40" in rule.note
    lines = describe(found, prepared)
    assert lines[0].startswith(f"C++ ({prepared.level}, built in 6 s): attention, experts")
    assert lines[1].startswith("delta rule chunked (C++: key_dim=40")
    assert tags(found, prepared)["kernels.delta_rule"] == "chunked"


@pytest.mark.parametrize(
    ("section", "backend", "reason"),
    [("gqa", "xformers", "no kernels for cpu"), ("gdn", "fla", "no kernels for cpu"), ("gdn", "native", "key_dim=40")],
)
def test_an_explicit_choice_that_cannot_run_is_an_error(section: str, backend: str, reason: str) -> None:
    config = ModelConfig()
    config.gdn.key_dim = 40
    getattr(config, section).backend = backend
    with pytest.raises(ConfigError, match=f"model.{section}.backend={backend}: .*cannot run: .*{reason}"):
        choices(config, CPU, torch.bfloat16)


def test_what_is_said_on_a_gpu() -> None:
    """As `choices` reports it there: no C++ line, notes in brackets."""
    found = [
        Choice("attention", "xformers", "fa2F-pt, 4e-03 from the reference; sdpa for whole rows"),
        Choice("delta rule", "chunked", "flash-linear-attention: it cannot be imported"),
        Choice("experts", "grouped"),
    ]
    assert describe(found, None) == [
        "attention xformers (fa2F-pt, 4e-03 from the reference; sdpa for whole rows), "
        "delta rule chunked (flash-linear-attention: it cannot be imported), experts grouped"
    ]
    assert tags(found, None)["kernels.attention"] == "xformers"


def test_operations_that_a_model_lacks_are_left_out() -> None:
    config = ModelConfig(pattern=["gqa"])
    assert "delta rule" not in {choice.operation for choice in choices(config, CPU, torch.float32)}
    config = ModelConfig(pattern=["gdn"])
    assert "attention" not in {choice.operation for choice in choices(config, CPU, torch.float32)}


def test_a_part_that_fails_alone_is_named() -> None:
    refused = {"delta_rule.native_convolution": "gradients differ", "norm.native": "said by the choice of the norm"}
    lines = describe([Choice("attention", "native")], Prepared("avx2", 0.0, refused))
    assert lines == ["C++ (avx2): attention", "PyTorch for delta_rule_convolution: gradients differ"]
