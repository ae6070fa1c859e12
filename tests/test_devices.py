"""What the monitor says of CPUs, measured on real processes, and of GPUs, from an NVML with known answers."""

import csv
import os
import subprocess
import sys
import time
from types import SimpleNamespace

import pynvml
import pytest
import torch

from measurement.columns import DEVICE_COLUMNS, ENERGY
from measurement.environment import GIB, devices_of_rank
from measurement.monitor import Monitor
from measurement.nvml import Gpu, throttling
from measurement.table import Table


def rank(number: int, pid: int, uuid: str | None = None) -> dict:
    return {"rank": number, "pid": pid, "devices": [device(number, uuid)]}


def device(number: int, uuid: str | None = None) -> dict:
    return {"device": f"cuda:{number}" if uuid else "cpu", "gpu": uuid and "GPU", "gpu_uuid": uuid}


@pytest.fixture
def table(tmp_path):
    return Table(tmp_path / "devices.csv", DEVICE_COLUMNS)


def rows(folder) -> list[dict[str, str]]:
    with open(folder / "devices.csv", newline="") as file:
        return list(csv.DictReader(file))


@pytest.mark.alone
def test_a_busy_and_an_idle_process(table, tmp_path):
    spin = "import time\nend = time.time() + 4\nwhile time.time() < end: pass"
    busy = subprocess.Popen([sys.executable, "-c", spin])
    monitor = Monitor(table, time.time(), [rank(0, os.getpid()), rank(1, busy.pid)])
    monitor.open_window()
    time.sleep(2.5)
    readings = monitor.stop()
    busy.kill()
    busy.wait()
    # One of the machine's cores, or what the other processes on it leave.
    assert 20 / os.cpu_count() < readings[0]["cpu_utilization_pct"] < 130 / os.cpu_count()
    assert readings[0]["peak_memory_gib"] > 0.05 > readings[1]["peak_memory_gib"]
    assert set(monitor.missing) == {"gpu_utilization_pct", "sm_clock_mhz", *ENERGY}
    assert set(monitor.missing.values()) == {"the run used no GPU"}
    assert len(rows(tmp_path)) >= 3 and {row["device"] for row in rows(tmp_path)} == {"cpu"}


def test_monitor_outlives_the_processes_that_it_watches(table):
    short = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(0.5)"])
    monitor = Monitor(table, time.time(), [rank(0, short.pid)])
    short.wait()
    time.sleep(1.2)
    assert monitor.thread.is_alive()
    monitor.stop()


class KnownNvml:
    """Stands where the driver would: two GPUs, of which "GPU-b" draws 200 W, is capped, and counts 100 J a reading."""

    def __init__(self) -> None:
        self.opened: list[str] = []
        self.energy_mj = 5_000_000

    def install(self, monkeypatch) -> None:
        answers = {"nvmlInit": lambda: None, "nvmlDeviceGetHandleByUUID": lambda uuid: self.opened.append(uuid) or uuid,
                   "nvmlDeviceGetUtilizationRates": lambda handle: SimpleNamespace(gpu=80),
                   "nvmlDeviceGetMemoryInfo": lambda handle: SimpleNamespace(used=3 * GIB),
                   "nvmlDeviceGetPowerUsage": lambda handle: 200_000,
                   "nvmlDeviceGetTemperature": lambda handle, sensor: 61,
                   "nvmlDeviceGetClockInfo": self.refuse,
                   "nvmlDeviceGetCurrentClocksEventReasons": lambda handle: 0x04,
                   "nvmlDeviceGetTotalEnergyConsumption": self.energy}
        for name, answer in answers.items():
            monkeypatch.setattr(pynvml, name, answer)

    def energy(self, handle: str) -> int:
        self.energy_mj += 100_000
        return self.energy_mj

    @staticmethod
    def refuse(handle, *_):
        raise pynvml.NVMLError(pynvml.NVML_ERROR_NOT_SUPPORTED)


