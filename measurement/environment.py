"""What a run ran on: the machine, the user's settings of libraries, versions, and the state of the code."""

import hashlib
import os
import platform
import re
import socket
import subprocess
from collections.abc import Iterable
from importlib import metadata
from pathlib import Path

import torch
from torch.cuda import nccl

from workload.launch import launcher

PROJECT = Path(__file__).resolve().parents[1]
MEASURED_CODE = ("workload", "measurement")  # the folders that `source_digest` covers
DIGEST_LENGTH = 12  # hex digits
# Environment variables for libraries that compute. Those of the first kind change results as well as speed.
ARITHMETIC = re.compile(
    "NVIDIA_TF32_OVERRIDE|TORCH_ALLOW_TF32_CUBLAS_OVERRIDE|(TORCH_)?(CUBLAS|CUBLASLT|CUDNN|BLAS|MKLDNN)_.*|"
    "(MKL|ONEDNN|DNNL|OPENBLAS|BLIS)_.*|ATEN_CPU_CAPABILITY|NCCL_(ALGO|PROTO)")
SPEED = re.compile(
    "(MALLOC|TCMALLOC|OMP|GOMP|KMP|NCCL|TORCHINDUCTOR|CUDA_MPS_ACTIVE)_.*|GLIBC_TUNABLES|LD_PRELOAD|"
    "TORCHDYNAMO_DISABLE|TORCH_COMPILE_DISABLE|CUDA_(LAUNCH_BLOCKING|DEVICE_MAX_CONNECTIONS)|PYTORCH_((CUDA_|HIP_)?ALLOC_CONF|NO_CUDA_MEMORY_CACHING)")
# Exceptions: variables for output, paths, network names, threads (--cpu_threads), and those that libraries set.
NEITHER = re.compile(
    ".*(VERSION|VERBOSE|_DBG|DISPLAY|CACHE|NUM_THREADS).*|.*_(HOME|ROOT|PATH|DIR|LIB|IFNAME)|NCCL_DEBUG.*|"
    "KMP_(SETTINGS|DUPLICATE_LIB_OK|INIT_AT_FORK)")
VERSIONS_OF = ("torch", "deepspeed", "transformers", "datasets", "tokenizers", "numpy")
GIB = 2**30


def devices_of_rank(devices: Iterable[torch.device]) -> dict:
    """This rank's node, host, process ID and devices, as run.json lists them."""
    return {"node": launcher.node(), "host": socket.gethostname(), "pid": os.getpid(),
            "devices": [_describe(device) for device in devices]}


def _describe(device: torch.device) -> dict:
    gpu = torch.cuda.get_device_properties(device) if device.type == "cuda" else None
    kind = "MIG" if gpu and " MIG " in gpu.name else "GPU"  # a slice of a GPU has a UUID of its own
    return {"device": str(device), "gpu": gpu and gpu.name,
            "gpu_memory_gib": gpu and round(gpu.total_memory / GIB, 2),
            "gpu_uuid": gpu and f"{kind}-{gpu.uuid}"}  # as NVML spells it


def git_state() -> dict | None:
    """The commit, and whether the working tree differs from it; None where there is no git, or no checkout."""
    def git(*words: str) -> str:
        return subprocess.run(["git", *words], cwd=PROJECT, capture_output=True, text=True,
                              check=True, timeout=10).stdout.strip()
    try:
        return {"commit": git("rev-parse", "HEAD"), "dirty": bool(git("status", "--porcelain"))}
    except (OSError, subprocess.SubprocessError):
        return None


def source_digest(project: Path = PROJECT) -> str:
    """Digest of the workload and the measurement: SHA-256 over the names and contents of their .py and .csv files.

    Runs that share it were trained and measured by the same code, whatever the state of the rest of the checkout.
    """
    paths = {path.relative_to(project).as_posix(): path for folder in MEASURED_CODE
             for path in (project / folder).rglob("*")
             if path.suffix in (".py", ".csv") and not path.name.startswith(".") and path.is_file()}
    digest = hashlib.sha256()
    for name, path in sorted(paths.items()):
        content = path.read_bytes()
        digest.update(f"{name}\n{len(content)}\n".encode() + content)
    return digest.hexdigest()[:DIGEST_LENGTH]


def file_digest(path: Path) -> str | None:
    """Digest of a file's content; None if it cannot be read."""
    try:
        return hashlib.sha256(path.read_bytes()).hexdigest()[:DIGEST_LENGTH]
    except OSError:
        return None


def own_settings(*kinds: re.Pattern) -> list[str]:
    """The user's environment variables of these kinds (`ARITHMETIC`, `SPEED`), as NAME=value.

    Preloaded libraries are given without their folders.
    """
    return [f"{name}={re.sub('[^ :]*/', '', value) if name == 'LD_PRELOAD' else value}"
            for name, value in sorted(os.environ.items())
            if value and any(kind.fullmatch(name) for kind in kinds) and not NEITHER.fullmatch(name)]


def versions() -> dict[str, str | None]:
    """Versions of Python, CUDA, NCCL and the libraries that compute."""
    cuda = torch.version.cuda
    nccl_version = ".".join(map(str, nccl.version())) if cuda and torch.cuda.is_available() else None
    return {"python": platform.python_version(), "cuda": cuda, "nccl": nccl_version,
            **{name: metadata.version(name) for name in VERSIONS_OF}}


def cpu_name() -> str:
    """The name of the CPU model."""
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
        return next(line.split(":")[1].strip() for line in lines if line.startswith("model name"))
    except (OSError, StopIteration):
        return platform.processor()


def hardware_name(gpus: Iterable[str | None], cpu: str, settings: list[str]) -> str:
    """The `hardware` of a run: its devices, and the user's settings of libraries.

    Args:
        gpus: the name of each device's GPU; None for a CPU.
        cpu: the name of the CPU.
        settings: from `own_settings`.
    """
    names = sorted({gpu or f"CPU {cpu}" for gpu in gpus})
    return ", ".join([" + ".join(names), *settings])


def path_in_project(path: str) -> str:
    """The path relative to the project for a file in it; any other path as it was given."""
    file = Path(path).resolve()
    return str(file.relative_to(PROJECT)) if file.is_relative_to(PROJECT) else path


def is_out_of_memory(error: BaseException) -> bool:
    """Whether a device ran out of memory. PyTorch has no exception class for the CPU's memory."""
    return isinstance(error, torch.OutOfMemoryError | MemoryError) or (
        isinstance(error, RuntimeError) and "DefaultCPUAllocator" in str(error))
