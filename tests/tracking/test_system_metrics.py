"""Samples of the machine."""

import time
from pathlib import Path
from types import SimpleNamespace

from superblock.tracking.spool import Spool, metric_history
from superblock.tracking.system_metrics import SystemMetrics, gpu_values


def test_samples_continue_after_a_resume(tmp_path: Path) -> None:
    for expected in (2, 4):
        spool = Spool(tmp_path)
        sampler = SystemMetrics(spool, interval=0.02)
        sampler.start()
        while len(metric_history(tmp_path).get("system/cpu_utilization_percentage", ())) < expected:
            time.sleep(0.01)
        sampler.stop()
        spool.rewind(0)
        spool.close()
    history = metric_history(tmp_path)
    steps = [step for step, _ in history["system/cpu_utilization_percentage"]]
    assert steps == list(range(len(steps)))
    assert history["system/process_memory_usage_megabytes"][0][1] > 5
    assert 0 < history["system/system_memory_usage_percentage"][0][1] <= 100


def test_gpu_values() -> None:
    def missing(i: int) -> float:
        raise ModuleNotFoundError("pynvml")

    cuda = SimpleNamespace(
        is_initialized=lambda: True, device_count=lambda: 2, memory_reserved=lambda i: 1 - i,
        mem_get_info=lambda i: (25e6, 100e6), utilization=lambda i: 80, power_draw=lambda i: 300_000,
    )  # fmt: skip
    torch = SimpleNamespace(cuda=cuda)
    assert gpu_values(torch) == {
        "gpu_0_memory_usage_megabytes": 75.0, "gpu_0_memory_usage_percentage": 75.0,
        "gpu_0_utilization_percentage": 80, "gpu_0_power_usage_watts": 300,
    }  # fmt: skip
    cuda.utilization = missing
    assert "gpu_0_utilization_percentage" not in gpu_values(torch)
    cuda.is_initialized = lambda: False
    assert gpu_values(torch) == {} == gpu_values(None)
