"""A training that takes no time, and what an experiment needs around it."""

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from superblock.benchmarks.ablation.plan import Compose
from superblock.benchmarks.ablation.record import Record, RecordFile
from superblock.config.run import RunConfig
from superblock.evaluation.summary import RunSummary, SplitResult
from superblock.tracking.files import write_json
from superblock.tracking.runs import runs_root


class Training:
    """Stands in for `training.loop.train`: notes what it was asked for, writes a run's folder, and answers at once.

    Args:
        test: bits per byte of a run.
        before: called with a configuration before it is answered; may raise.
    """

    def __init__(
        self, test: Callable[[RunConfig], float], before: Callable[[RunConfig], object] = lambda config: None
    ) -> None:
        self.test, self.before = test, before
        self.asked: list[RunConfig] = []
        self.tags: list[Mapping[str, str]] = []

    def __call__(self, config: RunConfig, *, tags: Mapping[str, str]) -> RunSummary:
        self.asked.append(config)
        self.tags.append(tags)
        print(f"training {config.name}")
        folder = runs_root() / str(config.name)
        (folder / "checkpoints").mkdir(parents=True)
        write_json(folder / "run.json", {"uid": "1", "started": 1.0})
        self.before(config)
        steps, value = int(str(config.trainer.budget).removesuffix("steps")), self.test(config)
        depth = config.model.num_superblocks
        return RunSummary(
            str(config.name), config.stage.name, config.scale.name, steps, steps * 100, 0.01, 1, 1,
            splits={name: SplitResult(2.0, value) for name in ("validation", "test")}, data_digest="d",
            parent=None if config.parent == "none" else config.parent, flops=steps * 1e6 * depth, lineage_flops=1e9,
            exits={str(k): {"bits_per_byte": value * (1 + 0.1 * (depth - k))} for k in range(1, depth + 1)},
        )  # fmt: skip


def saved(folder: Path, suite: str) -> Record:
    """The record in a folder that holds one."""
    record = RecordFile(folder, suite).read()
    assert record is not None
    return record


def remembering(compose: Compose) -> Compose:
    """Composing the same words twice takes time once; each caller may change what it gets."""
    from copy import deepcopy

    known: dict[tuple[str, ...], RunConfig] = {}

    def make(words: Sequence[str]) -> RunConfig:
        if tuple(words) not in known:
            known[tuple(words)] = compose(words)
        return deepcopy(known[tuple(words)])

    return make


def entry(group: str, arm: str, seed: int, test: float, **more: Any) -> dict[str, Any]:
    """What a record keeps of a run, as far as results need it."""
    known = {"group": group, "arm": arm, "seed": seed, "test": test, "steps": 10, "flops": 1e9, "lineage_flops": 2e9,
             "seconds": 1.0, "seconds_in_all": 2.0, "overrides": [], "exits": {}, "data": "d", "commit": "c", "dirty": False,
             "machine": "m", "run": f"run-{group}-{arm}-{seed}"}  # fmt: skip
    return known | more


def record_of(suite: str, entries: Sequence[dict[str, Any]]) -> Record:
    """A record that holds these runs."""
    runs = {f"{e['group']}/{e['arm']}/s{e['seed']}": e for e in entries}
    return Record(suite, "test", "f", {}, runs=runs)
