"""Every case does the same work on both sides, and says so if it does not."""

import pytest
import torch

from superblock.benchmarks.speed import parts, suite, work
from superblock.benchmarks.speed.cases import Case, select
from superblock.benchmarks.speed.memory import peak_memory
from superblock.config.benchmark import BenchmarkConfig

pytest.importorskip("transformers")

COMPARED = (
    "train",
    "prefill",
    "decode",
    "delta-rule",
    "gated-deltanet",
    "attention",
    "moe",
    "convolution",
    "norm",
    "cross-entropy",
)


def case_of(config: BenchmarkConfig, kind: str) -> Case:
    return next(case for case in select(config) if case.kind == kind)


@pytest.mark.parametrize("kind", COMPARED)
def test_both_sides_compute_the_same(config: BenchmarkConfig, kind: str) -> None:
    built = suite.build(config, case_of(config, kind))
    assert built.check is not None
    assert built.check() < work.TOLERANCE
    assert {v.name for v in built.variants} >= {
        *("superblock-bf16", "superblock-fp32", "transformers-bf16", "transformers-fp32")
    }
    for variant in built.variants:
        call = variant.make()
        assert call() is None and call() is None
        assert variant.baseline == variant.name.startswith("transformers")


def test_two_superblocks_share_their_weights_too(config: BenchmarkConfig) -> None:
    built = suite.build(config, Case("train/s2", "train", batch=2, tokens=24, superblocks=2))
    assert built.check is not None and built.check() < work.TOLERANCE


def test_a_wrong_result_is_not_timed(config: BenchmarkConfig, monkeypatch: pytest.MonkeyPatch) -> None:
    right = parts.gated_delta_rule
    monkeypatch.setattr(parts, "gated_delta_rule", lambda *inputs: (1.01 * right(*inputs)[0], None))
    built = suite.build(config, case_of(config, "delta-rule"))
    assert built.check is not None
    with pytest.raises(AssertionError, match=r"the output differs from the peer's by 1\.0e-02"):
        built.check()


def test_not_a_number_is_a_difference() -> None:
    with pytest.raises(AssertionError, match="x differs"):
        work.difference(torch.tensor([float("nan")]), torch.ones(1), "x")


def test_the_loop_over_experts_has_the_same_weights(config: BenchmarkConfig) -> None:
    pair = work.Pair(config, Case("train", "train", batch=2, tokens=16))
    looping, ids_BT = pair.styled("eager"), pair.tokens(2, 16)
    with torch.no_grad():
        assert torch.allclose(looping(ids_BT).logits, pair.theirs(ids_BT).logits, atol=1e-5)
    assert looping.config._experts_implementation != pair.theirs.config._experts_implementation
    ours = {id(p) for p in pair.theirs.parameters()}
    assert {id(p) for p in looping.parameters()} == ours


def test_without_transformers_ours_is_still_measured(config: BenchmarkConfig, monkeypatch: pytest.MonkeyPatch) -> None:
    for module in ("work", "training", "inference", "parts"):
        monkeypatch.setattr(f"superblock.benchmarks.speed.{module}.has_peer", lambda: False)
    for kind in (*COMPARED, "optimizer"):
        built = suite.build(config, case_of(config, kind))
        assert built.check is None and not any(v.baseline for v in built.variants)
        for variant in built.variants:
            variant.make()()


def test_peers_and_precisions_are_a_choice(config: BenchmarkConfig) -> None:
    config.speed.precisions, config.speed.peers = ["fp32"], ["fp32-eager"]
    built = suite.build(config, case_of(config, "train"))
    assert [v.name for v in built.variants] == ["superblock-fp32", "transformers-fp32-eager"]
    assert [v.name for v in suite.build(config, case_of(config, "moe")).variants] == ["superblock-fp32"]


def test_peak_memory_of_a_process_of_its_own(config: BenchmarkConfig) -> None:
    peak = peak_memory(config, case_of(config, "train"), "superblock-fp32", 1)
    assert 50 * 2**20 < peak.before <= peak.peak < 2**31


def test_a_process_that_fails_says_why(config: BenchmarkConfig) -> None:
    with pytest.raises(RuntimeError, match=r"memory of train/s1/b1-t32 nobody failed: ValueError"):
        peak_memory(config, case_of(config, "train"), "nobody", 1)


@pytest.mark.parametrize("kind", ["loader", "heads", "optimizer"])
def test_what_has_no_counterpart_runs(config: BenchmarkConfig, kind: str) -> None:
    for variant in suite.build(config, case_of(config, kind)).variants:
        variant.make()()


def test_a_step_within_a_run(config: BenchmarkConfig) -> None:
    whole, bare = suite.build(config, case_of(config, "around")).variants
    seconds, alone = whole.make()(), bare.make()()
    assert seconds is not None and alone is not None and 0 < alone < 60 and 0 < seconds < 60
