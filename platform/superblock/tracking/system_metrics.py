"""Processor, memory and GPU use, sampled by a thread, under the names that MLflow's "System metrics" tab knows."""

import sys
import threading
from typing import Any

from superblock.tracking.spool import SYSTEM_PREFIX, Spool, scan

INTERVAL = 10.0  # seconds


class SystemMetrics(threading.Thread):
    """Writes a sample every `interval` seconds until `stop`. The step is the number of the sample over all resumes."""

    def __init__(self, spool: Spool, interval: float = INTERVAL) -> None:
        super().__init__(name="system-metrics", daemon=True)
        self._spool = spool
        self._interval = interval
        self._stopping = threading.Event()

    def run(self) -> None:
        """Samples; a value the machine does not offer is left out."""
        import psutil

        process = psutil.Process()
        psutil.cpu_percent()  # the first call only starts the measurement
        process.cpu_percent()
        step = _samples_before(self._spool)
        while not self._stopping.wait(self._interval):
            try:
                values = machine_values(psutil, process) | gpu_values(sys.modules.get("torch"))
            except (
                psutil.Error,
                OSError,
                RuntimeError,
            ):  # a counter that is gone for a moment; the next sample follows
                continue
            self._spool.metrics({SYSTEM_PREFIX + key: round(value, 2) for key, value in values.items()}, step)
            step += 1

    def stop(self) -> None:
        """Ends the thread after the sample it may be taking."""
        self._stopping.set()
        self.join(5)


def machine_values(psutil: Any, process: Any) -> dict[str, float]:
    """Use of processor, memory, disk and network (megabytes are 1e6 bytes, as in MLflow), and of this process."""
    memory, disk, network = psutil.virtual_memory(), psutil.disk_usage("."), psutil.net_io_counters()
    values = {
        "cpu_utilization_percentage": psutil.cpu_percent(),
        "system_memory_usage_megabytes": memory.used / 1e6,
        "system_memory_usage_percentage": memory.used / memory.total * 100,
        "disk_usage_percentage": disk.percent,
        "disk_available_megabytes": disk.free / 1e6,
        "process_cpu_utilization_percentage": process.cpu_percent(),
        "process_memory_usage_megabytes": process.memory_info().rss / 1e6,
    }
    if network is not None:
        values["network_receive_megabytes"] = network.bytes_recv / 1e6
        values["network_transmit_megabytes"] = network.bytes_sent / 1e6
    return values


def gpu_values(torch: Any) -> dict[str, float]:
    """Memory and load of every GPU this process has opened; load needs the package nvidia-ml-py."""
    if torch is None or not torch.cuda.is_initialized():
        return {}
    values: dict[str, float] = {}
    for i in range(torch.cuda.device_count()):
        if not torch.cuda.memory_reserved(i):  # asking an unused GPU would open it and take its memory
            continue
        free, total = torch.cuda.mem_get_info(i)
        values[f"gpu_{i}_memory_usage_megabytes"] = (total - free) / 1e6
        values[f"gpu_{i}_memory_usage_percentage"] = (total - free) / total * 100
        try:
            values[f"gpu_{i}_utilization_percentage"] = torch.cuda.utilization(i)
            values[f"gpu_{i}_power_usage_watts"] = torch.cuda.power_draw(i) / 1000
        except ImportError:
            continue
    return values


def _samples_before(spool: Spool) -> int:
    """The number the next sample gets, so that a resumed run continues its curve."""
    steps = [
        event.data["step"]
        for event in scan(spool.path)
        if event.kind == "metrics" and any(key.startswith(SYSTEM_PREFIX) for key in event.data["values"])
    ]
    return max(steps, default=-1) + 1
