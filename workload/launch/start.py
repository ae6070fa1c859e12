"""Counts the devices that were asked for, and starts a process for each unless a launcher has done so."""

import contextlib
import getpass
import logging
import os
import signal
import socket
import sys
import tempfile
import time
from types import FrameType

import psutil
from torch.distributed import run as torchrun
from torch.distributed.elastic.multiprocessing.api import SignalException
from torch.distributed.elastic.multiprocessing.errors import ChildFailedError

from workload.errors import InputError
from workload.launch import launcher, loopback
from workload.launch.gpus import check_gpus, visible_gpus
from workload.launch.processes import TRY_AGAIN
from workload.storage import extensions_folder

PROCESS_GIB = 0.4  # Python and PyTorch, before there is a model
STARTED_AT = "RUN_STARTED_AT"  # environment: when the user's command began, in seconds since the epoch


def devices_asked_for(num_gpus: int | None, without_gpus: int = 1) -> int:
    """How many devices the run is to use, from `--num_gpus`, the launcher that started us, or the visible GPUs.

    Args:
        without_gpus: CPU processes where none of these says how many.

    Raises:
        InputError: more devices than this machine has GPUs, or memory for, or than the launcher started on several
            nodes; GPUs that PyTorch cannot use; or this process was started in a way that tells it nothing of the
            others.
    """
    if problem := launcher.problem():
        raise InputError(problem)
    if num_gpus is not None and num_gpus < 1:
        raise InputError(f"--num_gpus {num_gpus}: use at least 1, or leave it out")
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
    devices = num_gpus or started or visible or without_gpus
    if num_gpus is None and started == 1 and not _process_count_was_given():
        devices = visible or without_gpus  # a bare `torchrun script.py` starts one process only
    if visible and devices > visible:
        raise InputError(f"{devices} devices asked for, but this machine shows {visible} GPU{'s' * (visible > 1)}; "
                         f"use --num_gpus {visible}")
    memory_gib = psutil.virtual_memory().total / 2**30
    if not (visible or started) and devices * PROCESS_GIB > memory_gib:
        raise InputError(f"--num_gpus {devices}: this machine shows no GPU, and so many CPU processes, of at least "
                         f"{PROCESS_GIB} GiB each, do not fit into its {memory_gib:.0f} GiB of memory; use at most "
                         f"{int(memory_gib / PROCESS_GIB)}")
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
                          MASTER_ADDR=loopback.ADDRESS, MASTER_PORT=str(free_port()))
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


def started_at() -> float:
    """When the user's command began, in seconds since the epoch."""
    return float(os.environ.get(STARTED_AT, time.time()))


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


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def _process_count_was_given() -> bool:
    """Whether the launcher above us was told a number of processes (its own default is one)."""
    parent = psutil.Process().parent()
    words = parent.cmdline() if parent else []
    return any(word.replace("_", "-").startswith(("--nproc-per-node", "--num-gpus", "--include")) for word in words)
