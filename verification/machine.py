"""What this machine offers to training, and what will make training on it slow or impossible."""

from collections import defaultdict
from pathlib import Path
from typing import Any

import psutil
import torch
from huggingface_hub import constants

from measurement.environment import ARITHMETIC, GIB, SPEED, cpu_name, devices_of_rank, own_settings, versions
from measurement.environment import hardware_name as name_of
from measurement.redaction import without_secrets
from verification.gpus import describe_gpus
from verification.host import HubCheck, compiler, container_memory_gib, open_files, space
from workload.cores import usable_cores
from workload.launch.gpus import visible_gpus

SMALLEST_SHM_GIB = 1.0
FEWEST_OPEN_FILES = 1024  # of a process
OTHERS_USE_GIB = 2.0  # memory in use before we start; the driver itself takes up to one GiB


def describe_machine(processes: int | None = None, results: str = "results") -> dict[str, Any]:
    """The machine's facts, in JSON's types, within 10 s.

    Args:
        processes: that are to train here; by default one per GPU.
        results: the folder for results, which need not exist.
    """
    hub = HubCheck()
    gpus = describe_gpus()
    memory = psutil.virtual_memory()
    return without_secrets({
        **gpus, "processes": processes or max(len(gpus["gpus"]), 1), "versions": versions(), "hip": torch.version.hip,
        "settings": own_settings(ARITHMETIC, SPEED), "cpu": cpu_name(), "cores": usable_cores(),
        "memory_gib": round(memory.total / GIB, 2), "available_memory_gib": round(memory.available / GIB, 2),
        "container_memory_gib": container_memory_gib(memory.total), "shm": space(Path("/dev/shm")),
        "open_files": open_files(), "compiler": compiler(),
        "disk": {"results": space(Path(results)), "downloads": space(Path(constants.HF_HOME))},
        "hub": hub.answer()})


def hardware_name(devices: int | None = None) -> str:
    """What summary.csv says in the column `hardware` about a run here on this many devices (default: all GPUs)."""
    visible = visible_gpus()
    used = [torch.device("cuda", number) for number in range(min(devices or visible, visible))]
    described = devices_of_rank(used or [torch.device("cpu")])["devices"]
    return without_secrets(name_of((device["gpu"] for device in described), cpu_name(),
                                   own_settings(ARITHMETIC, SPEED)))


def machine_lines(description: dict[str, Any]) -> list[str]:
    """What a user reads about the machine: a line per fact, then a warning for each of `machine_warnings`."""
    found = description["versions"]
    build = (f"CUDA {found['cuda']}" if found["cuda"] else f"ROCm {description['hip']}" if description["hip"] else
             "CPUs only")
    lines = [_gpu_line(gpu) for gpu in description["gpus"]] or [f"no GPU: {description['no_gpu']}"]
    if description["gpus"]:
        lines.append(f"driver {description['driver']}" if description["driver"] else
                     f"no clocks, power or energy: NVML cannot be read ({description['nvml_problem']})")
        lines += _links(description["peers"])
    lines.append(f"PyTorch {found['torch']}, built for {build}" + (f"; NCCL {found['nccl']}" * bool(found["nccl"])))
    if description["settings"]:
        lines.append(f"settings of libraries: {', '.join(description['settings'])}")
    lines.append(f"CPU: {description['cpu']}, {description['cores']} cores for this process")
    limit = description["container_memory_gib"]
    lines.append(f"memory: {description['available_memory_gib']:.1f} of {description['memory_gib']:.1f} GiB available"
                 + (f"; this container may use {limit:.1f} GiB" if limit else ""))
    if shm := description["shm"]:
        lines.append(f"/dev/shm: {shm['free_gib']:.2f} of {shm['total_gib']:.2f} GiB free")
    lines.append(f"open files: at most {description['open_files'] or 'unlimited'} in a process")
    lines.append(f"C++ compiler: {description['compiler'] or 'none'}")
    lines.append(f"Hugging Face Hub: {description['hub']['state']}")
    lines += [f"disk: {disk['free_gib']:.1f} GiB free for {what} ({disk['folder']})"
              for what, disk in description["disk"].items()]
    return lines + [f"warning: {warning}" for warning in machine_warnings(description)]


