"""Samples the run's devices while it trains: GPUs through NVML, processes through psutil, in a thread.

One monitor per node, in its first process.
"""

import os
import threading
import time
from collections import defaultdict

import psutil
import pynvml

from measurement.columns import DEVICE_COLUMNS, ENERGY
from measurement.environment import GIB
from measurement.machine_state import ProcessorShares, cpu_clock_mhz
from measurement.nvml import Gpu
from measurement.table import Table
from workload.job import Job

SECONDS_BETWEEN_SAMPLES = 0.5


class Monitor:
    """Samples the devices of one run until it is stopped.

    GPUs are found by UUID, so that only those that the run uses are read. The device `cpu` stands for the run's own
    processes: their CPU seconds in percent of all cores' wall time, and their resident memory.

    Args:
        table: devices.csv.
        started: the moment, in seconds since the epoch, from which `elapsed_s` is counted.
        ranks: the run's ranks on this node, as `devices_of_rank` describes them.
    """

    def __init__(self, table: Table, started: float, ranks: list[dict]) -> None:
        self.table, self.started = table, started
        self.processes = {rank["rank"]: psutil.Process(rank["pid"]) for rank in ranks}
        self.counts = False  # whether samples count towards the summary: only while throughput is measured
        self.samples: dict[str, dict[str, list]] = defaultdict(lambda: defaultdict(list))  # device -> column -> values
        self.peak_memory_gib: dict[int, float] = {}
        self.missing: dict[str, str] = {}  # column -> why it cannot be read
        self.gpus = self._open_gpus(ranks)
        self.energy_at_start = self._energy_j()
        self.energy_at_opening: dict[str, float | None] = {}
        self.window_energy_j: dict[str, float] = defaultdict(float)
        self.previous: tuple[float, float] | None = None  # time and CPU seconds of the previous sample
        self.processors = ProcessorShares()
        self.stopping = threading.Event()
        self.error: OSError | None = None  # ended the thread early
        self.thread = threading.Thread(target=self._sample_until_stopped, name="monitor", daemon=True)
        self.thread.start()

    def _open_gpus(self, ranks: list[dict]) -> dict[str, Gpu]:
        reason = "the run used no GPU"
        gpus = {}
        try:
            gpus = {device["device"]: Gpu(device["gpu_uuid"])
                    for rank in ranks for device in rank["devices"] if device["gpu"]}
        except pynvml.NVMLError as error:
            reason = f"NVML cannot be read: {error}"
        if not gpus:
            self.missing = dict.fromkeys(("gpu_utilization_pct", "sm_clock_mhz", *ENERGY), reason)
        self.gpus_of = {rank["rank"]: [device["device"] for device in rank["devices"] if device["device"] in gpus]
                        for rank in ranks}
        return gpus

    # ------------------------------------------------------------------ the window in which throughput is measured

    def open_window(self) -> None:
        """Samples and energy count towards the summary until the window is closed."""
        self.counts = True
        self.energy_at_opening = self._energy_j()

    def close_window(self) -> None:
        """Samples and energy no longer count: training pauses."""
        if self.counts:
            self.counts = False
            self._count("cpu", {"clock_mhz": cpu_clock_mhz()})  # now, as its processors have just been busy
            for device, energy in self._energy_j().items():
                before = self.energy_at_opening[device]
                if energy is not None and before is not None:
                    self.window_energy_j[device] += energy - before

    def _energy_j(self) -> dict[str, float | None]:
        return {device: gpu.energy_j() for device, gpu in self.gpus.items()}

    # ------------------------------------------------------------------ the thread

    def _sample_until_stopped(self) -> None:
        try:
            self._sample()
            while not self.stopping.wait(SECONDS_BETWEEN_SAMPLES):
                self._sample()
        except OSError as error:  # the disk is full
            self.error = error

    def check(self) -> None:
        """Raise the error that ended the thread early, if there was one."""
        if self.error:
            raise self.error

    def _sample(self) -> None:
        now, counts = time.time(), self.counts
        for device, gpu in self.gpus.items():
            self._add(device, now, counts, gpu.sample())
        memory = {rank: info.rss / GIB for rank, info in self._of_processes(psutil.Process.memory_info).items()}
        for rank, gib in memory.items():
            self.peak_memory_gib[rank] = max(gib, self.peak_memory_gib.get(rank, 0.0))
        cpu_seconds = sum(sum(times[:2]) for times in self._of_processes(psutil.Process.cpu_times).values())
        if self.previous and memory:  # utilization is computed between two samples
            then, seconds_then = self.previous
            cpu_pct = 100 * (cpu_seconds - seconds_then) / ((now - then) * (os.cpu_count() or 1))
            self._add("cpu", now, counts, {"utilization_pct": round(max(cpu_pct, 0.0), 2),
                                           "memory_gib": round(sum(memory.values()), 4)})
            shares = self.processors.since_last_call(cpu_seconds - seconds_then)
            if counts:
                self._count("cpu", shares)
        self.previous = (now, cpu_seconds)

    def _add(self, device: str, now: float, counts: bool, values: dict) -> None:
        self.table.add(elapsed_s=round(now - self.started, 3), device=device, **values)
        if counts:
            self._count(device, values)

    def _count(self, device: str, values: dict) -> None:
        for column, value in values.items():
            if value is not None:
                self.samples[device][column].append(value)

    def _of_processes(self, query) -> dict:
        """A query's answer for each process that is still alive, by rank."""
        answers = {}
        for rank, process in self.processes.items():
            try:
                answers[rank] = query(process)
            except psutil.Error:
                continue
        return answers

    # ------------------------------------------------------------------ the end

    def stop(self) -> dict[int, dict[str, float | None]]:
        """End the thread; returns for each rank its devices' readings, in the columns of ranks.csv.

        Raises:
            OSError: devices.csv could not be written.
        """
        self.close_window()
        self.stopping.set()
        self.thread.join()
        self.check()
        self.table.close()
        readings: dict[int, dict[str, float | None]] = {}
        for rank in self.processes:
            cpu = self.samples["cpu"]
            readings[rank] = {"peak_memory_gib": self.peak_memory_gib.get(rank),
                              "cpu_utilization_pct": mean(cpu["utilization_pct"]),
                              **{name: None if (share := mean(cpu[name])) is None else max(share, 0.0)
                                 for name in ("other_load_pct", "steal_pct")},
                              "cpu_clock_mhz": mean(cpu["clock_mhz"])}
        energy = self._energy_j()
        used = {device: None if began is None or (now := energy[device]) is None else now - began
                for device, began in self.energy_at_start.items()}
        for rank, gpus in self.gpus_of.items():
            if not gpus:
                continue
            samples = {column: [value for gpu in gpus for value in self.samples[gpu][column]]
                       for column in ("utilization_pct", "power_w", "temperature_c", "throttled", "sm_clock_mhz")}
            readings[rank] |= {
                "gpu_utilization_pct": mean(samples["utilization_pct"]), "power_w": mean(samples["power_w"]),
                "temperature_c": max(samples["temperature_c"], default=None),
                "throttled_pct": mean([100 * (reason != "no") for reason in samples["throttled"]]),
                "sm_clock_mhz": mean(samples["sm_clock_mhz"]),
                "energy_j": total([used[gpu] for gpu in gpus]),
                "window_energy_j": total([self.window_energy_j.get(gpu) for gpu in gpus])}
        return readings


def start_monitor(job: Job, ranks: list[dict], node: int) -> Monitor:
    """Begin to sample the devices of a run on this node, into devices.csv.

    Args:
        ranks: all ranks of the run.
        node: this one.
    """
    job.folder.mkdir(parents=True, exist_ok=True)  # other nodes may not share rank 0's file system
    path = job.folder / ("devices.csv" if node == 0 else f"devices-node{node}.csv")
    table = Table(path, DEVICE_COLUMNS, append=bool(job.checkpoint) and path.exists())
    return Monitor(table, job.started_at, [rank for rank in ranks if rank["node"] == node])


def mean(values: list[float]) -> float | None:
    """The mean, or None without values."""
    return sum(values) / len(values) if values else None


def total(values: list[float | None]) -> float | None:
    """The sum, or None if any value is unknown."""
    known = [value for value in values if value is not None]
    return sum(known) if len(known) == len(values) else None
