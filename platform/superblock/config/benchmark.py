"""What the benchmark command measures."""

import hashlib
import json
import re
from collections.abc import Iterator
from dataclasses import asdict, dataclass

from superblock.config.ablation import SWEEPS, AblationConfig
from superblock.config.fields import knob, section
from superblock.config.finished import HarnessConfig, LanguageConfig
from superblock.config.probes import ProbesConfig
from superblock.config.stage import ScaleConfig
from superblock.config.tracking import TrackingConfig

BENCHMARK_NAME = r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}"
LONGEST_EXPERIMENT_NAME = 36
PRECISIONS = ("bf16", "fp32")
PEERS = ("bf16", "fp32", "bf16-eager", "fp32-eager", "bf16-compiled", "fp32-compiled")
SUITES = ("speed", "growth", "exits", "ablation", "probes", "language", "harness")
EXPERIMENTS = ("growth", "exits", "ablation", "probes")
"""Suites that train models and compare how good they become; several processes may share the runs of one."""
OF_FINISHED_RUNS = ("language", "harness")
"""Suites that look at models that are trained already."""


@dataclass
class SuiteConfig:
    """Which benchmarks run (conf/suite/*.yaml)."""

    name: str = knob("speed", "benchmarks to run", choices=SUITES)


@dataclass
class SpeedConfig:
    """Training, prefill, decoding and their parts beside transformers' Qwen3-Next of the same dimensions."""

    superblocks: list[int] = knob(lambda: [1, 3, 6, 12], "depths whose training step is measured", minimum=1)
    batch_size: int = knob(4, "sequences of that step", minimum=1)
    sequence_length: int = knob(512, "tokens of a sequence of that step", minimum=16)
    batch_sizes: list[int] = knob(lambda: [1, 2, 4, 8], "sequences per step, at the smallest depth", minimum=1)
    sequence_lengths: list[int] = knob(
        lambda: [512, 1024, 2048, 4096, 8192],
        "tokens of a sequence, at the smallest depth and constant tokens",
        minimum=16,
    )
    tokens_per_step: int = knob(8192, "tokens of a step while sequence_lengths grow", minimum=16)
    inference_superblocks: int = knob(3, "depth of prefill and decoding", minimum=1)
    prefill: list[int] = knob(lambda: [512, 2048, 8192], "tokens read at once into an empty cache", minimum=16)
    contexts: list[int] = knob(lambda: [512, 8192], "tokens in the cache when decoding begins", minimum=16)
    decode_tokens: int = knob(16, "tokens decoded one after the other in a sample", minimum=1)
    part_tokens: int = knob(4096, "tokens on which parts such as the delta rule are measured", minimum=64)
    head_dims: list[int] = knob(lambda: [64, 128], "head widths of the delta rule alone", minimum=8, maximum=256)
    precisions: list[str] = knob(lambda: ["bf16", "fp32"], "autocast or fp32 on our side", choices=PRECISIONS)
    peers: list[str] = knob(
        lambda: ["bf16", "fp32"],
        "the peer's variants, of which the fastest counts; -eager loops over experts, -compiled takes minutes to compile",
        choices=PEERS,
    )
    memory: bool = knob(True, "measure the peak memory of training steps, each in a process of its own")

    def problems(self) -> Iterator[tuple[str, str]]:
        for name in ("superblocks", "precisions"):
            if not getattr(self, name):
                yield name, "must name at least one"


@dataclass
class GrowthExperimentConfig:
    """Growing 1 -> 3 and 3 -> 6 superblocks by every method, against training from scratch at equal FLOPs in all."""

    parent_steps: int = knob(300, "steps of the models of 1 superblock that others grow from", minimum=1)
    grown_steps: int = knob(120, "steps after growing 1 -> 3", minimum=1)
    grown_steps_6: int = knob(80, "steps after growing 3 -> 6", minimum=1)
    seeds: list[int] = knob(lambda: [1, 2, 3, 4, 5], "seeds of every arm", minimum=0, maximum=2**31 - 1)
    extra_seeds: list[int] = knob(
        lambda: [1, 2, 3],
        "seeds, among seeds, of two more arms of the best method 1 -> 3: the optimizer begun anew, and learning_rate; [] is none",
        minimum=0,
        maximum=2**31 - 1,
    )
    learning_rate: float = knob(
        0.5, "lower peak rate tried after growing, as a share of the whole", above=0, maximum=10
    )

    def problems(self) -> Iterator[tuple[str, str]]:
        yield from _seeds_problems(self.seeds)
        if not set(self.extra_seeds) <= set(self.seeds) or len(set(self.extra_seeds)) < len(self.extra_seeds):
            yield "extra_seeds", f"must be different ones of seeds={self.seeds}"


