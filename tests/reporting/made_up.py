"""Series and groups with known truth, for the tests and the measured rates of comparisons and histories."""

import math
from collections.abc import Mapping, Sequence

import numpy as np
from numpy.typing import NDArray

from superblock.reporting.content import Group, Measure, SeedValue
from superblock.reporting.facts import RunFacts

BITS, SPEED, MEMORY = "test/bits_per_byte", "final/tokens_per_second", "final/memory_peak_mib"
LEVELS = {BITS: 1.65, SPEED: 35000.0, MEMORY: 860.0}
DAY = 86400.0
Draws = NDArray[np.float64]


def normal(rng: np.random.Generator, n: int) -> Draws:
    """Deviation 1, as all of these have without their outliers."""
    return rng.standard_normal(n)


def heavy_tail(rng: np.random.Generator, n: int) -> Draws:
    """Student's t with 3 degrees of freedom."""
    draws: Draws = rng.standard_t(3, n) / math.sqrt(3)
    return draws


def outliers(rng: np.random.Generator, n: int) -> Draws:
    """One value in ten is lower by ten deviations on average: the machine was busy."""
    return rng.standard_normal(n) - (rng.random(n) < 0.1) * rng.exponential(10, n)


def changing(rng: np.random.Generator, n: int) -> Draws:
    """Its deviation is another for every value, between about a third and three times."""
    return rng.standard_normal(n) * np.exp(rng.normal(-0.36, 0.6, n))


def wandering(rng: np.random.Generator, n: int) -> Draws:
    """Neighbours correlate by 0.4, as where the machine's state outlasts an occasion."""
    draws = rng.standard_normal(n)
    for i in range(1, n):
        draws[i] = 0.4 * draws[i - 1] + math.sqrt(1 - 0.4**2) * draws[i]
    return draws


NOISES = {one.__name__: one for one in (normal, heavy_tail, outliers, changing, wandering)}


def run_facts(
    number: int, results: Mapping[str, float], *, seed: int = 1, stage: str = "mvp1", **changes: object
) -> RunFacts:
    """The run of the `number`-th day."""
    known: dict[str, object] = {
        "name": f"{stage}-s{seed}-{number}", "stage": stage, "scale": "mini", "arm": "default", "seed": seed,
        "suite": "training", "status": "FINISHED", "started": number * DAY + 300 * seed, "ended": number * DAY + 300 * seed + 40,
        "fingerprint": "f", "commit": f"{number:040x}", "dirty": False, "hardware": "a processor", "machine": "562b73a2",
        "command": "superblock run", "data_digest": "32d35cde4e3946d1", "data": "a text", "results": results,
    }  # fmt: skip
    return RunFacts(**{**known, **changes})  # type: ignore[arg-type]


def history(metric: str, logs: Sequence[float]) -> list[RunFacts]:
    """A run a day whose metric lies so far from its level, as logarithms."""
    return [run_facts(day, {metric: LEVELS[metric] * math.exp(value)}) for day, value in enumerate(logs)]


def group(
    logs: Mapping[str, Sequence[float]], *, stage: str = "mvp1", machine: str | None = "562b73a2",
    digest: str = "32d35cde4e3946d1", tokens: float = 1.2e6, seeds: Sequence[int] = range(1, 100),
) -> Group:  # fmt: skip
    """Runs of several seeds, each metric so far from its level, as logarithms."""
    measures = {}
    for metric, values in logs.items():
        shown = tuple(
            SeedValue(seed, LEVELS[metric] * math.exp(v), f"{stage}-s{seed}")
            for seed, v in zip(seeds, values, strict=False)
        )
        measures[metric] = Measure(shown, float(np.mean([one.value for one in shown])), None, None)
    return Group(
        key=f"mini/{stage}/default", stage=stage, scale="mini", arm="default", superblocks=1, parameters=1, active_parameters=1,
        training_tokens=tokens, flops=1e12, data_digest=digest, machine=machine, runs=(), measures=measures, references={},
    )  # fmt: skip