def test_only_the_runs_own_gpus_are_read(table, tmp_path, monkeypatch):
    nvml = KnownNvml()
    nvml.install(monkeypatch)
    monitor = Monitor(table, time.time(), [rank(1, os.getpid(), "GPU-b")])  # reads the counter: 100 J
    time.sleep(0.7)
    monitor.open_window()  # 200 J
    time.sleep(0.7)
    monitor.close_window()  # 300 J
    readings = monitor.stop()[1]  # 400 J
    assert nvml.opened == ["GPU-b"] and not monitor.missing
    assert readings["gpu_utilization_pct"] == 80 and readings["power_w"] == 200 and readings["temperature_c"] == 61
    assert readings["throttled_pct"] == 100
    assert readings["energy_j"] == 300 and readings["window_energy_j"] == 100
    gpu = next(row for row in rows(tmp_path) if row["device"] == "cuda:1")
    assert gpu["throttled"] == "power cap" and gpu["memory_gib"] == "3.0"
    assert gpu["sm_clock_mhz"] == "", "what a GPU does not give is empty"


def test_a_rank_may_have_several_gpus(table, tmp_path, monkeypatch):
    nvml = KnownNvml()
    nvml.install(monkeypatch)
    two = {"rank": 0, "pid": os.getpid(), "devices": [device(0, "GPU-a"), device(1, "GPU-b")]}
    monitor = Monitor(table, time.time(), [two])  # reads both counters: 100 and 200 J
    time.sleep(0.7)
    monitor.open_window()  # 300 and 400 J
    time.sleep(0.7)
    readings = monitor.stop()[0]  # closes it at 500 and 600 J, ends at 700 and 800 J
    assert nvml.opened == ["GPU-a", "GPU-b"]
    assert readings["energy_j"] == 2 * 600 and readings["window_energy_j"] == 2 * 200
    assert readings["gpu_utilization_pct"] == 80 and readings["power_w"] == 200, "of one GPU, not of both together"
    assert {row["device"] for row in rows(tmp_path)} == {"cpu", "cuda:0", "cuda:1"}


def test_without_a_driver_the_reason_is_given(table, monkeypatch):
    monkeypatch.setattr(pynvml, "nvmlInit", _no_driver)
    monitor = Monitor(table, time.time(), [rank(0, os.getpid(), "GPU-a")])
    readings = monitor.stop()
    assert monitor.missing["power_w"].startswith("NVML cannot be read")
    assert "power_w" not in readings[0]


def _no_driver() -> None:
    raise pynvml.NVMLError(pynvml.NVML_ERROR_DRIVER_NOT_LOADED)


def test_a_driver_that_knows_the_older_name_of_throttling(monkeypatch):
    KnownNvml().install(monkeypatch)
    monkeypatch.setattr(pynvml, "nvmlDeviceGetCurrentClocksEventReasons", KnownNvml.refuse)
    monkeypatch.setattr(pynvml, "nvmlDeviceGetCurrentClocksThrottleReasons", lambda handle: 0x08)
    assert Gpu("GPU-a").sample()["throttled"] == "hardware slowdown"


@pytest.mark.parametrize("name, uuid", [("NVIDIA H100 80GB HBM3", "GPU-0a1b"),
                                        ("NVIDIA H100 80GB HBM3 MIG 1g.10gb", "MIG-0a1b")])
def test_a_gpu_and_a_slice_of_one_by_the_uuid_that_nvml_knows(name, uuid, monkeypatch):
    properties = SimpleNamespace(name=name, uuid="0a1b", total_memory=10 * GIB)
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda device: properties)
    [device] = devices_of_rank([torch.device("cuda", 0)])["devices"]
    assert device["gpu_uuid"] == uuid and device["gpu"] == name and device["gpu_memory_gib"] == 10


def test_idle_and_chosen_clocks_are_no_throttling():
    assert throttling(pynvml.nvmlClocksEventReasonGpuIdle | pynvml.nvmlClocksEventReasonSyncBoost) == ""
    both = pynvml.nvmlClocksEventReasonSwPowerCap | pynvml.nvmlClocksEventReasonHwThermalSlowdown
    assert throttling(both) == "power cap + hardware thermal slowdown"
