"""Finished runs on disk, as training leaves them, without training."""

import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

sys.path.insert(0, str(Path(__file__).parent))  # ladders; pytest's importlib mode leaves the path alone

MACHINE = {"cpu": "some processor", "cores": 2, "memory_gib": 24, "gpus": []}


@pytest.fixture
def finish() -> Callable[..., Path]:
    """Writes the folder of a finished run below `runs/`; `settings` are compared settings, `summary` what it says."""

    def write(name: str, summary: dict[str, Any], *, settings: dict[str, str] | None = None, began: float = 0.0,
              took: float = 600.0, machine: dict[str, Any] | None = None, curve: dict[int, float] | None = None,
              starts: int = 1) -> Path:  # fmt: skip
        folder = Path("runs") / name
        folder.mkdir(parents=True)
        stage, scale = summary["stage"], summary["scale"]
        identity = {
            "uid": name,
            "started": began,
            "name": name,
            "stage": stage,
            "scale": scale,
            "seed": 1,
            "starts": starts,
        }
        lines: list[dict[str, Any]] = [{"kind": "params", "time": 1, "values": {"threads": "2", **(settings or {})}}]
        lines += [
            {"kind": "metrics", "time": 2, "step": step, "values": {"val/bits_per_byte": value}}
            for step, value in (curve or {}).items()
        ]
        for file, content in (
            ("run.json", identity),
            ("status.json", {"status": "FINISHED", "time": began + took}),
            ("summary.json", {"name": name, **summary}),
            ("provenance.json", {"hardware": machine or MACHINE}),
        ):
            (folder / file).write_text(json.dumps(content))
        text = "".join(json.dumps(line, separators=(",", ":")) + "\n" for line in lines)
        (folder / "spool.jsonl").write_text(text)
        return folder

    return write


@pytest.fixture
def stages_record(root: Path) -> dict[str, dict[str, Any]]:
    """The committed record of the four stages, each from scratch, by stage."""
    text = (root / "reports" / "records" / "2026-11-21-stages.json").read_text()
    found: dict[str, dict[str, Any]] = json.loads(text)["stages"]
    return found


@pytest.fixture
def four_stages(finish: Callable[..., Path], stages_record: dict[str, dict[str, Any]]) -> list[str]:
    """The record as four finished runs, in the order of their depth; their names."""
    budgets = {"mvp1": "4 minutes", "mvp2": "7 minutes", "mvp3": "11 minutes", "mvp4": "18 minutes"}
    depths = {"mvp1": "1", "mvp2": "3", "mvp3": "6", "mvp4": "12"}
    for i, (stage, summary) in enumerate(stages_record.items()):
        settings = {"trainer.budget": budgets[stage], "model.num_superblocks": depths[stage], "model.d_model": "256"}
        whole = {**summary, "minutes_in_all": 1.2 * summary["minutes"] + 0.3}
        finish(summary["name"], whole, settings=settings, began=10_000.0 * i, took=2_000.0)
    return [summary["name"] for summary in stages_record.values()]
