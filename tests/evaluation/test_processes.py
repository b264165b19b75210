"""Two processes with different batches report the metrics of one that saw them all."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

PROCESS = """
import sys, torch
from superblock.callbacks.base import sum_over_processes
from superblock.evaluation.metrics import LanguageModelLoss, PositionLoss, TopKAccuracy
from superblock.models.batch import TokenScores

rank, store = int(sys.argv[1]), sys.argv[2]
torch.distributed.init_process_group("gloo", init_method=f"file://{store}", rank=rank, world_size=2)
generator = torch.Generator().manual_seed(0)
nll, ranks = torch.rand(6, 16, generator=generator), torch.randint(-1, 8, (6, 16), generator=generator)
nll[ranks < 0] = 0
mine = slice(0, 2) if rank == 0 else slice(2, 6)
for make in (LanguageModelLoss, TopKAccuracy, PositionLoss):
    whole, shared = make(sync_on_compute=False), make()
    whole.update(TokenScores(nll, ranks))
    shared.update(TokenScores(nll[mine], ranks[mine]))
    as_floats = lambda x: torch.tensor(list(x.values() if isinstance(x, dict) else x), dtype=torch.float64)
    torch.testing.assert_close(as_floats(shared.compute()), as_floats(whole.compute()), rtol=1e-14, atol=0)
sums = sum_over_processes({"a": torch.tensor(1.0 + rank), "b": torch.tensor(10.0)})
assert (float(sums["a"]), float(sums["b"])) == (3.0, 20.0)
torch.distributed.destroy_process_group()
"""


@pytest.mark.slow
@pytest.mark.distributed
def test_two_processes_agree_with_one(tmp_path: Path) -> None:
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-c", PROCESS]
    processes = [
        subprocess.Popen([*command, str(rank), str(tmp_path / "store")], env=environment, stderr=subprocess.PIPE)
        for rank in range(2)
    ]
    errors = [process.communicate(timeout=100)[1].decode() for process in processes]
    assert [process.returncode for process in processes] == [0, 0], "\n".join(errors)
