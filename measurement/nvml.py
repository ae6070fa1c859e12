"""One GPU through NVIDIA's management library (NVML), found by its UUID."""

from collections.abc import Callable
from typing import Any

import pynvml

from measurement.environment import GIB

# Reasons for lowered clocks that cost speed. An idle GPU, or clocks set by a user, do not count.
# https://docs.nvidia.com/deploy/nvml-api/group__nvmlClocksEventReasons.html
THROTTLING = {pynvml.nvmlClocksEventReasonSwPowerCap: "power cap",
              pynvml.nvmlClocksEventReasonHwSlowdown: "hardware slowdown",
              pynvml.nvmlClocksEventReasonSwThermalSlowdown: "software thermal slowdown",
              pynvml.nvmlClocksEventReasonHwThermalSlowdown: "hardware thermal slowdown",
              pynvml.nvmlClocksEventReasonHwPowerBrakeSlowdown: "power brake"}


class Gpu:
    """Readings of one GPU; a reading that it does not offer is None.

    Raises (from the constructor):
        pynvml.NVMLError: no driver, or no such GPU.
    """

    def __init__(self, uuid: str) -> None:
        pynvml.nvmlInit()
        self.handle = pynvml.nvmlDeviceGetHandleByUUID(uuid)

    def sample(self) -> dict[str, float | str | None]:
        """A reading of every column of devices.csv that applies to GPUs."""
        utilization = self._read(pynvml.nvmlDeviceGetUtilizationRates)
        memory = self._read(pynvml.nvmlDeviceGetMemoryInfo)
        power_mw = self._read(pynvml.nvmlDeviceGetPowerUsage)
        reasons = self._read(pynvml.nvmlDeviceGetCurrentClocksEventReasons)
        if reasons is None:  # drivers before version 535 use another name
            reasons = self._read(pynvml.nvmlDeviceGetCurrentClocksThrottleReasons)
        return {"utilization_pct": None if utilization is None else utilization.gpu,
                "memory_gib": None if memory is None else round(memory.used / GIB, 4),
                "power_w": None if power_mw is None else power_mw / 1000,
                "temperature_c": self._read(pynvml.nvmlDeviceGetTemperature, pynvml.NVML_TEMPERATURE_GPU),
                "sm_clock_mhz": self._read(pynvml.nvmlDeviceGetClockInfo, pynvml.NVML_CLOCK_SM),
                "throttled": None if reasons is None else throttling(reasons) or "no"}

    def energy_j(self) -> float | None:
        """The energy counter: joules since the driver was loaded. Volta or newer."""
        millijoules = self._read(pynvml.nvmlDeviceGetTotalEnergyConsumption)
        return None if millijoules is None else millijoules / 1000

    def _read(self, query: Callable, *arguments: Any) -> Any:
        try:
            return query(self.handle, *arguments)
        except pynvml.NVMLError:
            return None


def throttling(reasons: int) -> str:
    """NVML's reason bits in words; empty if nothing slows the GPU down."""
    return " + ".join(name for bit, name in THROTTLING.items() if reasons & bit)
