"""Peak memory of one variant, in a fresh process: in a shared one the largest variant would hide all others.

python -m superblock.benchmarks.speed.memory     what to build comes by standard input, the answer goes to standard output
"""

import json
import pickle
import subprocess
import sys
from typing import NamedTuple

from superblock.benchmarks.speed.cases import Case
from superblock.config.benchmark import BenchmarkConfig

CALLS = 2
"""The second step is the first that also holds the optimizer's state."""
TIMEOUT = 600.0
"""Seconds that a process may take."""


class Peak(NamedTuple):
    """Bytes of a process."""

    before: int
    """Once everything is imported."""
    peak: int
    """At the most, after some calls."""


def peak_memory(config: BenchmarkConfig, case: Case, variant: str, threads: int) -> Peak:
    """Builds and runs one variant of a case in a process of its own.

    Raises:
        RuntimeError: with the last line of what the process said, if it fails.
    """
    done = subprocess.run(
        [sys.executable, "-m", "superblock.benchmarks.speed.memory"],
        input=pickle.dumps((config, case, variant, threads)),
        capture_output=True,
        timeout=TIMEOUT,
        check=False,
    )
    if done.returncode:
        said = done.stderr.decode(errors="replace").strip().splitlines() or [f"status {done.returncode}"]
        raise RuntimeError(f"measuring the memory of {case.name} {variant} failed: {said[-1]}")
    return Peak(**json.loads(done.stdout.splitlines()[-1]))


def main() -> None:
    """What the process does."""
    config, case, variant, threads = pickle.load(sys.stdin.buffer)
    from superblock.benchmarks.speed.suite import build
    from superblock.benchmarks.speed.work import PEER, peer_module
    from superblock.training.process import peak_bytes, prepare_process

    prepare_process(threads, 1)
    if variant.startswith(PEER):
        peer_module()
    [chosen] = [v for v in build(config, case).variants if v.name == variant]
    before = peak_bytes()
    call = chosen.make()
    for _ in range(CALLS):
        call()
    print(json.dumps({"before": before, "peak": peak_bytes()}))


if __name__ == "__main__":
    main()
