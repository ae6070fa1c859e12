"""Measure the links among the devices of this machine: NCCL between GPUs, gloo between CPU processes.

    torchrun --nproc-per-node 4 -m verification.links OUT.json [--seconds 10]

Prints what it measured and writes it to OUT.json; `link_model.py` explains the rows.
"""

import argparse
import itertools
import math
import statistics
import time
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import psutil
import torch
import torch.distributed as dist

from verification.gpus import describe_gpus
from verification.link_model import KIB, MIB, SEND, WIRE, Rows, fit, link_lines
from verification.machine import hardware_name, slow_link
from workload.atomic_files import write_json
from workload.errors import InputError, one_line_errors
from workload.launch import launcher
from workload.launch.gpus import check_gpus, visible_gpus
from workload.launch.processes import Processes, join, leave

SIZES = (64 * KIB, MIB, 16 * MIB, 256 * MIB)
PAIR_SIZES = (MIB, 16 * MIB)
REPEATS, FEWEST_REPEATS = 7, 3
REPEAT_S = 0.005  # a repeat takes at least this long: several operations, where one is shorter
MOST_OPERATIONS = 100  # in a repeat
NO_TIME, NO_MEMORY = "no time was left", "not enough memory"


class Links:
    """Measures the links of one process group; every rank calls the same methods in the same order.

    Args:
        seconds: time for all measurements together. What does not fit is left out.
    """

    def __init__(self, processes: Processes, seconds: float) -> None:
        self.processes, self.seconds = processes, seconds
        self.rows: Rows = []
        self.left_out: Rows = []
        self.seconds_per_byte: dict[tuple[str, tuple[int, ...]], float] = {}  # at the largest size so far

    def measure(self) -> None:
        """Small sizes first, each with every operation, so that a lack of time costs the largest ones only."""
        everyone, (first, *others) = tuple(range(self.processes.count)), self._pairs()
        self.began = time.perf_counter()
        for size in SIZES:
            calls = [(operation, first if operation == SEND else everyone) for operation in WIRE]
            if size in PAIR_SIZES:
                calls += [(SEND, pair) for pair in others]
            for place, (operation, ranks) in enumerate(calls):
                now = self._now()
                until = now + (self.seconds - now) / (len(calls) - place)  # its share of the time that is left
                self._measure(operation, ranks, size, now, until)

    def _pairs(self) -> list[tuple[int, ...]]:
        return list(itertools.combinations(range(self.processes.count), 2))

    def _measure(self, operation: str, ranks: tuple[int, ...], size: int, now: float, until: float) -> None:
        """Add a row for one operation at one size, or the reason why there is none."""
        key, directions = (operation, ranks), 2 if operation == SEND else 1  # a message goes there and back
        row = {"operation": operation, "ranks": list(ranks), "bytes": size}
        expected = self.seconds_per_byte.get(key, 0.0) * size * directions * (FEWEST_REPEATS + 1)
        if now + expected > until or now > self.seconds or 2 * size > self._free_bytes():
            reason = NO_MEMORY if 2 * size > self._free_bytes() else NO_TIME
            self.left_out.append(row | {"reason": reason})
            return
        call = self._operation(operation, ranks, size)
        call()  # warm-up: connections and buffers are made
        first = self._seconds(call, 1)
        operations = max(min(math.ceil(REPEAT_S / max(first, 1e-9)), MOST_OPERATIONS), 1)
        repeats = [first] if operations == 1 else []
        while len(repeats) < REPEATS and self._now() < (until if len(repeats) >= FEWEST_REPEATS else self.seconds):
            repeats.append(self._seconds(call, operations))
        repeats = [seconds / directions for seconds in repeats or [first]]
        median = statistics.median(repeats)
        self.seconds_per_byte[key] = median / size
        self.rows.append(row | {"seconds": median, "spread": max(repeats) - min(repeats), "repeats": len(repeats)})

    def _operation(self, operation: str, ranks: tuple[int, ...], size: int) -> Callable[[], Any]:
        """What this rank does in one operation on `size` bytes, rounded down to whole elements for each rank."""
        rank, share = self.processes.rank, size // 4 // len(ranks)
        if rank not in ranks:
            return lambda: None
        whole = torch.empty(share * len(ranks), device=self.processes.device).fill_(0)  # touches each page
        if operation == SEND:
            other = ranks[1 - ranks.index(rank)]
            there, back = (dist.send, dist.recv) if rank == ranks[0] else (dist.recv, dist.send)
            return lambda: (there(whole, other), back(whole, other))
        if operation == "all-reduce":
            return lambda: dist.all_reduce(whole)
        if operation == "broadcast":
            return lambda: dist.broadcast(whole, ranks[0])
        part = torch.empty(share, device=self.processes.device).fill_(0)
        if operation == "all-gather":
            return lambda: dist.all_gather_into_tensor(whole, part)
        return lambda: dist.reduce_scatter_tensor(part, whole)

    def _seconds(self, call: Callable[[], Any], operations: int) -> float:
        """Seconds of one of several operations in a row, on the slowest rank; the same on all ranks."""
        self._synchronize()
        self.processes.wait()
        began = time.perf_counter()
        for _ in range(operations):
            call()
        self._synchronize()
        return self._largest(time.perf_counter() - began) / operations

    def _synchronize(self) -> None:
        if self.processes.device.type == "cuda":
            torch.cuda.synchronize()

    def _now(self) -> float:
        """Seconds since the beginning, the same on all ranks."""
        return self._largest(time.perf_counter() - self.began)

    def _free_bytes(self) -> float:
        """Free memory for each rank, the same on all ranks: the smallest."""
        if self.processes.device.type == "cuda":
            return -self._largest(-torch.cuda.mem_get_info()[0])
        return -self._largest(-psutil.virtual_memory().available / self.processes.count)

    def _largest(self, value: float) -> float:
        """The largest of all ranks' values."""
        values = torch.tensor([value], dtype=torch.float64)
        dist.all_reduce(values, dist.ReduceOp.MAX, group=self.processes.waiting_room)
        return float(values)


