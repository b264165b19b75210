"""Run folders as training leaves them, without training: seeds, noise and planted effects.

A run's noise follows from its stage, arm, seed and start alone, so that equal calls write equal folders. Runs of one seed
share a part of it, as real ones share their data order and initial weights: pairing by seed pays.
"""

import json
import math
import random
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from superblock.tracking.files import write_json

BEGIN = datetime(2026, 11, 2, 6, tzinfo=UTC).timestamp()
DAY = 86400.0
TOKENS_PER_STEP = 2048
STAGES: dict[str, tuple[int, int, float, float]] = {
    "mvp1": (1, 600, 1.654, 30000.0),
    "mvp2": (3, 300, 1.597, 17800.0),
    "mvp3": (6, 300, 1.572, 10400.0),
    "mvp4": (12, 300, 1.561, 5600.0),
}
"""Superblocks, steps, bits per byte of the test text and tokens per second, as at `mini`."""
REFERENCES = {"unigram": 3.0467, "trigram": 1.7329, "xz": 1.654}
GATES = ("finite_loss", "gradients", "no_dead_experts", "bits_per_byte", "resume")
DIGEST, COMMIT, MACHINE = "32d35cde4e3946d1", "5e1f" * 10, "562b73a2"


@dataclass(frozen=True, kw_only=True)
class Synthetic:
    """One run to be written. `quality`, `speed` and `memory` multiply what its stage would give."""

    stage: str = "mvp1"
    scale: str = "mini"
    arm: str = "default"
    seed: int = 1
    started: float = BEGIN
    status: str = "FINISHED"
    quality: float = 1.0
    speed: float = 1.0
    memory: float = 1.0
    seed_spread: float = 0.005
    """Relative deviation of quality that runs of a seed share."""
    noise: float = 0.001
    """Relative deviation of quality of the run alone."""
    speed_noise: float = 0.01
    points: int = 60
    """Log lines of training."""
    tested: bool = True
    diverged: bool = False
    failed_gates: tuple[str, ...] = ()
    language: bool = False
    digest: str = DIGEST
    machine: str = MACHINE
    commit: str = COMMIT
    dirty: bool = False
    settings: tuple[tuple[str, str], ...] = ()
    """Further compared settings; `fingerprint` follows from them and the seed."""
    uid: str = ""

    @property
    def name(self) -> str:
        stamp = datetime.fromtimestamp(self.started, UTC).strftime("%Y%m%d-%H%M%S")
        arm = "" if self.arm == "default" else f"-{self.arm}"
        return f"{self.stage}-{self.scale}{arm}-s{self.seed}-{stamp}"

    @property
    def fingerprint(self) -> str:
        return f"{random.Random(repr((self.stage, self.scale, self.seed, self.settings))).getrandbits(64):016x}"

    @property
    def superblocks(self) -> int:
        return STAGES[self.stage][0]

    @property
    def steps(self) -> int:
        return STAGES[self.stage][1]

    @property
    def tokens(self) -> int:
        return self.steps * TOKENS_PER_STEP

    @property
    def bits(self) -> float:
        """Bits per byte of the test text."""
        shared = random.Random(f"seed {self.seed}").gauss(0, self.seed_spread)
        return STAGES[self.stage][2] * self.quality * (1 + shared) * (1 + self._draw("bits").gauss(0, self.noise))

    @property
    def tokens_per_second(self) -> float:
        return STAGES[self.stage][3] * self.speed * (1 + self._draw("speed").gauss(0, self.speed_noise))

    @property
    def memory_mib(self) -> float:
        return (700 + 40 * self.superblocks) * self.memory * (1 + self._draw("memory").gauss(0, 0.002))

    @property
    def seconds(self) -> float:
        return self.tokens / self.tokens_per_second

    @property
    def flops(self) -> float:
        return self.tokens * 3.0e6 * (0.4 + self.superblocks)

    def _draw(self, what: str) -> random.Random:
        return random.Random(f"{what} {self.stage} {self.arm} {self.seed} {self.started}")


