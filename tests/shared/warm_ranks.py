"""Ranks that are forked from a process with all imports done, since imports take longer than a test's training.

Each rank is a process of its own, as under torchrun; other tests start the launchers themselves. Pretended GPUs must be
there before libraries look for any: ranks with so many GPUs are forked from a process that began with them.
"""

import atexit
import functools
import itertools
import multiprocessing
import multiprocessing.connection
import os
import runpy
import socket
import subprocess
import sys
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
FORKSERVER = multiprocessing.get_context("forkserver")
FORKSERVER.set_forkserver_preload(["tests.shared.slow_imports"])


def start_ranks(script: str, words: list[str], count: int, environment: dict[str, str],
                folder: Path) -> tuple[list[multiprocessing.Process], list[list[Path]]]:
    """Start a script in `count` processes; returns them, and for each the files of its two outputs."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    variables = dict(environment)
    if count > 1:
        variables |= {"WORLD_SIZE": str(count), "LOCAL_WORLD_SIZE": str(count), "LOCAL_SIZE": str(count),
                      "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
    outputs = [[folder / f"rank{rank}.{stream}" for stream in ("out", "err")] for rank in range(count)]
    for path in itertools.chain(*outputs):
        path.write_text("")  # a rank may be killed before it opens them
    ranks, context = [], multiprocessing.get_context("fork") if "PRETENDED_GPUS" in environment else FORKSERVER
    for rank in range(count):
        own = variables | ({"RANK": str(rank), "LOCAL_RANK": str(rank)} if count > 1 else {})
        ranks.append(context.Process(target=_be_rank, args=(script, words, own, outputs[rank])))
        ranks[-1].start()
    return ranks, outputs


def run_ranks(script: str, words: list[str], count: int, environment: dict[str, str], folder: Path,
              timeout: float) -> subprocess.CompletedProcess:
    """Run a script in `count` processes; rank 0's output comes first. If one fails, the others are ended."""
    if (gpus := environment.get("PRETENDED_GPUS")) and gpus != os.environ.get("PRETENDED_GPUS"):
        connection = _with_gpus(gpus, tuple(sorted((name, value) for name, value in environment.items()
                                                   if name != "DEVICE_COUNTS")))
        connection.send((script, words, count, environment, folder, timeout))
        return connection.recv()
    ranks, outputs = start_ranks(script, words, count, environment, folder)
    running, deadline = list(ranks), time.monotonic() + timeout
    while running and time.monotonic() < deadline and not any(rank.exitcode for rank in ranks):
        multiprocessing.connection.wait([rank.sentinel for rank in running], timeout=1)
        running = [rank for rank in running if rank.is_alive()]
    code = next((rank.exitcode for rank in ranks if rank.exitcode), 0) if not running or any(
        rank.exitcode for rank in ranks) else 124
    for rank in running:
        rank.kill()
    for rank in ranks:
        rank.join()
    out, err = ("".join(paths[stream].read_text() for paths in outputs) for stream in (0, 1))
    return subprocess.CompletedProcess([script, *words], code, out, err)


def _be_rank(script: str, words: list[str], variables: dict[str, str], outputs: list[Path]) -> None:
    os.environ.clear()
    os.environ.update(variables)
    for number, path in enumerate(outputs, start=1):
        os.dup2(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC), number)
    sys.stdout, sys.stderr = (open(number, "w", buffering=1, closefd=False) for number in (1, 2))
    sys.argv = [script, *words]
    sys.path.insert(0, str((ROOT / script).parent))  # as Python does
    os.chdir(ROOT)
    if "DEVICE_COUNTS" in variables:
        from tests import pretended_cuda

        pretended_cuda.count()
    runpy.run_path(script, run_name="__main__")


@functools.cache
def _with_gpus(gpus: str, environment: tuple[tuple[str, str], ...]) -> multiprocessing.connection.Connection:
    """A process with so many pretended GPUs, which runs what it is sent by `run_ranks`."""
    ours, its = multiprocessing.Pipe()
    multiprocessing.get_context("spawn").Process(target=_serve, args=(its, environment)).start()
    its.close()
    atexit.register(ours.close)  # which ends it
    return ours


def _serve(connection: multiprocessing.connection.Connection, environment: tuple[tuple[str, str], ...]) -> None:
    os.environ.clear()
    os.environ.update(environment)
    from tests import pretended_cuda

    pretended_cuda.start()
    import tests.shared.slow_imports  # noqa: F401

    try:
        while True:
            connection.send(run_ranks(*connection.recv()))
    except EOFError:
        pass
