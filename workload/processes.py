"""One process per device: how many there are, how many were asked for, and the launcher that makes up the difference."""

import contextlib
import io
import logging
import os
import socket
import sys
import time
import warnings
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal

import psutil
import torch
import torch.distributed as dist

from workload.errors import InputError

LAUNCHER_VARIABLES = ("RANK", "LOCAL_RANK", "WORLD_SIZE", "LOCAL_WORLD_SIZE", "LOCAL_SIZE", "GROUP_RANK",
                      "GROUP_WORLD_SIZE", "CROSS_RANK", "CROSS_SIZE", "MASTER_ADDR", "MASTER_PORT", "OMP_NUM_THREADS")
LAUNCHER_PREFIXES = ("ROLE_", "TORCHELASTIC_")
STARTED_AT = "RUN_STARTED_AT"  # environment: when the user's command began, in seconds since the epoch


@dataclass(frozen=True)
class Processes:
    """This process among those of the run: `rank` of `count`, and the device that it computes on."""

    rank: int
    local_rank: int
    count: int
    device: torch.device
    cpu_threads: int

    @property
    def is_main(self) -> bool:
        """Rank 0 writes the record and shows the progress bar."""
        return self.rank == 0


def devices_asked_for(num_gpus: int | None) -> int:
    """How many devices the run is to use, from `--num_gpus`, the launcher that started us, or the visible GPUs.

    Raises:
        InputError: more devices than this machine has GPUs, or than the launcher started on several nodes.
    """
    started = int(os.environ.get("WORLD_SIZE", 0))  # 0: no launcher started this process
    nodes = int(os.environ.get("GROUP_WORLD_SIZE") or os.environ.get("CROSS_SIZE") or 1)
    visible = torch.cuda.device_count()
    if nodes > 1:
        if num_gpus not in (None, started):
            raise InputError(f"--num_gpus {num_gpus}: the launcher started {started} processes on {nodes} nodes; "
                             "leave the flag out or let them agree")
        return started
    devices = num_gpus or started or visible or 1
    if num_gpus is None and started == 1 and not _process_count_was_given():
        devices = max(visible, 1)  # a bare `torchrun script.py` starts one process only
    if visible and devices > visible:
        raise InputError(f"{devices} devices asked for, but this machine shows {visible} GPU{'s' * (visible > 1)}; "
                         f"--num_gpus {visible} fits")
    return devices


def launch(launcher: Literal["torchrun", "deepspeed"], devices: int) -> None:
    """Return if this is one of `devices` processes; else let `launcher` start them in this process's place."""
    started = int(os.environ.get("WORLD_SIZE", 0))
    os.environ.setdefault(STARTED_AT, str(psutil.Process().create_time()))
    os.environ.setdefault("DS_ACCELERATOR", "cuda" if torch.cuda.is_available() else "cpu")  # or DeepSpeed warns
    # DeepSpeed builds a small CPU operation at its first start, with the `ninja` that is installed beside Python.
    os.environ["PATH"] = os.pathsep.join([os.path.dirname(sys.executable), os.environ.get("PATH", "")])
    if started == devices:
        return
    if started == 0 and devices == 1:
        os.environ.update(RANK="0", LOCAL_RANK="0", WORLD_SIZE="1", LOCAL_SIZE="1",
                          MASTER_ADDR="127.0.0.1", MASTER_PORT=str(_free_port()))
        return
    if os.environ.get("RANK", "0") != "0":
        sys.exit(0)  # another number of processes was started than asked for: rank 0 starts the right one

    script = [os.path.abspath(sys.argv[0]), *(word for word in sys.argv[1:] if not word.startswith("--local_rank="))]
    environment = {name: value for name, value in os.environ.items()
                   if name not in LAUNCHER_VARIABLES and not name.startswith(LAUNCHER_PREFIXES)}
    environment["OMP_NUM_THREADS"] = "1"  # until the script sets its own; else torchrun warns
    if launcher == "torchrun":
        command = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", str(devices), *script]
    else:
        # `--num_gpus` would make DeepSpeed ignore CUDA_VISIBLE_DEVICES and take the first GPUs of the machine.
        visible = environment.pop("CUDA_VISIBLE_DEVICES", "")
        chosen = (["--include", f"localhost:{','.join(visible.split(',')[:devices])}"] if visible
                  else ["--num_gpus", str(devices)])
        command = ["-m", "deepspeed.launcher.runner", *chosen, "--master_port", str(_free_port()),
                   "--log_level", "error", *script]
    sys.stdout.flush()
    os.execve(sys.executable, [sys.executable, *command], environment)


def join(devices: int, cpu_threads: int | None) -> Processes:
    """Join the process group: NCCL between GPUs, gloo between CPU processes (and for small objects)."""
    rank, local_rank = int(os.environ["RANK"]), int(os.environ["LOCAL_RANK"])
    threads = cpu_threads or max((os.cpu_count() or 1) // devices, 1)
    torch.set_num_threads(threads)  # torchrun would give 1, DeepSpeed all
    if torch.cuda.is_available():
        device = torch.device("cuda", local_rank)
        torch.cuda.set_device(device)
        dist.init_process_group("cpu:gloo,cuda:nccl", device_id=device)
    else:
        device = torch.device("cpu")
        dist.init_process_group("gloo")
    return Processes(rank, local_rank, dist.get_world_size(), device, threads)


def leave() -> None:
    """Wait for the others, then leave the process group."""
    dist.barrier()
    dist.destroy_process_group()


@contextlib.contextmanager
def quiet_libraries() -> Iterator[None]:
    """Hold back what libraries print and log while they start; errors are raised, not printed, so none is lost."""
    logging.disable(logging.WARNING)
    with warnings.catch_warnings(), contextlib.redirect_stdout(io.StringIO()):
        warnings.simplefilter("ignore")
        try:
            yield
        finally:
            logging.disable(logging.NOTSET)


def started_at() -> float:
    """When the user's command began, in seconds since the epoch."""
    return float(os.environ.get(STARTED_AT, time.time()))


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def _process_count_was_given() -> bool:
    """Whether the launcher above us was told a number of processes (its own default is one)."""
    parent = psutil.Process().parent()
    words = parent.cmdline() if parent else []
    return any(word.replace("_", "-").startswith(("--nproc-per-node", "--num-gpus", "--include")) for word in words)