def write_run(root: Path, run: Synthetic, parents: Sequence[Synthetic] = ()) -> Path:
    """Writes a run's folder.

    Args:
        root: folder of the runs.
        run: what to write.
        parents: the runs it grew from, oldest first.
    """
    folder = root / run.name
    (folder / "artifacts").mkdir(parents=True, exist_ok=True)
    finished = run.status == "FINISHED"
    uid = run.uid or f"{random.Random(run.name).getrandbits(128):032x}"
    known = {"stage": run.stage, "scale": run.scale, "arm": run.arm, "seed": run.seed, "fingerprint": run.fingerprint}
    identity = {"uid": uid, "started": run.started, "name": run.name, **known, "suite": "training"}
    write_json(folder / "run.json", {**identity, "experiment": "superblock", "starts": 1})
    end = run.started + run.seconds + 12
    noted = "RUNNING" if run.status == "INTERRUPTED" else run.status  # whose process is gone
    write_json(
        folder / "status.json",
        {"status": noted, "time": end, "pid": 2**22 + 1, "process_started": 0, "host": "elsewhere"},
    )
    write_json(folder / "provenance.json", _provenance(run))
    with open(folder / "spool.jsonl", "w", encoding="utf-8") as spool:
        spool.writelines(line + "\n" for line in _spool(run, parents, end))
    if finished:
        write_json(folder / "summary.json", _summary(run, parents))
        write_json(folder / "statements.json", _statements(run))
        (folder / "artifacts" / "samples.md").write_text(
            f"# Samples\n\n    def f{run.seed}(self):\n        pass\n", "utf-8"
        )
    if run.language:
        write_json(folder / "language.json", _language(run))
    return folder


def write_pipeline(
    root: Path, *, seeds: Iterable[int] = (1, 2, 3), stages: Iterable[str] = tuple(STAGES), **changes: Any
) -> list[Path]:
    """Runs of several stages, each grown from the one before, for every seed; one after the other in time."""
    folders, began = [], float(changes.pop("started", BEGIN))
    for seed in seeds:
        lineage: list[Synthetic] = []
        for stage in stages:
            run = Synthetic(stage=stage, seed=seed, started=round(began), **changes)
            folders.append(write_run(root, run, lineage))
            lineage.append(run)
            began = run.started + run.seconds + 20
    return folders


def write_history(
    root: Path, *, times: int, every: float = 7 * DAY, change_at: int | None = None, after: dict[str, Any] | None = None,
    seeds: Iterable[int] = (1, 2, 3), **common: Any,
) -> list[Path]:  # fmt: skip
    """The same runs again and again; from the `change_at`-th time on with other settings, such as `{"speed": 0.95}`."""
    chosen, base = list(seeds), Synthetic(**common)
    folders = []
    for time in range(times):
        effect = (after or {}) if change_at is not None and time >= change_at else {}
        for number, seed in enumerate(chosen):
            started = base.started + time * every + 300 * number
            folders.append(write_run(root, replace(base, seed=seed, started=started, **effect)))
    return folders


def write_probes(path: Path, *, seeds: Iterable[int] = (1, 2, 3), started: float = BEGIN) -> Path:
    """A record of the probes with the outcomes one expects."""
    solved = {"mqar": {"attention", "hybrid"}, "parity": {"deltanet", "hybrid"}}
    runs: dict[str, Any] = {}
    for task, arms in solved.items():
        for arm in ("attention", "deltanet", "deltanet-positive", "hybrid"):
            for seed in seeds:
                score = 0.99 if arm in arms else 0.52
                score += random.Random(f"{task} {arm} {seed}").uniform(0, 0.01)
                runs[f"{task}/{arm}/s{seed}"] = {
                    "task": task, "arm": arm, "seed": seed, "score": score, "score_name": "accuracy",
                    "chance": 0.5 if task == "parity" else 0.008, "levels": {"pairs=4": score, "pairs=8": score - 0.01},
                    "steps": 400, "seconds": 20.0, "parameters": 60000, "setting": "2 layers of 64",
                    "published": "1.0" if arm in arms else None,
                }  # fmt: skip
    record = {
        "schema": "superblock.probes/1", "suite": "probes", "name": "probes", "commit": COMMIT, "machine": MACHINE,
        "provenance": _provenance(Synthetic()), "started": started, "finished": started + 900, "settings": {},
        "status": "complete", "runs": runs,
    }  # fmt: skip
    path.parent.mkdir(parents=True, exist_ok=True)
    write_json(path, record)
    return path


# -- the files of a run -------------------------------------------------------------------------------------------


