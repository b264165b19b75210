"""Where a result comes from: code, machine, versions, command."""

import hashlib
import importlib.metadata
import os
import platform
import re
import socket
import subprocess
import sys
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from superblock.config.typed import command_line

MAX_DIFF_BYTES = 1_000_000
PACKAGES = ("superblock", "torch", "lightning", "torchmetrics", "mlflow", "hydra-core", "omegaconf", "datasets",
            "tokenizers", "transformers", "numpy", "safetensors", "psutil", "xformers", "triton")  # fmt: skip
_ENVIRONMENT = re.compile(r"(OMP|MKL|OPENBLAS|KMP|CUDA|NCCL|GLOO|TORCH|PYTORCH|TORCHINDUCTOR|HF|SLURM|PYTHON)_?[A-Z0-9_]*|"
                          r"(LOCAL_)?(RANK|WORLD_SIZE)|XFORMERS[A-Z0-9_]*")  # fmt: skip
_SECRET = re.compile(r"TOKEN|SECRET|PASSW|KEY|CREDENTIAL|AUTH", re.IGNORECASE)
_SOURCE_SUFFIXES = (".py", ".yaml", ".yml", ".toml")


@dataclass(frozen=True)
class Code:
    """The commit of a working tree; empty when the code does not lie in one."""

    commit: str = ""
    branch: str = ""
    dirty: bool = False
    diff: str = ""
    untracked: list[str] = field(default_factory=list)


@dataclass(frozen=True)
class Hardware:
    """What decides the speed of a run."""

    cpu: str
    cores: int
    memory_gib: int
    gpus: list[str]

    @property
    def fingerprint(self) -> str:
        """Eight hex digits; speeds are compared only where they are equal."""
        return hashlib.sha256(repr((self.cpu, self.cores, self.memory_gib, self.gpus)).encode()).hexdigest()[:8]

    def describe(self) -> str:
        """One line, such as `2 x AMD EPYC, 16 GiB, no GPU`."""
        gpus = ", ".join(self.gpus) if self.gpus else "no GPU"
        return f"{self.cores} x {self.cpu}, {self.memory_gib} GiB, {gpus}"


def code_state(file: Path = Path(__file__)) -> Code:
    """The state of the git working tree that tracks `file`.

    Dirty are changes of tracked files, and source files that git does not know yet. Without git, or in an installed
    copy, the result is empty: a commit of some other project that happens to lie around it would be worse than none.
    """
    folder = file.resolve().parent
    if _git(folder, "ls-files", "--error-unmatch", str(file.resolve())) is None:
        return Code()
    root = Path((_git(folder, "rev-parse", "--show-toplevel") or "").strip())
    status = (_git(root, "status", "--porcelain=v2", "--branch", "--untracked-files=all") or "").splitlines()
    heads = dict(line[2:].split(" ", 1) for line in status if line.startswith("# ") and " " in line[2:])
    untracked = [line[2:] for line in status if line.startswith("? ") and line.endswith(_SOURCE_SUFFIXES)]
    changed = any(line[:1] in "12u" for line in status)
    diff = (_git(root, "diff", "HEAD") or "") if changed else ""
    if len(diff) > MAX_DIFF_BYTES:
        diff = diff[:MAX_DIFF_BYTES] + f"\n[cut: the whole diff has {len(diff)} characters]\n"
    branch = heads.get("branch.head", "")
    return Code(heads.get("branch.oid", ""), branch, changed or bool(untracked), diff, untracked)


def hardware() -> Hardware:
    """The machine as this process sees it: cores it may use, memory installed, visible GPUs."""
    import psutil

    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else (os.cpu_count() or 1)
    return Hardware(_cpu_model(), cores, round(psutil.virtual_memory().total / 2**30), _gpus())


def versions() -> dict[str, str]:
    """Installed versions of the packages that decide results; absent ones are left out."""
    found = {"python": platform.python_version()}
    for name in PACKAGES:
        try:
            found[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            continue
    return found


def environment() -> dict[str, str]:
    """Variables that change how a run computes; never one whose name speaks of a secret."""
    return {k: v for k, v in sorted(os.environ.items()) if _ENVIRONMENT.fullmatch(k) and not _SECRET.search(k)}


def describe(code: Code, machine: Hardware) -> dict[str, Any]:
    """Everything above as one JSON object, the record that is kept with a run. The diff is kept beside it."""
    return {
        "code": {k: v for k, v in asdict(code).items() if k != "diff"},
        "hardware": {**asdict(machine), "fingerprint": machine.fingerprint},
        "host": socket.gethostname(),
        "system": platform.platform(),
        "interpreter": sys.executable,
        "command": command_line(),
        "folder": str(Path.cwd()),
        "versions": versions(),
        "environment": environment(),
    }


def _git(folder: Path, *arguments: str) -> str | None:
    """Output of a git command; None if it fails or git is missing. Variables set by a hook are not handed on."""
    clean = {k: v for k, v in os.environ.items() if not k.startswith("GIT_")} | {"GIT_OPTIONAL_LOCKS": "0"}
    try:
        done = subprocess.run(
            ["git", "-C", str(folder), *arguments], env=clean, capture_output=True, timeout=20, check=False
        )
    except (OSError, subprocess.TimeoutExpired):
        return None
    return done.stdout.decode(errors="replace") if done.returncode == 0 else None


def _cpu_model() -> str:
    try:
        text = Path("/proc/cpuinfo").read_text(encoding="utf-8", errors="replace")
    except OSError:
        text = ""
    model = re.search(r"^model name\s*:\s*(.+)$", text, re.MULTILINE)
    return " ".join((model[1] if model else platform.processor() or platform.machine()).split())


def _gpus() -> list[str]:
    """Names of the visible GPUs. Torch is asked only if the caller has loaded it, since loading takes seconds."""
    torch = sys.modules.get("torch")
    if torch is None or not torch.cuda.is_available():
        return []
    return [torch.cuda.get_device_name(i) for i in range(torch.cuda.device_count())]
