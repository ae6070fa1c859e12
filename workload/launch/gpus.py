"""The GPUs that training may use, decided here for every script; and why there are none.

`--device cpu` hides the GPUs, as the user's own CUDA_VISIBLE_DEVICES can. A machine whose GPUs PyTorch cannot use is
refused: otherwise `--num_gpus 4` would silently train on 4 CPU processes.
"""

import os
import re
import warnings
from dataclasses import dataclass
from pathlib import Path

import pynvml
import torch

from workload.errors import InputError

DEV = Path("/dev")
# The builds that `make install CUDA=` knows, newest first, and the oldest driver for each, as
# https://docs.nvidia.com/deploy/cuda-compatibility/minor-version-compatibility.html has it.
DRIVERS = {"13.0": 580, "12.6": 525}
NAMES_A_GPU = re.compile(r"\s*(\d|GPU-|MIG-)")

_cuda_errors: list[str] = []  # what CUDA's first answer blamed; it answers only once in a process


def use_cpu() -> None:
    """Hide the GPUs from this process and from all that it starts.

    Raises:
        RuntimeError: CUDA has looked for GPUs before, and would still use them.
    """
    for name in _selectors():
        os.environ[name] = "-1"  # an empty value hides GPUs too, but AMD's runtime may take it for an unset one
    if visible_gpus():
        raise RuntimeError("CUDA looked for GPUs before they were hidden from it")


def visible_gpus() -> int:
    """How many GPUs this process may use; 0: it computes on the CPU."""
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        count = torch.cuda.device_count() if torch.cuda.is_available() else 0  # device_count() alone asks the driver
    _cuda_errors.extend(str(warning.message) for warning in caught)
    return count


def only_gpu(number: int) -> dict[str, str]:
    """Environment of a process that is to see one of this process's GPUs only; empty if there are none."""
    if not visible_gpus():
        return {}
    named = next((os.environ[name] for name in reversed(_selectors()) if os.environ.get(name)), None)  # AMD's own first
    return dict.fromkeys(_selectors(), named.split(",")[number].strip() if named else str(number))


def device_type() -> str:
    """What this process computes on: "cuda" (also AMD's GPUs) or "cpu"."""
    return "cuda" if visible_gpus() else "cpu"


def check_gpus() -> None:
    """Refuse a machine whose GPUs PyTorch cannot use, unless the user chose the CPU.

    Raises:
        InputError: says what is wrong with driver or build, and how to mend it.
    """
    if not visible_gpus() and not _hiding() and (problem := _nvidia_problem() or _amd_problem()):
        raise InputError(problem)


def why_none() -> str:
    """Why PyTorch uses no GPU here, in a few words."""
    if hiding := _hiding():
        return f"hidden by {hiding} or --device cpu"
    if problem := _nvidia_problem() or _amd_problem():
        return problem
    build = _build()
    return f"PyTorch {torch.__version__} " + (f"is built for {build}" if build == "CPUs only" else
                                              f"(built for {build}) finds none")


@dataclass(frozen=True)
class _Driver:
    """NVIDIA's driver according to NVML; `problem` instead if that cannot be read."""

    version: str = ""
    cuda: tuple[int, int] = (0, 0)  # the newest CUDA that it supports
    gpus: int = 0
    problem: str = ""


def _driver() -> _Driver:
    try:
        pynvml.nvmlInit()
        cuda = pynvml.nvmlSystemGetCudaDriverVersion_v2()
        return _Driver(pynvml.nvmlSystemGetDriverVersion(), (cuda // 1000, cuda % 1000 // 10),
                       pynvml.nvmlDeviceGetCount())
    except pynvml.NVMLError as error:
        return _Driver(problem=str(error))


def _nvidia_problem() -> str | None:
    """Why PyTorch, which sees no GPU, cannot use NVIDIA's in this machine; None if there are none."""
    driver = _driver()
    count = driver.gpus or len(list(DEV.glob("nvidia[0-9]*")))
    if not count:
        return None
    found = f"this machine has {count} NVIDIA GPU{'s' * (count > 1)} that PyTorch cannot use"
    if driver.problem:
        return (f"{found}: its driver cannot be read ({driver.problem}); {_needs()}; fix the driver until nvidia-smi "
                "lists the GPUs, or use --device cpu")
    if not driver.gpus:
        return f"{found}: the driver shows this process none of them; have your job ask for GPUs, or use --device cpu"
    supports = f"driver {driver.version} supports CUDA {driver.cuda[0]}.{driver.cuda[1]}"
    fitting = next((build for build in DRIVERS if int(build.split(".")[0]) <= driver.cuda[0]), None)
    needed = torch.version.cuda
    if needed is None or int(needed.split(".")[0]) > driver.cuda[0]:
        remedy = (f"make install CUDA={fitting} installs a build that fits" if fitting else
                  f"install driver {min(DRIVERS.values())} or newer")
        return f"{found}: {supports}, but {_needs()}; {remedy}, or use --device cpu"
    if chosen := os.environ.get("CUDA_VISIBLE_DEVICES"):
        return f"{found}: CUDA_VISIBLE_DEVICES={chosen} names none of them; name others, or use --device cpu"
    blamed = re.search(r"Error \d+: [^(]+", " ".join(_cuda_errors))
    reason = f"CUDA reports {blamed[0].strip().lower()}" if blamed else "CUDA does not say why"
    return (f"{found}: {reason} ({supports}, and {_needs()}); fix the driver until PyTorch sees the GPUs, or use "
            "--device cpu")


def _amd_problem() -> str | None:
    """The same for AMD's GPUs."""
    if not (DEV / "kfd").exists():
        return None
    if torch.version.hip:
        return (f"this machine has an AMD GPU that PyTorch {torch.__version__} cannot use, though it is built for "
                f"{_build()}; see whether you may open /dev/kfd (the groups render and video), or use --device cpu")
    return (f"this machine has an AMD GPU that PyTorch cannot use: {_needs()}, not ROCm; install PyTorch's ROCm build "
            "by hand, as docs/running.md says, or use --device cpu")


def _needs() -> str:
    build = _build()
    return f"PyTorch {torch.__version__} {'needs' if torch.version.cuda else 'is built for'} {build}"


def _build() -> str:
    if torch.version.cuda:
        return f"CUDA {torch.version.cuda}"
    return f"ROCm {torch.version.hip}" if torch.version.hip else "CPUs only"


def _selectors() -> tuple[str, ...]:
    """The environment variables that choose GPUs for this build of PyTorch."""
    return ("CUDA_VISIBLE_DEVICES", "HIP_VISIBLE_DEVICES") if torch.version.hip else ("CUDA_VISIBLE_DEVICES",)


def _hiding() -> str | None:
    """The variable with which the user hides all GPUs: its value is empty, -1, or SLURM's NoDevFiles."""
    return next((name for name in _selectors()
                 if name in os.environ and not NAMES_A_GPU.match(os.environ[name])), None)
