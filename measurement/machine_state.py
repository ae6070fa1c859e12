"""Whether the machine stayed the same: a fixed matrix product before and after training, and what others took of it."""

import os
import time
from collections.abc import Iterable, Sequence

import psutil
import torch

from measurement.clock import synchronize

PRODUCT_SIZE = {"cpu": 512, "cuda": 2048}  # rows and columns
WARM_UP_S, TIMED_S = 0.2, 0.5  # a GPU needs some time to raise its clocks


def product_seconds(devices: Iterable[torch.device]) -> float:
    """Seconds of a fixed fp32 matrix product: the mean over `TIMED_S`, on the slowest of a rank's devices.

    Call on every rank: all measure at the same time, as they train. Draws no random numbers.
    """
    return max(_mean_seconds(device) for device in devices)


def _mean_seconds(device: torch.device) -> float:
    size = PRODUCT_SIZE[device.type]
    # Not all alike: a GPU's power, and with it its clocks, depends on the values.
    left = torch.arange(size * size, dtype=torch.float32, device=device).remainder_(97).div_(97).reshape(size, size)
    product = torch.empty_like(left)
    synchronize(device)
    for limit_s in (WARM_UP_S, TIMED_S):
        count, began = 0, time.perf_counter()
        while (seconds := time.perf_counter() - began) < limit_s or not count:
            torch.mm(left, left, out=product)
            if device.type == "cuda":
                torch.cuda.synchronize(device)
            count += 1
    return seconds / count


def drift_pct(products: Sequence[float]) -> float | None:
    """By how many percent a device was slower (faster: negative) than at first when it differed most.

    Args:
        products: seconds of its matrix products, in the order in which they were measured.
    """
    if len(products) < 2:
        return None
    changes = [100 * (later / products[0] - 1) for later in products[1:]]
    return max(changes, key=abs)


def load_average() -> float | None:
    """Processes that ran or waited for a processor, over the last minute; None where the system does not count them."""
    try:
        return round(os.getloadavg()[0], 2)
    except (AttributeError, OSError):
        return None


def cpu_clock_mhz() -> float | None:
    """The clock frequency of the processor's cores, on average; None where the system does not tell."""
    try:
        frequency = psutil.cpu_freq()
    except (AttributeError, OSError, RuntimeError):  # no such function, file or system
        return None
    return frequency.current if frequency and frequency.current else None


# Linux has all of them; other systems have some. `guest` is part of `user`.
COUNTED = ("user", "nice", "system", "idle", "iowait", "irq", "softirq", "steal", "interrupt", "dpc")
NOT_BUSY = ("idle", "iowait", "steal")


class ProcessorShares:
    """Who has the machine's processors, from one call to the next, in percent of all cores' wall time."""

    def __init__(self) -> None:
        self.before = self._seconds()

    def _seconds(self) -> dict[str, float]:
        times = psutil.cpu_times()
        return {name: getattr(times, name) for name in COUNTED if hasattr(times, name)}

    def since_last_call(self, own_seconds: float) -> dict[str, float]:
        """`other_load_pct`, of processes that are not the run's, and `steal_pct`, of other virtual machines.

        Args:
            own_seconds: CPU seconds of the run's processes since the last call.
        """
        before, self.before = self.before, self._seconds()
        passed = {name: seconds - before[name] for name, seconds in self.before.items()}
        if not (wall := sum(passed.values())):
            return {}
        busy = sum(seconds for name, seconds in passed.items() if name not in NOT_BUSY)
        shares = {"other_load_pct": 100 * (busy - own_seconds) / wall}
        return shares | ({"steal_pct": 100 * passed["steal"] / wall} if "steal" in passed else {})
