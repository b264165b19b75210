"""What is known about a run when it starts: its identity on disk, its labels, and the settings it is compared by."""

import colorsys
import getpass
import os
import socket
import time
import uuid
from dataclasses import asdict
from pathlib import Path
from typing import Any
from zlib import crc32

import yaml

from superblock.config.benchmark import BenchmarkConfig, benchmark_fingerprint
from superblock.config.run import RunConfig, fingerprint
from superblock.config.typed import command_line
from superblock.tracking.files import read_json, write_json
from superblock.tracking.provenance import Code, Hardware, versions
from superblock.tracking.store import without_password

IDENTITY_FILE = "run.json"
STATUS_FILE = "status.json"
STAGE_COLORS = {"mvp1": "#2272b4", "mvp2": "#c82d4c", "mvp3": "#277c43", "mvp4": "#be501e"}
"""Those in which MLflow draws runs that are grouped by `stage`, which cannot be set: single runs and groups look alike."""
NOT_COMPARED = (
    "tracking.", "name", "resume", "output", "minutes", "stage.", "scale.", "data.cache_dir", "data.workers", "trainer.progress",
    "trainer.keep_last", "trainer.log_every", "trainer.checkpoint_every", "evaluation.samples", "evaluation.sample_tokens",
)  # fmt: skip
"""Settings that two runs need not share to be comparable; all of them are in `config.yaml`."""

Recorded = RunConfig | BenchmarkConfig
"""What can be recorded."""


def labels(config: Recorded) -> dict[str, str | int]:
    """What runs are found and grouped by; a benchmark belongs to no stage."""
    known: dict[str, str | int] = {"scale": config.scale.name, "arm": config.tracking.arm, "seed": config.seed}
    if isinstance(config, BenchmarkConfig):
        return known | {"fingerprint": benchmark_fingerprint(config)}
    return {"stage": config.stage.name} | known | {"fingerprint": fingerprint(config)}


def write_identity(config: Recorded, folder: Path, name: str, suite: str, *, resume: bool) -> int:
    """Writes `run.json` and marks the run as running; returns the number of this start, from 1.

    A resumed run keeps its identity, its MLflow run included. Starting anew in a used folder makes a new identity.
    """
    old = read_json(folder / IDENTITY_FILE) if resume else {}
    starts = int(old.get("starts", 0)) + 1
    fresh = {"uid": uuid.uuid4().hex, "started": time.time(), "name": name}
    known = labels(config) | {"suite": suite, "experiment": config.tracking.experiment, "starts": starts}
    write_json(folder / IDENTITY_FILE, {**fresh, **old, **known})
    write_status(folder, "RUNNING")
    return starts


def write_status(folder: Path, status: str) -> None:
    """Notes the run's state and the process that is responsible for it, so that a killed one can be told from a live one."""
    import psutil

    owner = {"pid": os.getpid(), "process_started": psutil.Process().create_time(), "host": socket.gethostname()}
    write_json(folder / STATUS_FILE, {"status": status, "time": time.time(), **owner})


def identity_tags(config: Recorded, suite: str) -> dict[str, str]:
    """The tags that runs are grouped by, and those MLflow itself understands."""
    known = {key: str(value) for key, value in labels(config).items()}
    return known | {
        "suite": suite,
        "host": socket.gethostname(),
        "mlflow.runColor": stage_color(known.get("stage", suite)),
        "mlflow.user": user(),
        "mlflow.source.type": "LOCAL",
        "mlflow.source.name": command_line(),
    }


def provenance_tags(code: Code, machine: Hardware) -> dict[str, str]:
    """Commit, machine and versions as tags, so that the list of runs can be filtered by them."""
    found = versions()
    tags = {f"version.{name}": found[name] for name in ("python", "torch", "superblock") if name in found}
    tags |= {"hardware": machine.describe(), "hardware.fingerprint": machine.fingerprint}
    if code.commit:
        dirty = str(code.dirty).lower()
        tags |= {"mlflow.source.git.commit": code.commit, "mlflow.source.git.branch": code.branch, "git.dirty": dirty}
    return tags


def note(config: Recorded, folder: Path, code: Code, machine: Hardware) -> str:
    """The run's description in MLflow, as Markdown."""
    title, purpose = f"Benchmark at scale `{config.scale.name}`, seed {config.seed}", ""
    if isinstance(config, RunConfig):
        title = f"**{config.stage.title or config.stage.name}** at scale `{config.scale.name}`, seed {config.seed}"
        purpose = config.stage.purpose
    commit = (
        f"`{code.commit[:12]}`{' with uncommitted changes' if code.dirty else ''}" if code.commit else "not under git"
    )
    lines = [
        title,
        purpose,
        f"- command: `{command_line()}`\n- folder: `{folder}`\n- code: {commit}\n- machine: {machine.describe()}",
    ]
    return "\n\n".join(line for line in lines if line)


def compared_settings(config: Recorded) -> dict[str, str]:
    """The flat settings, under the keys a user types, that two runs are compared by."""
    flat = _flatten(asdict(config))
    chosen = {key: show(value) for key, value in flat.items() if not key.startswith(NOT_COMPARED)}
    stage = {"stage": config.stage.name} if isinstance(config, RunConfig) else {}
    return {**stage, "scale": config.scale.name, **chosen}


def config_yaml(config: Recorded) -> str:
    """The whole resolved configuration; a password in `tracking.uri` is left out."""
    plain = asdict(config)
    plain["tracking"]["uri"] = without_password(config.tracking.uri)
    return yaml.safe_dump(plain, sort_keys=False, allow_unicode=True)


def stage_color(stage: str) -> str:
    """The colour of a stage's runs in every chart; stages of a user's own get one that depends on the name."""
    if stage in STAGE_COLORS:
        return STAGE_COLORS[stage]
    red, green, blue = colorsys.hls_to_rgb(crc32(stage.encode()) % 360 / 360, 0.45, 0.5)
    return f"#{round(red * 255):02x}{round(green * 255):02x}{round(blue * 255):02x}"


def show(value: object) -> str:
    """A value as it would be typed on the command line."""
    if isinstance(value, bool) or value is None:
        return {True: "true", False: "false", None: "null"}[value]
    if isinstance(value, list | tuple):
        return "[" + ",".join(show(item) for item in value) + "]"
    return f"{value:g}" if isinstance(value, float) and float(f"{value:g}") == value else str(value)


def _flatten(tree: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    flat: dict[str, Any] = {}
    for key, value in tree.items():
        if isinstance(value, dict):
            flat |= _flatten(value, f"{prefix}{key}.")
        else:
            flat[f"{prefix}{key}"] = value
    return flat


def user() -> str:
    """Who is at work."""
    try:
        return getpass.getuser()
    except (OSError, KeyError):  # a container's user without an entry in the password file
        return "unknown"