@dataclass
class ExitsExperimentConfig:
    """Ways of training the early exits: what they cost the full depth, and how far they are from models of their own."""

    superblocks: list[int] = knob(lambda: [3], "depths that are trained: 3, 6 or both", minimum=3, maximum=6)
    steps: int = knob(120, "steps of every run", minimum=1)
    seeds: list[int] = knob(lambda: [1, 2, 3], "seeds of every arm", minimum=0, maximum=2**31 - 1)

    def problems(self) -> Iterator[tuple[str, str]]:
        yield from _seeds_problems(self.seeds)
        if (
            not self.superblocks
            or not set(self.superblocks) <= {3, 6}
            or len(set(self.superblocks)) < len(self.superblocks)
        ):
            yield "superblocks", "must be [3], [6] or [3,6]"


def _seeds_problems(seeds: list[int]) -> Iterator[tuple[str, str]]:
    if not seeds or len(set(seeds)) < len(seeds):
        yield "seeds", "must name at least one seed, each once"


@dataclass
class BenchmarkConfig:
    """`python -m platform.benchmark`: measure, and record what was measured."""

    suite: SuiteConfig = section(SuiteConfig, "which benchmarks")
    speed: SpeedConfig = section(SpeedConfig, "what suite=speed measures")
    growth: GrowthExperimentConfig = section(GrowthExperimentConfig, "what suite=growth trains")
    exits: ExitsExperimentConfig = section(ExitsExperimentConfig, "what suite=exits trains")
    ablation: AblationConfig = section(AblationConfig, "what suite=ablation trains")
    probes: ProbesConfig = section(ProbesConfig, "what suite=probes trains")
    language: LanguageConfig = section(LanguageConfig, "what suite=language measures")
    harness: HarnessConfig = section(HarnessConfig, "what suite=harness measures")
    scale: ScaleConfig = section(ScaleConfig, "sizes of the models")
    tracking: TrackingConfig = section(TrackingConfig, "MLflow")
    cases: str = knob("*", "names of the cases to run, with * and ?; several separated by |, as in 'part/*|decode/*'")
    repeats: int = knob(5, "suite=speed: samples of each variant", minimum=1, maximum=1000)
    threads: int | None = knob(None, "CPU threads; null is one per core", minimum=1)
    minutes: float = knob(15.0, "no case begins after this time", above=0, maximum=100_000)
    quick: bool = knob(
        False,
        "a smoke pass: speed with the smallest of each list, at most 128 tokens, 2 samples, no memory; growth, exits and ablation with "
        "2 seeds of a few steps",
    )
    resume: bool = knob(
        False,
        "suite=speed: continue the newest unfinished benchmark of this configuration on this machine; the others always do",
    )
    seed: int = knob(1, "suite=speed: seed of weights and tokens", minimum=0, maximum=2**31 - 1)
    output: str = knob("runs/benchmarks", "folder that holds a folder per benchmark")
    name: str | None = knob(
        None, "name of the benchmark's folder; null makes one from suite, scale and time, or the fingerprint"
    )

    def problems(self) -> Iterator[tuple[str, str]]:
        if self.name is not None and not re.fullmatch(BENCHMARK_NAME, self.name):
            yield "name", "must be letters, digits, '.', '_' and '-', at most 64, not starting with a sign"
        if not self.cases.strip():
            yield "cases", "must name at least one case; '*' is all of them"
        if self.resume and self.name is not None:
            yield "name", "has no effect with resume=true, which continues the newest"
        if self.suite.name in OF_FINISHED_RUNS:
            unused = {"cases": "*", "repeats": 5, "quick": False, "resume": False, "seed": 1}
            for key, default in unused.items():
                if getattr(self, key) != default:
                    yield key, f"has no effect with suite={self.suite.name}; see the keys of {self.suite.name}"
        if self.suite.name in EXPERIMENTS:
            if self.resume:
                yield "resume", f"is not needed: suite={self.suite.name} always goes on with what is there"
            if self.suite.name == "probes" and self.cases != "*":
                yield "cases", "has no effect with suite=probes; see probes.tasks, probes.arms and probes.seeds"
            for key, default in (("seed", 1), ("repeats", 5)):
                if getattr(self, key) != default:
                    yield key, f"has no effect with suite={self.suite.name}; see {self.suite.name}.seeds"
            if self.suite.name == "ablation" and not (self.ablation.file or self.ablation.arms):
                yield (
                    "ablation.file",
                    f"name a sweep file: {', '.join(SWEEPS)}, or a path of your own; or give ablation.arms",
                )
            if len(self.name or "") > LONGEST_EXPERIMENT_NAME:
                yield "name", f"must have at most {LONGEST_EXPERIMENT_NAME} signs: the names of the runs begin with it"


def benchmark_fingerprint(config: BenchmarkConfig) -> str:
    """Sixteen hex digits that are equal for two benchmarks that would measure the same cases in the same way."""
    plain = asdict(config)
    others = [suite for suite in SUITES if suite != config.suite.name]
    for key in ("tracking", "minutes", "resume", "output", "name", *others):
        del plain[key]
    if config.suite.name in EXPERIMENTS:
        del plain["cases"]  # which of its runs a start does; all belong to the same experiment
    return hashlib.sha256(json.dumps(plain, sort_keys=True).encode()).hexdigest()[:16]
