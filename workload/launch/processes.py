"""One process per device: counts the processes that there are, and launches those that were asked for."""

import contextlib
import getpass
import io
import logging
import os
import signal
import socket
import sys
import tempfile
import time
import warnings
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path
from types import FrameType, ModuleType
from typing import NoReturn

import psutil
import torch
import torch.distributed as dist
from torch.distributed import distributed_c10d
from torch.distributed import run as torchrun
from torch.distributed.constants import default_pg_timeout
from torch.distributed.elastic.multiprocessing.api import SignalException
from torch.distributed.elastic.multiprocessing.errors import ChildFailedError
from tqdm import tqdm

from workload.errors import InputError, end_process
from workload.launch import launcher, loopback
from workload.launch.gpus import check_gpus, device_type, visible_gpus
from workload.malloc import keep_freed_memory
from workload.storage import extensions_folder

TRY_AGAIN = 75  # exit code of a stopped run that can be resumed: EX_TEMPFAIL of sysexits.h, so a scheduler requeues
GRACE = timedelta(minutes=2)  # beyond --hang_timeout_s, for the run to say which rank is missing
STARTED_AT = "RUN_STARTED_AT"  # environment: when the user's command began, in seconds since the epoch


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


def devices_asked_for(num_gpus: int | None) -> int:
    """How many devices the run is to use, from `--num_gpus`, the launcher that started us, or the visible GPUs.

    Raises:
        InputError: more devices than this machine has GPUs, or than the launcher started on several nodes; GPUs that
            PyTorch cannot use; or this process was started in a way that tells it nothing of the others.
    """
    if problem := launcher.problem():
        raise InputError(problem)
    check_gpus()
    started, visible = launcher.processes(), visible_gpus()
    on_this_node = launcher.processes_on_this_node()
    if launcher.nodes() > 1:
        if 0 < visible < on_this_node:
            raise InputError(f"the launcher started {on_this_node} processes on this node, which shows {visible} "
                             f"GPU{'s' * (visible > 1)}; use --nproc-per-node {visible}")
        if num_gpus not in (None, started):
            raise InputError(f"--num_gpus {num_gpus}: the launcher started {started} processes on {launcher.nodes()} "
                             "nodes; leave the flag out or let them agree")
        return started
    devices = num_gpus or started or visible or 1
    if num_gpus is None and started == 1 and not _process_count_was_given():
        devices = max(visible, 1)  # a bare `torchrun script.py` starts one process only
    if visible and devices > visible:
        raise InputError(f"{devices} devices asked for, but this machine shows {visible} GPU{'s' * (visible > 1)}; "
                         f"use --num_gpus {visible}")
    return devices


def launch(processes: int) -> None:
    """Return in a worker. Otherwise launch `processes` workers, wait, and exit with their status.

    The launcher is torchrun, run within this process, so that nothing is imported twice.
    """
    started = launcher.processes()
    os.environ.setdefault(STARTED_AT, str(psutil.Process().create_time()))
    _name_user()
    # DeepSpeed builds a small CPU operation at its first start, with the `ninja` that is installed beside Python.
    os.environ["PATH"] = os.pathsep.join([os.path.dirname(sys.executable), os.environ.get("PATH", "")])
    if sys.prefix != sys.base_prefix and "TORCH_EXTENSIONS_DIR" not in os.environ:
        os.environ["TORCH_EXTENSIONS_DIR"] = extensions_folder()
    if started == processes:
        return
    if launcher.rank() != 0:
        sys.exit(0)  # another number of processes was started than asked for: rank 0 starts the right one

    for name in list(os.environ):
        if name in launcher.VARIABLES or name.startswith(launcher.PREFIXES):
            del os.environ[name]
    if processes == 1:
        os.environ.update(RANK="0", LOCAL_RANK="0", WORLD_SIZE="1", LOCAL_SIZE="1",
                          MASTER_ADDR=loopback.ADDRESS, MASTER_PORT=str(_free_port()))
        return
    os.environ["OMP_NUM_THREADS"] = "1"  # until the script sets its own; else torchrun warns
    logging.getLogger("torch.distributed.elastic").setLevel(logging.CRITICAL)  # its report repeats the ranks' messages
    for number in (signal.SIGTERM, signal.SIGINT, signal.SIGUSR1):
        signal.signal(number, _PassOn())
    try:
        with tempfile.TemporaryDirectory() as logs:  # torchrun's own would stay behind
            torchrun.run(torchrun.parse_args([
                "--rdzv-backend", loopback.BACKEND, "--rdzv-endpoint", loopback.ADDRESS, "--signals-to-handle",
                "SIGHUP,SIGQUIT", "--log-dir", logs, "--nproc-per-node", str(processes),
                os.path.abspath(sys.argv[0]), *launcher.without_local_rank(sys.argv[1:])]))
    except SignalException as stopped:  # it has passed the signal on and waited; run.json says so
        sys.exit(128 + stopped.sigval)
    except ChildFailedError as failed:
        rank, failure = failed.get_first_failure()
        if failure.exitcode not in (2, TRY_AGAIN):  # after these the rank itself has printed why
            print(f"error: rank {rank} ended with exit code {failure.exitcode}", file=sys.stderr, flush=True)
        sys.exit(failure.exitcode if failure.exitcode > 0 else 128 - failure.exitcode)
    sys.exit(0)


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


@contextlib.contextmanager
def quiet_libraries() -> Iterator[None]:
    """Silence libraries while they start. They raise errors instead of printing them, so none is lost."""
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


def usable_cores() -> int:
    """CPU cores this process may use; a cluster job often gets only some of a node's."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


class _PassOn:
    """A launcher's signal handler: passes the signal on to the ranks, which end cleanly. A second Ctrl-C kills them."""

    def __init__(self) -> None:
        self.heard = 0

    def __call__(self, number: int, frame: FrameType | None) -> None:
        self.heard += 1
        is_enough = number == signal.SIGINT and self.heard > 1
        children = psutil.Process().children(recursive=is_enough)
        for child in children:
            with contextlib.suppress(psutil.NoSuchProcess):
                child.send_signal(signal.SIGKILL if is_enough else number)
        if is_enough or not children:
            os._exit(128 + number)


def _name_user() -> None:
    """Libraries ask for the user's name, and the user id of a container may have none."""
    try:
        getpass.getuser()
    except (KeyError, OSError):
        os.environ["USER"] = f"uid{os.getuid()}"


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def _process_count_was_given() -> bool:
    """Whether the launcher above us was told a number of processes (its own default is one)."""
    parent = psutil.Process().parent()
    words = parent.cmdline() if parent else []
    return any(word.replace("_", "-").startswith(("--nproc-per-node", "--num-gpus", "--include")) for word in words)
