"""How much compute and communication slow each other on the devices of this machine.

    torchrun --standalone --nproc-per-node 2 -m prediction.overlap OUT.json

Writes {"slowdown": gamma}: of a matrix product that takes X seconds and an all-reduce that takes C, both at once take
max(X, C) + (gamma - 1) min(X, C).
"""

import statistics
import sys
import time
from collections.abc import Callable
from pathlib import Path

import torch
import torch.distributed as dist

from measurement.clock import synchronize
from workload.atomic_files import write_json
from workload.errors import one_line_errors
from workload.launch import launcher
from workload.launch.processes import join, leave

ELEMENTS, SIDE, REPEATS = 4 * 2**20, 512, 7  # 16 MiB
PRODUCTS_S = 0.05  # products that take about as long together


def main() -> None:
    processes = join(launcher.processes(), cpu_threads=None)
    device = processes.device
    tensor, matrix = torch.zeros(ELEMENTS, device=device), torch.zeros(SIDE, SIDE, device=device)

    def seconds(call: Callable[[], object]) -> float:
        """On the slowest rank."""
        synchronize(device)
        processes.wait()
        began = time.perf_counter()
        call()
        synchronize(device)
        taken = torch.tensor(time.perf_counter() - began, device=device)
        dist.all_reduce(taken, dist.ReduceOp.MAX)
        return float(taken)

    def multiply(count: int) -> None:
        for _ in range(count):
            torch.mm(matrix, matrix)

    def both() -> None:
        sent = dist.all_reduce(tensor, async_op=True)
        multiply(count)
        assert sent is not None  # as it is asynchronous
        sent.wait()

    multiply(3)
    dist.all_reduce(tensor)
    count = max(round(20 * PRODUCTS_S / seconds(lambda: multiply(20))), 1)
    slowdowns = []
    for _ in range(REPEATS):
        alone = seconds(lambda: multiply(count)), seconds(lambda: dist.all_reduce(tensor))
        slowdowns.append(1 + (seconds(both) - max(alone)) / min(alone))
    if processes.is_main:
        write_json(Path(sys.argv[1]), {"slowdown": max(statistics.median(slowdowns), 1.0)})
    leave()


if __name__ == "__main__":
    with one_line_errors():
        main()