def _spool(run: Synthetic, parents: Sequence[Synthetic], end: float) -> Iterator[str]:
    """The lines of spool.jsonl."""
    stamp = int(run.started * 1000)

    def line(kind: str, data: dict[str, Any], time: int = stamp) -> str:
        return json.dumps({"kind": kind, "time": time, **data}, separators=(",", ":"))

    yield line("status", {"status": "RUNNING"})
    yield line("tags", {"values": _tags(run, parents)})
    yield line("params", {"values": _settings(run, parents)})
    yield line("artifact", {"path": "provenance.json", "folder": None})
    text = {"name": "embedded", "digest": run.digest, "context": "training"}
    yield line("dataset", {**text, "description": f"standard library of cpython 3.11.7, digest {run.digest}"})
    sizes = {"model/parameters": 9.1e5 * run.superblocks, "model/active_parameters": 4.5e5 * run.superblocks}
    yield line("metrics", {"step": 0, "values": sizes})
    yield from _curves(run, stamp)
    if run.status != "FINISHED":
        if run.status in ("FAILED", "KILLED"):
            yield line("status", {"status": run.status}, int(end * 1000))
        return
    yield line("metrics", {"step": 0, "values": _results(run, parents)}, int(end * 1000))
    for depth, values in _exits(run, parents).items():
        shown = {key: value for key, value in values.items() if not key.startswith("trained")}
        yield line("metrics", {"step": int(depth), "values": {f"exits/{key}": value for key, value in shown.items()}})
    for path in (
        "summary.json",
        "statements.json",
        "artifacts/samples.md",
        *(["language.json"] if run.language else []),
    ):
        yield line("artifact", {"path": path, "folder": None}, int(end * 1000))
    yield line("status", {"status": "FINISHED"}, int(end * 1000))


