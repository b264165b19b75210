"""From a case to its work: which function builds it."""

from collections.abc import Callable
from importlib import import_module

from superblock.benchmarks.speed.cases import Case
from superblock.benchmarks.speed.work import Work
from superblock.config.benchmark import BenchmarkConfig

BUILDERS = {
    "train": ("training", "training"),
    "optimizer": ("training", "optimizer"),
    "heads": ("training", "heads"),
    "prefill": ("inference", "prefill"),
    "decode": ("inference", "decode"),
    "delta-rule": ("parts", "delta_rule"),
    "gated-deltanet": ("parts", "gated_deltanet"),
    "attention": ("parts", "attention"),
    "moe": ("parts", "moe"),
    "convolution": ("parts", "convolution"),
    "norm": ("parts", "norm"),
    "cross-entropy": ("parts", "cross_entropy"),
    "loader": ("around", "loader"),
    "around": ("around", "surroundings"),
}


def build(config: BenchmarkConfig, case: Case) -> Work:
    """The work of a case; models are built when its variants are."""
    module, name = BUILDERS[case.kind]
    make: Callable[[BenchmarkConfig, Case], Work] = getattr(
        import_module(f"superblock.benchmarks.speed.{module}"), name
    )
    return make(config, case)
