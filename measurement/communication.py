"""Communication in a profiler's trace: seconds, bytes, and how much of it compute does not hide.

The method is the same for every strategy: it looks at what the back end did, not at who called it. On a GPU that is
NCCL's kernels, on a CPU gloo's operations. Seconds include waiting for the other ranks, as a waiting kernel is running.
"""

import gzip
import json
import math
import re
from collections.abc import Iterable
from pathlib import Path
from typing import NamedTuple

MIB = 2**20
POINT_TO_POINT = ("send", "recv")
COPY_BETWEEN_GPUS = "memcpy ptop"  # within one process; NCCL copies between processes
# Tensor types as c10d and the profiler spell them.
BYTES_OF_TYPE = {"float": 4, "double": 8, "half": 2, "bfloat16": 2, "int": 4, "long": 8, "long int": 8, "char": 1,
                 "byte": 1, "bool": 1, "unsigned char": 1, "short": 2}
SIZES = ("collective", "collective_wire", "point_to_point")
Interval = tuple[float, float]


class Trace(NamedTuple):
    """One rank's profile.

    Attributes:
        events: the complete ones; times are in microseconds.
        group_sizes: of the process groups that the rank belongs to.
    """

    events: list[dict]
    group_sizes: set[int]


def read_trace(path: Path) -> Trace:
    """Read a Chrome trace (.json.gz)."""
    with gzip.open(path, "rt", encoding="utf-8") as file:
        content = json.load(file)
    groups = content.get("distributedInfo", {}).get("pg_config", [])
    return Trace([event for event in content["traceEvents"] if event.get("ph") == "X"],
                 {group["pg_size"] for group in groups})


def communication(trace: Trace, steps: int) -> dict[str, float | None]:
    """Communication and compute per step in one rank's trace, in the columns of ranks.csv.

    The size of a collective is that of the whole tensor, as in nccl-tests: an all-reduce's input, an all-gather's
    output. Beside it stands what the device sends for it. Only sent point-to-point messages count. A size is None where
    the trace lacks it: for batched messages, where NCCL was not called by torch.distributed, and where gloo's groups
    differ in size, as its events name none. For a rank with several GPUs, seconds are the mean over them.

    Args:
        steps: number of steps in the trace.
    """
    events = trace.events
    [group_size] = trace.group_sizes if len(trace.group_sizes) == 1 else [None]
    kernels = [event for event in events if event.get("cat") in ("kernel", "gpu_memcpy", "gpu_memset")]
    gpus = [[kernel for kernel in kernels if kernel.get("pid") == gpu] for gpu in {each.get("pid") for each in kernels}]
    devices = [(gpu, *_of_nccl(gpu)) for gpu in gpus] or [(_cpu_operations(events), *_of_gloo(events, group_size))]
    seconds = [_microseconds(*device[:3]) for device in devices]
    sizes = {name: sum(device[3][name] for device in devices) for name in SIZES}
    return {f"{name}_s_per_step": sum(each[name] for each in seconds) / len(seconds) / 1e6 / steps
            for name in seconds[0]} | {
        f"{name}_mib_per_step": None if math.isnan(size) else size / MIB / steps for name, size in sizes.items()}


def _microseconds(operations: list[dict], collectives: list[Interval], messages: list[Interval]) -> dict[str, float]:
    compute = union(_interval(event) for event in operations
                    if not any(word in event["name"].lower() for word in ("nccl", COPY_BETWEEN_GPUS)))
    under_way = union([*collectives, *messages])
    return {"collective": length(union(collectives)), "point_to_point": length(union(messages)),
            "exposed_communication": length(union([*under_way, *compute])) - length(compute),
            "device": length(compute)}


def union(intervals: Iterable[Interval]) -> list[Interval]:
    """The union of intervals, as disjoint ones in order."""
    merged: list[Interval] = []
    for start, end in sorted(intervals):
        if merged and start <= merged[-1][1]:
            merged[-1] = merged[-1][0], max(end, merged[-1][1])
        else:
            merged.append((start, end))
    return merged


