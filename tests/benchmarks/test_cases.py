"""Which cases there are, what they cost, and what is said of a name that matches none."""

from dataclasses import fields, replace
from importlib import import_module

import pytest

from superblock.benchmarks.speed.cases import all_cases, estimate, flops, model_config, quickened, select
from superblock.benchmarks.speed.command import settings_of
from superblock.config.benchmark import BenchmarkConfig, SpeedConfig, SuiteConfig, benchmark_fingerprint
from superblock.config.fields import ConfigError, validate
from superblock.models.formulas import count


def names(**changes: object) -> list[str]:
    return [case.name for case in select(BenchmarkConfig(**changes))]


def test_the_default_suite_has_what_is_promised() -> None:
    found = names()
    assert len(set(found)) == len(found)
    for depth in (1, 3, 6, 12):
        assert f"train/s{depth}/b4-t512" in found
    for batch in (1, 2, 4, 8):
        assert f"train/s1/b{batch}-t512" in found
    for shape in ("b16-t512", "b8-t1024", "b4-t2048", "b2-t4096", "b1-t8192"):
        assert f"train/s1/{shape}" in found
    assert {"prefill/s3/t512", "prefill/s3/t2048", "prefill/s3/t8192"} <= set(found)
    assert {"decode/s3/c512", "decode/s3/c8192", "part/delta-rule-64", "part/delta-rule-128"} <= set(found)
    assert {"part/moe", "part/attention", "part/cross-entropy", "part/optimizer"} <= set(found)
    assert {"around/loader", "around/step"} <= set(found)
    assert not any(set("=,") & set(name) for name in found)


def test_every_suite_has_a_command_of_its_own() -> None:
    for name in next(f for f in fields(SuiteConfig) if f.name == "name").metadata["limits"].choices:
        assert callable(import_module(f"superblock.benchmarks.{name}.command").run)


def test_memory_is_measured_where_the_depth_grows() -> None:
    weighed = [case.name for case in select(BenchmarkConfig()) if case.memory]
    assert weighed == [f"train/s{depth}/b4-t512" for depth in (1, 3, 6, 12)]


def test_cases_by_name() -> None:
    assert names(cases="part/moe") == ["part/moe"]
    assert names(cases="decode/* | prefill/s3/t512") == ["prefill/s3/t512", "decode/s3/c512", "decode/s3/c8192"]
    with pytest.raises(ConfigError, match=r"cases=part/mo\|train/\*: part/mo is none of .*did you mean part/moe\?"):
        names(cases="part/mo|train/*")


def test_quick_takes_the_smallest_of_each() -> None:
    quick = quickened(SpeedConfig(superblocks=[3, 2], prefill=[64, 512]))
    assert quick.superblocks == [2] and quick.prefill == [64] and quick.sequence_length == 128 and not quick.memory
    assert all(case.tokens <= 128 and not case.memory for case in all_cases(quick))
    kinds = {case.kind for case in all_cases(SpeedConfig())}
    assert kinds == {case.kind for case in all_cases(quick)}


def test_the_default_suite_takes_a_quarter_of_an_hour_on_two_cores() -> None:
    config = BenchmarkConfig()
    limits = {"bf16": 420e9, "fp32": 190e9}  # two cores with AVX-512
    assert sum(estimate(case, config, limits, 2, settings_of(config)) for case in select(config)) < 15 * 60
    quick = replace(config, quick=True)
    assert sum(estimate(case, quick, limits, 2, settings_of(quick)) for case in select(quick)) < 60


def test_flops() -> None:
    config = BenchmarkConfig()
    by_name = {case.name: case for case in select(config)}
    whole = by_name["train/s3/b4-t512"]
    counts = count(model_config(config.scale, 3, 512))
    assert flops(whole, config.scale) == 4 * 512 * counts.training_flops_per_token(512, heads=False)
    assert flops(by_name["part/delta-rule-128"], config.scale) == 3 * 4096 * 7 * 4 * 128**2
    assert flops(by_name["part/cross-entropy"], config.scale) == 6 * 4096 * 256 * 4096
    assert flops(by_name["part/norm"], config.scale) is None
    short, long = (flops(by_name[f"decode/s3/c{n}"], config.scale) for n in (512, 8192))
    assert short and long and long - short == pytest.approx(16 * 3 * 4 * 4 * 64 * (8192 - 512))


def test_the_fingerprint_tells_what_is_measured_not_where_it_goes() -> None:
    plain = benchmark_fingerprint(BenchmarkConfig())
    assert plain == benchmark_fingerprint(BenchmarkConfig(resume=True, output="elsewhere", minutes=3))
    assert plain != benchmark_fingerprint(BenchmarkConfig(repeats=6))
    assert plain != benchmark_fingerprint(BenchmarkConfig(cases="part/*"))


@pytest.mark.parametrize(
    ("config", "text"),
    [
        (BenchmarkConfig(name="a/b"), "name=a/b: must be letters"),
        (BenchmarkConfig(name="a", resume=True), "name=a: has no effect with resume=true"),
        (BenchmarkConfig(cases=" "), "cases= : must name at least one case"),
        (BenchmarkConfig(speed=SpeedConfig(superblocks=[])), "speed.superblocks=.*must name at least one"),
        (BenchmarkConfig(speed=SpeedConfig(peers=["int8"])), "speed.peers=int8: must be one of bf16, fp32"),
        (
            BenchmarkConfig(speed=SpeedConfig(head_dims=[512])),
            "speed.head_dims=512: must be at least 8 and at most 256",
        ),
    ],
)
def test_what_cannot_work_is_said(config: BenchmarkConfig, text: str) -> None:
    with pytest.raises(ConfigError, match=text):
        validate(config)