def measure_links(processes: Processes, seconds: float) -> dict[str, Any]:
    """The links among `processes`, in JSON's types; the same on all ranks. Takes about `seconds`."""
    links = Links(processes, seconds)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)  # new names for two collectives, which older versions lack
        links.measure()
    device = processes.device.type
    return {"device": device, "backend": "nccl" if device == "cuda" else "gloo", "ranks": processes.count,
            "hardware": hardware_name(processes.count),
            "wire_bytes_per_byte": {name: share(2 if name == SEND else processes.count)
                                    for name, share in WIRE.items()},
            "rows": links.rows, "fits": fit(links.rows), "left_out": links.left_out}


def main() -> None:
    parser = argparse.ArgumentParser(prog="torchrun --nproc-per-node N -m verification.links",
                                     description="Measure the links among the devices of this machine.")
    parser.add_argument("out", type=Path, metavar="OUT.json", help="file for the measurements")
    parser.add_argument("--seconds", type=float, default=10.0, help="time for the measurements (default: 10)")
    arguments = parser.parse_args()
    count = launcher.processes()
    if count < 2:
        raise InputError("links need two processes or more; start with torchrun --nproc-per-node 2 -m "
                         f"verification.links {arguments.out}")
    check_gpus()
    if 0 < (visible := visible_gpus()) < launcher.processes_on_this_node():
        raise InputError(f"this machine shows {visible} GPU{'s' * (visible > 1)}; use --nproc-per-node {visible}")
    processes = join(count, cpu_threads=None)
    measured = measure_links(processes, arguments.seconds)
    if processes.is_main:
        arguments.out.parent.mkdir(parents=True, exist_ok=True)
        write_json(arguments.out, measured)
        gpus = describe_gpus()
        print(*link_lines(measured, lambda a, b: slow_link(gpus, a, b)), sep="\n")
    leave()


if __name__ == "__main__":
    with one_line_errors():
        main()
