"""What a benchmark leaves behind: one JSON file with a version, written anew after every case.

schema      "superblock.benchmark/1"
suite name fingerprint machine commit status started finished seconds
settings    the configuration, without where results go
process     threads, and what else was set for all variants
limits      FLOP/s in plain matrix products by precision
contention  how disturbance was told, and how many samples it cost
cases       by name: kind, sizes, FLOPs and tokens of a call, largest difference of the results, and `variants` by name:
            seconds per call of every sample, their spread in ms, tokens/s, FLOP/s, share of the limit, ratio to the
            fastest baseline, milliseconds beyond it, peak bytes
failed      by name: what went wrong
skipped     by name: why
provenance  tracking.provenance
"""

import time
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from superblock.benchmarks.timing import Timing, paired_ratios, spread
from superblock.tracking.files import read_json, write_json

SCHEMA = "superblock.benchmark/1"
COMPLETE, PARTIAL = "complete", "partial"


@dataclass
class Record:
    """One benchmark, finished or not."""

    suite: str
    name: str
    fingerprint: str
    machine: str
    """Fingerprint of the hardware: times compare only where it is equal."""
    commit: str
    settings: dict[str, Any]
    process: dict[str, Any] = field(default_factory=dict)
    limits: dict[str, float] = field(default_factory=dict)
    contention: dict[str, Any] = field(default_factory=dict)
    cases: dict[str, Any] = field(default_factory=dict)
    failed: dict[str, str] = field(default_factory=dict)
    skipped: dict[str, str] = field(default_factory=dict)
    provenance: dict[str, Any] = field(default_factory=dict)
    status: str = PARTIAL
    started: float = field(default_factory=time.time)
    finished: float | None = None
    seconds: float = 0.0
    """Over all starts."""
    schema: str = SCHEMA

    def save(self, path: Path) -> None:
        """Writes the file; it is either old or new, never half."""
        path.parent.mkdir(parents=True, exist_ok=True)
        write_json(path, asdict(self))

    @classmethod
    def load(cls, path: Path) -> "Record | None":
        """Reads what `save` wrote; None for anything else, another schema's version included."""
        data = read_json(path)
        if data.get("schema") != SCHEMA:
            return None
        try:
            return cls(**data)
        except TypeError:
            return None


@dataclass(frozen=True)
class Measured:
    """What was measured of one variant."""

    timing: Timing
    precision: str
    baseline: bool
    memory: tuple[int, int] | None = None
    """Bytes once imported, and at the most."""


def case_entry(
    facts: Mapping[str, Any],
    measured: Mapping[str, Measured],
    *,
    tokens: int,
    flops: float | None,
    limits: Mapping[str, float],
    error: float | None,
    seconds: float,
) -> dict[str, Any]:
    """The JSON object of a case.

    Args:
        facts: kind and sizes.
        measured: by variant; all with equally many samples.
        tokens: of one call.
        flops: model FLOPs of one call, if they are counted.
        limits: FLOP/s in matrix products by precision.
        error: largest relative difference of our result and the peer's.
        seconds: that the case took.
    """
    baselines = [name for name, m in measured.items() if m.baseline]
    best = min(baselines, key=lambda name: measured[name].timing.median, default=None)
    variants = {}
    for name, m in measured.items():
        reference = measured[best].timing.seconds if best and not m.baseline else None
        variants[name] = _variant(m, reference, tokens, flops, limits)
    if best and measured[best].memory:
        for name, m in measured.items():
            if m.memory and not m.baseline:
                variants[name]["memory_ratio"] = m.memory[1] / measured[best].memory[1]  # type: ignore[index]
    disturbed = {
        name: sum(getattr(m.timing, name) for m in measured.values()) for name in ("disturbed", "kept_disturbed")
    }
    return {**facts, "tokens": tokens, "flops": flops, "largest_difference": error, "fastest_baseline": best,
            "seconds": round(seconds, 3), **disturbed, "variants": variants}  # fmt: skip


def metrics(case: str, entry: Mapping[str, Any]) -> dict[str, float]:
    """The single results of a case, under the names MLflow shows: `speed/<case>/<variant>/ms` and so on."""
    found: dict[str, float] = {}
    for variant, values in entry["variants"].items():
        prefix = f"speed/{case}/{variant}/"
        found[prefix + "ms"] = values["ms"]["median"]
        for key in ("tokens_per_second", "flops_per_second", "matmul_share", "memory_ratio"):
            if values.get(key) is not None:
                found[prefix + key] = values[key]
        if values["ratio"]:
            found[prefix + "ratio"] = values["ratio"]["median"]
        if values["peak_bytes"]:
            found[prefix + "peak_mib"] = values["peak_bytes"] / 2**20
    return found


def _variant(
    m: Measured, reference: list[float] | None, tokens: int, flops: float | None, limits: Mapping[str, float]
) -> dict[str, Any]:
    seconds = m.timing.median
    rate = flops / seconds if flops else None
    beyond = (
        None if reference is None else [own - theirs for own, theirs in zip(m.timing.seconds, reference, strict=True)]
    )
    return {
        "precision": m.precision,
        "baseline": m.baseline,
        "seconds": [float(f"{value:.6g}") for value in m.timing.seconds],
        "calls_per_sample": m.timing.calls,
        "disturbed": m.timing.disturbed,
        "kept_disturbed": m.timing.kept_disturbed,
        "ms": spread([1e3 * value for value in m.timing.seconds]),
        "tokens_per_second": tokens / seconds if tokens else None,
        "flops_per_second": rate,
        "matmul_share": rate / limits[m.precision] if rate and limits.get(m.precision) else None,
        "ratio": spread(paired_ratios(reference, m.timing.seconds)) if reference else None,
        "beyond_baseline_ms": 1e3 * spread(beyond)["median"] if beyond else None,
        "bytes_before": m.memory[0] if m.memory else None,
        "peak_bytes": m.memory[1] if m.memory else None,
    }