def machine_warnings(description: dict[str, Any]) -> list[str]:
    """What stands out on this machine, each with the remedy if there is one."""
    warnings, shm = [], description["shm"]
    for number, gpu in enumerate(description["gpus"]):
        if gpu["is_mig"]:
            warnings.append(f"GPU {number} is a part of a GPU (MIG): a process can use only one such part, and NCCL "
                            "does not connect them")
        if gpu.get("throttled") not in (None, "no"):
            warnings.append(f"GPU {number} is slowed down ({gpu['throttled']}); its timings will be too long")
        if (gpu.get("used_gib") or 0) > OTHERS_USE_GIB:
            warnings.append(f"GPU {number} is in use: {gpu['used_gib']:.1f} of {gpu['gpu_memory_gib']:.1f} GiB taken")
    without = [pair for pair in description["peers"] if not pair["peer_access"]]
    for reason in dict.fromkeys(pair["reason"] for pair in without):
        named = _names([pair for pair in without if pair["reason"] == reason], description["peers"])
        warnings.append(f"peer access is off between {named}{f': {reason}' if reason else ''}; their data passes "
                        "through the host's memory")
    if shm is None or shm["total_gib"] < SMALLEST_SHM_GIB:
        size = "missing" if shm is None else f"only {1024 * shm['total_gib']:.0f} MiB"
        warnings.append(f"/dev/shm is {size}; NCCL and DeepSpeed exchange data there; start a container with "
                        "--shm-size=1g or more")
    if description["open_files"] and description["open_files"] < FEWEST_OPEN_FILES:
        warnings.append(f"at most {description['open_files']} open files in a process, which may be too few; use "
                        f"ulimit -n {FEWEST_OPEN_FILES}")
    if description["compiler"] is None:
        warnings.append("no C++ compiler, which DeepSpeed and --compile need; on Debian and Ubuntu: apt-get "
                        "install g++")
    if description["hub"]["is_unreachable"]:
        warnings.append("the Hugging Face Hub cannot be reached; only cached or local models and data can be used")
    return warnings


def slow_link(description: dict[str, Any], a: int, b: int) -> str | None:
    """Why the link between GPUs `a` and `b` may be slower than others, where the description tells."""
    pairs = {tuple(pair["gpus"]): pair for pair in description["peers"]}
    pair = pairs.get((min(a, b), max(a, b)))
    if pair is None:
        return None
    if not pair["peer_access"]:
        return "peer access is off" + (f" ({pair['reason']})" if pair["reason"] else "")
    others = {other["link"] for other in pairs.values()}
    return f"their path is {pair['link']}" if pair["link"] not in (None, "NVLink") and len(others) > 1 else None


def _gpu_line(gpu: dict[str, Any]) -> str:
    parts = [gpu["gpu"], f"{gpu['gpu_memory_gib']:.1f} GiB", gpu["gpu_uuid"]]
    if gpu.get("sm_clock_mhz") is not None and gpu.get("max_sm_clock_mhz") is not None:
        parts.append(f"SM clock {gpu['sm_clock_mhz']} of at most {gpu['max_sm_clock_mhz']} MHz")
    if count := gpu.get("nvlinks"):
        parts.append(f"{count} NVLink{'s' * (count > 1)}")
    return f"GPU {gpu['device'].removeprefix('cuda:')}: {', '.join(parts)}"


def _links(peers: list[dict[str, Any]]) -> list[str]:
    by_link = defaultdict(list)
    for pair in peers:
        by_link[pair["link"]].append(pair)
    return [f"links: {_names(pairs, peers)} by {link}" for link, pairs in by_link.items() if link]


def _names(pairs: list[dict[str, Any]], of_all: list[dict[str, Any]]) -> str:
    """Pairs of GPUs in words."""
    if len(pairs) == len(of_all) > 1:
        return f"all {len(pairs)} pairs of GPUs"
    return ", ".join(f"GPU {a} and {b}" for a, b in (pair["gpus"] for pair in pairs))
