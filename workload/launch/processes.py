"""The processes of a run, in each of them: joining the others, what all can do together, and leaving."""

import os
import sys
from collections.abc import Iterable
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path
from types import ModuleType
from typing import NoReturn

import torch
import torch.distributed as dist
from torch.distributed import distributed_c10d
from torch.distributed.constants import default_pg_timeout
from tqdm import tqdm

from workload.cores import usable_cores
from workload.errors import InputError, end_process
from workload.launch import launcher, loopback
from workload.launch.gpus import device_type
from workload.malloc import keep_freed_memory
from workload.terminal import quiet_libraries

TRY_AGAIN = 75  # exit code of a stopped run that can be resumed: EX_TEMPFAIL of sysexits.h, so a scheduler requeues
GRACE = timedelta(minutes=2)  # beyond --hang_timeout_s, for the run to say which rank is missing


@dataclass(frozen=True)
class Processes:
    """This process among those of the run: `rank` of `count`, and the devices that it computes on."""

    rank: int
    local_rank: int
    count: int
    devices: tuple[torch.device, ...]
    cpu_threads: int
    waiting_room: dist.ProcessGroup  # all ranks, on the CPU, with a time limit that nobody reaches

    @property
    def device(self) -> torch.device:
        """The device of batches, losses and gradients. With most strategies a process drives no other."""
        return self.devices[0]

    def wait(self) -> None:
        """Wait for all other ranks, however long they take, and without keeping a device busy."""
        dist.barrier(self.waiting_room)

    @property
    def is_main(self) -> bool:
        """Rank 0 writes the record and shows the progress bar."""
        return self.rank == 0

    def mean(self, value: torch.Tensor) -> torch.Tensor:
        """The mean of every process's value, on all of them. Any shape"""
        dist.all_reduce(value)
        return value / self.count

    def progress_bar(self, iterable: Iterable | None = None, **options) -> tqdm:
        """The one bar, from rank 0; on a terminal lively, in a log file a line now and then."""
        return tqdm(iterable, disable=not self.is_main, mininterval=0.5 if sys.stderr.isatty() else 20.0, **options)


def join(processes: int, cpu_threads: int | None, devices_a_process: int = 1, hang_timeout_s: float = 0.0,
         sends_messages: bool = False) -> Processes:
    """Join the process group: NCCL between GPUs, gloo between CPU processes (and for small objects).

    Args:
        hang_timeout_s: seconds after which a hanging run is ended with a reason; PyTorch's own limits are set above it.
        sends_messages: whether ranks send each other messages in batches, as in a pipeline. A group that is bound to a
            device would send these one after the other (pytorch issues 154132, 129147).

    Raises:
        InputError: another process uses MASTER_PORT.
    """
    rank, local_rank = launcher.rank(), launcher.local_rank()
    threads = cpu_threads or max(usable_cores() // (launcher.processes_on_this_node() or processes), 1)
    torch.set_num_threads(threads)  # torchrun would give 1, DeepSpeed all
    if device_type() == "cuda":
        first = local_rank * devices_a_process
        devices = tuple(torch.device("cuda", first + number) for number in range(devices_a_process))
        torch.cuda.set_device(devices[0])
        backend, device = "cpu:gloo,cuda:nccl", None if sends_messages else devices[0]
    else:
        devices = (torch.device("cpu"),) * devices_a_process
        keep_freed_memory()
        backend, device = "gloo", None
    limit = max(default_pg_timeout, timedelta(seconds=hang_timeout_s) + GRACE)
    # Groups that are made later, by DeepSpeed's pipelines for instance, take these.
    distributed_c10d.default_pg_timeout = limit
    distributed_c10d.default_pg_nccl_timeout = limit  # pyright: ignore[reportPrivateImportUsage]  no public name
    try:
        store = loopback.store_of_one_machine(rank)
        dist.init_process_group(backend, store=store, rank=rank, world_size=processes, device_id=device, timeout=limit)
    except (OSError, dist.DistNetworkError) as error:
        if "address already in use" not in str(error).lower():
            raise
        raise InputError(f"port {os.environ['MASTER_PORT']} of this machine is in use, perhaps by another run; give "
                         "the launcher another --master_port") from error
    waiting_room = dist.new_group(backend="gloo", timeout=timedelta(days=7))
    assert isinstance(waiting_room, dist.ProcessGroup)  # a number only on ranks outside a group
    return Processes(rank, local_rank, dist.get_world_size(), devices, threads, waiting_room)


def leave(exit_code: int = 0) -> NoReturn:
    """Wait for the others, leave the process group, and end this process."""
    dist.barrier()
    dist.destroy_process_group()
    end_process(exit_code)


def import_deepspeed() -> ModuleType:
    """DeepSpeed. Takes half a second and more, so not before the flags are known to be good."""
    os.environ.setdefault("DS_ACCELERATOR", device_type())  # or DeepSpeed warns
    with quiet_libraries():
        import deepspeed
    return deepspeed


def join_deepspeed() -> ModuleType:
    """DeepSpeed, with a process group of its own."""
    deepspeed = import_deepspeed()
    with quiet_libraries():
        deepspeed.init_distributed()
    # On CPUs its ranks of a machine share 66 MiB each through files in memory, which it never removes. Once unlinked,
    # they are freed when the last process ends, however it ends.
    dist.barrier()
    Path("/dev/shm", "_".join(["deepspeed_allreduce_buffer", str(os.getuid()), os.environ["MASTER_ADDR"],
                               os.environ["MASTER_PORT"], str(dist.get_rank())])).unlink(missing_ok=True)
    return deepspeed