def _curves(run: Synthetic, stamp: int) -> Iterator[str]:
    """Training every so often, validation ten times; written by hand, because there may be a million lines."""
    draw, layers = run._draw("curve"), range(1, 2 * run.superblocks + 1)
    validated = {run.points * k // 10 for k in range(1, 11)}
    for point in range(1, run.points + 1):
        step = max(point, round(run.steps * point / run.points)) if run.points <= run.steps else point
        share = point / run.points
        bits = run.bits * (1 + 0.5 * math.exp(-6 * share)) * (1 + draw.gauss(0, 0.02))
        time = stamp + int(1000 * run.seconds * share)
        loss = "nan" if run.diverged and share > 0.5 else f"{bits * 1.4:.6f}"
        head = f'{{"kind":"metrics","time":{time},"step":{step},"values":{{'
        bits_text = '"nan"' if loss == "nan" else f"{bits:.6f}"
        loss = '"nan"' if loss == "nan" else loss
        tokens = run.tokens * share
        yield f'{head}"train/loss":{loss},"train/bits_per_byte":{bits_text},"train/learning_rate":0.001,"train/tokens":{tokens}}}}}'
        yield f'{head}"throughput/tokens_per_second":{run.tokens_per_second * draw.gauss(1, 0.02):.2f},"throughput/matmul_share":0.4}}}}'
        loads = "".join(
            f',"experts/layer_{i}/load_entropy":{1 - 0.02 * draw.random():.5f},"experts/layer_{i}/min_load":0.6,'
            f'"experts/layer_{i}/dead_experts":0.0'
            for i in layers
        )
        yield f'{head}"experts/load_entropy":0.99{loads}}}}}'
        if point in validated:
            yield f'{head}"val/loss":3.2,"val/bits_per_byte":{run.bits * 0.995 * (1 + 0.5 * math.exp(-6 * share)):.6f}}}}}'


def _tags(run: Synthetic, parents: Sequence[Synthetic]) -> dict[str, str]:
    tags = {
        "stage": run.stage, "scale": run.scale, "arm": run.arm, "seed": str(run.seed), "fingerprint": run.fingerprint,
        "suite": "training", "mlflow.source.name": _command(run), "hardware": "2 x AMD EPYC, 24 GiB, no GPU",
        "hardware.fingerprint": run.machine, "mlflow.source.git.commit": run.commit, "git.dirty": str(run.dirty).lower(),
        "data.digest": run.digest,
    }  # fmt: skip
    if run.diverged:
        tags["diverged"] = "true"
    return tags | ({"parent": parents[-1].name, "growth.method": "identity"} if parents else {})


def _settings(run: Synthetic, parents: Sequence[Synthetic]) -> dict[str, str]:
    own = {
        "stage": run.stage, "scale": run.scale, "model.num_superblocks": str(run.superblocks), "optim.learning_rate": "0.003",
        "trainer.budget": f"{run.steps} steps", "seed": str(run.seed), "parent": parents[-1].name if parents else "none",
    }  # fmt: skip
    return own | dict(run.settings)


def _results(run: Synthetic, parents: Sequence[Synthetic]) -> dict[str, float]:
    lineage = [*parents, run]
    values = {
        "final/tokens_per_second": run.tokens_per_second, "final/matmul_share": 0.38, "final/memory_peak_mib": run.memory_mib,
        "final/val_bits_per_byte": run.bits * 0.995, "lineage/flops": sum(one.flops for one in lineage),
        "lineage/own_flops": run.flops,
    }  # fmt: skip
    if run.tested:
        values |= {
            "test/bits_per_byte": run.bits,
            "test/perplexity": 2 ** (run.bits * 3),
            "test/accuracy_top1": 0.56 - run.bits / 7,
        }
    if parents:
        values |= {
            "predicted/bits_per_byte": run.bits * 0.99,
            "predicted/minutes": run.seconds / 60,
            "predicted/memory_gib": 0.8,
        }
    return values | {f"gate/{name}": float(name not in run.failed_gates) for name in GATES}


def _exits(run: Synthetic, parents: Sequence[Synthetic]) -> dict[str, dict[str, float]]:
    trained = {one.superblocks: one.bits for one in parents}
    found = {}
    for depth in range(1, run.superblocks + 1):
        found[str(depth)] = {
            "bits_per_byte": run.bits * (1 + 0.03 * (1 / depth - 1 / run.superblocks)),
            "tokens_per_second": 60000 / depth,
            **({"trained_bits_per_byte": trained[depth]} if depth in trained else {}),
        }
    return found


def _summary(run: Synthetic, parents: Sequence[Synthetic]) -> dict[str, Any]:
    lineage = [*parents, run]
    test = {
        "perplexity": 2 ** (run.bits * 3),
        "bits_per_byte": run.bits,
        "accuracy_top1": 0.56 - run.bits / 7,
        "references": REFERENCES,
    }
    near = {
        name: {"value": value, "low": value * 0.95, "high": value * 1.05}
        for name, value in (
            ("bits_per_byte", run.bits * 0.99),
            ("minutes", run.seconds / 60),
            ("memory_bytes", run.memory_mib * 2**20),
        )
    }
    return {
        "name": run.name, "stage": run.stage, "scale": run.scale, "steps": run.steps, "tokens": run.tokens,
        "minutes": run.seconds / 60, "parameters_total": 910000 * run.superblocks, "parameters_active": 450000 * run.superblocks,
        "splits": {"test": test} if run.tested else {}, "tokens_per_second": run.tokens_per_second, "matmul_share": 0.38,
        "peak_memory_bytes": int(run.memory_mib * 2**20), "data_digest": run.digest, "seed": run.seed,
        "minutes_in_all": run.seconds / 60 + 0.2, "parent": parents[-1].name if parents else None, "flops": run.flops,
        "lineage": [
            {"run": one.name, "stage": one.stage, "superblocks": one.superblocks, "method": "identity" if i else "scratch",
             "seed": one.seed, "steps": one.steps, "sequences": one.steps * 16, "tokens": one.tokens, "flops": one.flops}
            for i, one in enumerate(lineage)
        ],
        "lineage_flops": sum(one.flops for one in lineage), "exits": _exits(run, parents),
        "prediction": {**near, "confidence": 0.8, "runs": [one.name for one in parents], "words": "80% intervals"} if parents else None,
    }  # fmt: skip


def _statements(run: Synthetic) -> dict[str, Any]:
    outcomes = []
    for name in GATES:
        verdict = "failed" if name in run.failed_gates else "passed"
        outcomes.append({
            "name": name, "kind": "gate", "verdict": verdict, "measured": f"{name} measured", "asked": "what is asked",
            "because": "It matters.", "value": float(verdict == "failed"), "low": None, "high": None,
        })  # fmt: skip
    outcomes.append({
        "name": "cost_predicted", "kind": "claim", "verdict": "held", "measured": "within 5 %", "asked": "within 20 %",
        "because": "It is planned with.", "value": 0.05, "low": 0.04, "high": 0.06,
    })  # fmt: skip
    return {"run": run.name, "passed": not run.failed_gates, "outcomes": outcomes}


def _language(run: Synthetic) -> dict[str, Any]:
    stretches = (("1-16", 1.2, 16), ("17-64", 1.05, 48), ("65-128", 0.98, 64))
    packages = (("email", 0.95, 30000), ("json", 0.9, 8000), ("encodings", 1.3, 20000))
    return {
        "schema": "superblock.language/1", "split": "test", "bits_per_byte": run.bits, "perplexity": 2 ** (run.bits * 3),
        "accuracy": 0.34, "bytes": 58000,
        "positions": [{"name": n, "bits_per_byte": run.bits * f, "accuracy": 0.34 / f, "tokens": t * 100} for n, f, t in stretches],
        "packages": [{"name": n, "bits_per_byte": run.bits * f, "accuracy": 0.34 / f, "bytes": b} for n, f, b in packages],
    }  # fmt: skip


def _provenance(run: Synthetic) -> dict[str, Any]:
    return {
        "code": {"commit": run.commit, "branch": "main", "dirty": run.dirty, "untracked": []},
        "hardware": {"cpu": "AMD EPYC", "cores": 2, "memory_gib": 24, "gpus": [], "fingerprint": run.machine},
        "command": _command(run), "versions": {"python": "3.11.7"},
    }  # fmt: skip


def _command(run: Synthetic) -> str:
    return f"superblock stage={run.stage} scale={run.scale} seed={run.seed}"