def length(disjoint: list[Interval]) -> float:
    """Total length of disjoint intervals."""
    return sum(end - start for start, end in disjoint)


def _interval(event: dict) -> Interval:
    return event["ts"], event["ts"] + event["dur"]


def _cpu_operations(events: list[dict]) -> list[dict]:
    """Tensor operations: a CPU's compute. Those on gloo's own threads are left out, they are communication."""
    threads_of_gloo = {event["tid"] for event in events if _is_gloo_collective(event)}
    return [event for event in events if event["name"].startswith("aten::") and event["tid"] not in threads_of_gloo]


def _is_gloo_collective(event: dict) -> bool:
    return event["name"].startswith("gloo:") and event["name"].removeprefix("gloo:") not in POINT_TO_POINT


def _of_gloo(events: list[dict], group_size: int | None) -> tuple[list[Interval], list[Interval], dict[str, float]]:
    collectives, messages = [], []
    sizes: dict[str, float] = dict.fromkeys(SIZES, 0.0)
    for event in events:
        if not event["name"].startswith("gloo:"):
            continue
        operation = event["name"].removeprefix("gloo:")
        arguments = event.get("args", {})
        size = sum(math.prod(shape) * BYTES_OF_TYPE.get(kind.removeprefix("c10::").lower(), 0) for shape, kind in
                   zip(arguments.get("Input Dims", []), arguments.get("Input type", []), strict=True))
        if operation in POINT_TO_POINT:
            messages.append(_interval(event))
            sizes["point_to_point"] += size * (operation == "send")
        else:
            collectives.append(_interval(event))
            if operation == "all_gather":
                size *= group_size or math.nan
            sizes["collective"] += size
            sizes["collective_wire"] += bytes_on_the_wire(operation, size, group_size)
    return collectives, messages, sizes


def _of_nccl(kernels: list[dict]) -> tuple[list[Interval], list[Interval], dict[str, float]]:
    collectives, messages = [], []
    sizes: dict[str, float] = dict.fromkeys(SIZES, 0.0)
    for kernel in kernels:
        arguments = kernel.get("args", {})  # the profiler adds the arguments that c10d passed to NCCL
        if COPY_BETWEEN_GPUS in kernel["name"].lower():
            messages.append(_interval(kernel))
            sizes["point_to_point"] += int(arguments.get("bytes", 0))
        if "nccl" not in kernel["name"].lower():
            continue
        operation = arguments.get("Collective name", "")
        element = BYTES_OF_TYPE.get(str(arguments.get("dtype", "")).lower(), 0)
        given, made = (int(arguments.get(name, 0)) * element for name in ("In msg nelems", "Out msg nelems"))
        if operation in POINT_TO_POINT or "sendrecv" in kernel["name"].lower():
            messages.append(_interval(kernel))
            # The profiler gives batched messages (`batch_isend_irecv`) neither name nor size: pytorch issue 194693.
            sizes["point_to_point"] += given * (operation == "send") if operation else math.nan
        else:
            collectives.append(_interval(kernel))
            size = max(given, made) if operation else math.nan
            sizes["collective"] += size
            sizes["collective_wire"] += bytes_on_the_wire(operation, size, arguments.get("Group size"))
    return collectives, messages, sizes


def bytes_on_the_wire(operation: str, size: float, group_size: int | None) -> float:
    """Bytes that each device of a group sends for a collective, on average; NaN if the trace does not say.

    By ring algorithms, which send the least: all-reduce 2 (n-1)/n, all-gather and reduce-scatter (n-1)/n of the whole
    tensor (nccl-tests, PERFORMANCE.md). A tensor that one device gives to all, or all reduce to one, crosses n-1 links.

    Args:
        operation: as gloo's events or NCCL's kernels name it, such as `all_gather` or `_allgather_base`.
        size: bytes of the whole tensor.
        group_size: n; None if the trace does not say.
    """
    name = re.match("allreduce|allgather|reducescatter|reduce|broadcast", operation.replace("_", ""))
    if size == 0:
        return 0.0
    if name is None or group_size is None:
        return math.nan
    return (2 if name[0] == "allreduce" else 1) * (group_size - 1) / group_size * size
