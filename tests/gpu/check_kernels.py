"""Checks every kernel of the GPU path against its reference, then measures whole models beside two peers.

    python tests/gpu/check_kernels.py                      # about ten minutes on one GPU
    python tests/gpu/check_kernels.py device=cpu scales=dry minutes=2 out=/tmp

A dated JSON record goes to `out` (`$OUT` or reports/records), under a temporary name until it is whole. Settings:
`device` (cuda or cpu), `scales` (small, base, or dry: a few thousand parameters), `minutes` in all, `checks=false`.
Peers are left out where transformers or flash-linear-attention are not installed. It has not run on a GPU yet.
"""

import importlib.metadata
import json
import os
import re
import sys
import time
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parent))

import torch
from kernel_checks import Check, all_checks
from speed import configuration, contestants, measure, peak_flops

from superblock.kernels.report import choices
from superblock.tracking.provenance import code_state, describe, hardware

RECORDS = Path(__file__).parents[2] / "reports" / "records"
SCALES = {
    "small": (("scale=small", "stage=mvp4"), 16),
    "base": (("scale=base", "stage=mvp4"), 8),
    "dry": (
        (
            "scale=mini", "stage=mvp1", "model.d_model=64", "model.vocab_size=512", "data.vocab_size=512",
            "data.sequence_length=64", "model.gqa.head_dim=32", "model.moe.d_expert=32", "model.moe.d_shared=32",
        ),
        2,
    ),
}  # fmt: skip
"""Overrides of a run, and how many sequences are tried first."""
PACKAGES = (
    "torch",
    "xformers",
    "fla-core",
    "flash-linear-attention",
    "triton",
    "transformers",
    "nvidia-cuda-runtime-cu12",
)


def main(words: list[str]) -> int:
    """Runs everything that fits the time; 1 if a check failed."""
    settings = {
        "device": "cuda",
        "scales": "small,base",
        "minutes": "9",
        "checks": "true",
        "out": os.environ.get("OUT", ""),
    }
    unknown = [word for word in words if word.partition("=")[0] not in settings]
    if unknown:
        print(f"{unknown[0]}: unknown; settings are {', '.join(settings)}, as name=value", file=sys.stderr)
        return 2
    settings |= dict(word.split("=", 1) for word in words)
    if settings["device"] == "cuda" and not torch.cuda.is_available():
        print("torch sees no GPU here; device=cpu scales=dry tries the script itself", file=sys.stderr)
        return 2
    device = torch.device("cuda", 0) if settings["device"] == "cuda" else torch.device("cpu")
    end = time.monotonic() + 60 * float(settings["minutes"])
    record: dict[str, Any] = {"date": time.strftime("%Y-%m-%d"), "device": device_facts(device)} | provenance()
    out = Path(settings["out"] or RECORDS)
    slug = re.sub(r"\W+", "-", record["device"]["name"].lower()).strip("-")
    path = out / f"{record['date']}-gpu-{slug}.json"
    if settings["checks"] == "true":
        record["checks"] = [run_check(check) for check in all_checks(device) if time.monotonic() < end - 30]
        write(path, record)
    record["speed"] = []
    for scale in settings["scales"].split(","):
        for line in speed(scale, device, end):
            record["speed"].append(line)
            write(path, record)
    print(path)
    return int(any(check["result"] == "failed" for check in record.get("checks", [])))


def run_check(check: Check) -> dict[str, Any]:
    """One line on the screen and in the record."""
    found: dict[str, Any] = {"name": check.name, "tolerance": check.tolerance}
    if check.why_not:
        found |= {"result": "skipped", "reason": check.why_not}
    else:
        try:
            found["errors"] = check.run()
            passed = max(found["errors"].values()) <= check.tolerance
            found["result"] = "passed" if passed else "failed"
        except Exception as error:
            found |= {"result": "failed", "reason": f"{type(error).__name__}: {str(error)[:500]}"}
    worst = max(found.get("errors", {"": 0.0}).items(), key=lambda item: item[1])
    print(f"{found['result']:8} {check.name}  {found.get('reason') or f'{worst[0]} {worst[1]:.1e}'}", flush=True)
    return found


def speed(scale: str, device: torch.device, end: float) -> Any:
    """Every contestant at a scale, while there is time."""
    overrides, first = SCALES[scale]
    config = configuration(*overrides, "data=embedded")
    kernels = {str(choice) for choice in choices(config.model, device, torch.bfloat16)}
    for name, make, flops in contestants(config, device):
        line: dict[str, Any] = {"scale": scale, "name": name}
        if time.monotonic() > end - 20:
            print(f"scale={scale}  name={name}  skipped=out of time", flush=True)
            yield line | {"skipped": "out of time"}
            continue
        try:
            seconds = 8.0 if device.type == "cuda" else 0.5
            tokens = config.data.sequence_length
            line |= measure(name, make, tokens, flops, device, first=first, seconds=seconds)
            line |= {"kernels": sorted(kernels)} if name.startswith("superblock") else {}
        except ImportError as error:
            line["skipped"] = str(error)
        except Exception as error:
            line["failed"] = f"{type(error).__name__}: {str(error)[:500]}"
        shown = {
            key: f"{value:.4g}" if isinstance(value, float) else value
            for key, value in line.items()
            if key != "kernels"
        }
        print("  ".join(f"{key}={value}" for key, value in shown.items()), flush=True)
        yield line


def device_facts(device: torch.device) -> dict[str, Any]:
    """What decides the numbers."""
    if device.type == "cpu":
        return {"name": "cpu", "note": "a trial of the script, not a measurement"}
    properties = torch.cuda.get_device_properties(device)
    return {
        "name": properties.name,
        "memory_gib": properties.total_memory / 2**30,
        "capability": list(torch.cuda.get_device_capability(device)),
        "cuda": torch.version.cuda,
        "bf16_peak": peak_flops(device),
    }


def provenance() -> dict[str, Any]:
    """Code, machine and versions."""
    found = {}
    for name in PACKAGES:
        try:
            found[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            continue
    facts = describe(code_state(), hardware())
    return {"versions": found, "code": facts["code"], "hardware": facts["hardware"]}


def write(path: Path, record: dict[str, Any]) -> None:
    """Under a temporary name, then renamed."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.tmp")
    temporary.write_text(json.dumps(record, indent=1) + "\n")
    os.replace(temporary, path)


if __name__ == "__main__":
    raise SystemExit(main(sys.argv[1:]))
