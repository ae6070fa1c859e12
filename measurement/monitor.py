"""What the devices do meanwhile: a thread that samples GPUs through NVML, and the run's processes through psutil."""

import os
import threading
import time
from collections import defaultdict

import psutil
import pynvml

from measurement.environment import GIB
from measurement.results import Table

SECONDS_BETWEEN_SAMPLES = 0.5


class Monitor:
    """Samples the devices of one run until it is stopped.

    GPUs are matched by UUID, so that only those that the run uses are read. `cpu` is the run's own processes: their
    CPU seconds in percent of all cores' wall time. Memory of a process is what is resident.

    Args:
        table: devices.csv.
        started: seconds since the epoch, where `elapsed_s` begins.
        pids: the run's processes on this machine.
        gpus: UUIDs of the run's GPUs on this machine, by the name that the table shows.
    """

    def __init__(self, table: Table, started: float, pids: list[int], gpus: dict[str, str]) -> None:
        self.table, self.started = table, started
        self.processes = [psutil.Process(pid) for pid in pids]
        self.counts = False  # whether samples count towards the summary: while throughput is measured
        self.utilization: dict[str, list[float]] = defaultdict(list)
        self.peak_process_memory_gib = 0.0
        self.missing: dict[str, str] = {}  # column -> why there is nothing to read
        self.gpus = self._open_gpus(gpus)
        self.stopping = threading.Event()
        self.thread = threading.Thread(target=self._sample_until_stopped, name="monitor", daemon=True)
        self.thread.start()

    def _open_gpus(self, gpus: dict[str, str]) -> dict:
        if not gpus:
            self.missing["gpu_utilization_pct"] = "the run used no GPU"
            return {}
        try:
            pynvml.nvmlInit()
            return {name: pynvml.nvmlDeviceGetHandleByUUID(uuid) for name, uuid in gpus.items()}
        except pynvml.NVMLError as error:
            self.missing["gpu_utilization_pct"] = f"NVML cannot be read: {error}"
            return {}

    def _sample_until_stopped(self) -> None:
        previous = None
        while True:
            now, counts = time.time(), self.counts
            for name, handle in self.gpus.items():
                self._sample_gpu(name, handle, now, counts)
            cpu_seconds = sum(sum(times[:2]) for times in self._of_processes(psutil.Process.cpu_times))
            memory = [memory.rss / GIB for memory in self._of_processes(psutil.Process.memory_info)]
            if previous and memory:  # a utilization is a difference between two samples
                cpu_pct = 100 * (cpu_seconds - previous[1]) / ((now - previous[0]) * (os.cpu_count() or 1))
                self.table.add(elapsed_s=round(now - self.started, 3), device="cpu",
                               utilization_pct=round(max(cpu_pct, 0.0), 2), memory_gib=round(sum(memory), 4))
                if counts:
                    self.utilization["cpu"].append(cpu_pct)
                    self.peak_process_memory_gib = max(self.peak_process_memory_gib, *memory)
            previous = (now, cpu_seconds)
            if self.stopping.wait(SECONDS_BETWEEN_SAMPLES):
                return

    def _sample_gpu(self, name: str, handle, now: float, counts: bool) -> None:
        utilization = _read(pynvml.nvmlDeviceGetUtilizationRates, handle)
        memory, power = _read(pynvml.nvmlDeviceGetMemoryInfo, handle), _read(pynvml.nvmlDeviceGetPowerUsage, handle)
        if counts and utilization is not None:
            self.utilization["gpu"].append(utilization.gpu)
        self.table.add(elapsed_s=round(now - self.started, 3), device=name,
                       utilization_pct=None if utilization is None else utilization.gpu,
                       memory_gib=None if memory is None else round(memory.used / GIB, 4),
                       power_w=None if power is None else power / 1000)

    def _of_processes(self, query) -> list:
        return [value for value in (_read(query, process) for process in self.processes) if value is not None]

    def mean_utilization(self, device: str) -> float | None:
        """Mean over the samples that count, over all devices of a kind ("gpu", "cpu"), in percent."""
        samples = self.utilization[device]
        return sum(samples) / len(samples) if samples else None

    def stop(self) -> None:
        self.stopping.set()
        self.thread.join()
        self.table.close()


def _read(query, of):
    """A reading, or None where a GPU does not give it, or a process is no more."""
    try:
        return query(of)
    except (pynvml.NVMLError, psutil.Error):
        return None
