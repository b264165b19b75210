"""Runs a scenario of `worker.py` in several real processes under torchrun."""

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

HERE = Path(__file__).parent


def torchrun(scenario: str, folder: Path, processes: int = 2, timeout: float = 240) -> list[dict[str, Any]]:
    """What each process returned, by rank.

    Raises:
        RuntimeError: with the end of the output, if a process failed.
    """
    # an old checkpoint of the same scenario must not be taken for this one's
    folder.mkdir(parents=True, exist_ok=True)
    paths = [str(HERE.parents[1] / "platform"), os.environ.get("PYTHONPATH", "")]
    environment = os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": os.pathsep.join(filter(None, paths))}
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", str(processes)]
    done = subprocess.run(
        [*command, str(HERE / "worker.py"), scenario, str(folder)],
        env=environment,
        cwd=folder,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        timeout=timeout,
    )
    if done.returncode:
        raise RuntimeError(f"{scenario} ended with {done.returncode}:\n{done.stdout[-6000:]}")
    return [json.loads((folder / f"{scenario}-{rank}.json").read_text()) for rank in range(processes)]
