"""A run that is stopped from outside: it writes a checkpoint, says what happened, and leaves no process behind."""

import fcntl
import json
import os
import select
import signal
import threading
import time
from pathlib import Path

import torch
import torch.distributed as dist

from measurement.redaction import without_secrets
from measurement.results import free_room, utc_time, write_json
from workload.errors import InputError

STOPPING = (signal.SIGTERM, signal.SIGUSR1, signal.SIGINT)
NONFINITE = "a loss that is no number"
LAUNCHER = "the launcher's death"
REASONS = (None, "SIGINT", "SIGUSR1", "SIGTERM", LAUNCHER, NONFINITE)  # a later one outweighs those before
PATIENCE_S = 10.0  # and three steps: within them a run that was told to stop has stopped, or hangs


def mark_ended(run_json: Path, status: str, reason: str) -> None:
    """Set the status of a run that is still "running"; the first rank that ends badly states the reason."""
    free_room(run_json)
    try:
        description = json.loads(run_json.read_text(encoding="utf-8"))
        if description["status"] == "running":
            write_json(run_json, description | {"status": status, "reason": without_secrets(reason.split("\n")[0]),
                                                "ended": utc_time(time.time())})
    except OSError:
        pass  # the run had not begun, or the disk takes nothing more, which the error says that brought us here


class StopWatch:
    """Listens for what tells this process to stop: SIGTERM, SLURM's early warning USR1, Ctrl-C, its launcher's death.

    The training loop asks for `reason` after each step, and stops in good order. A rank that waits for a dead one
    inside a collective never gets there, and Python runs no handler in it: so a thread listens, and ends the process
    after a while. A second Ctrl-C ends it at once.
    """

    def __init__(self, run_json: Path) -> None:
        self.run_json = run_json
        self.reason: str | None = None
        self.step_s = 0.0  # seconds of the longest step so far, which the loop sets
        self.has_failed = False  # then nothing is left to be done in good order
        self.launcher = os.getppid()
        reader, writer = os.pipe()
        os.set_blocking(writer, False)
        for number in STOPPING:
            signal.signal(number, lambda number, frame: None)
        signal.set_wakeup_fd(writer)
        threading.Thread(target=self._listen, args=(reader,), name="signals", daemon=True).start()

    def _listen(self, reader: int) -> None:
        deadline = float("inf")
        while True:
            heard = os.read(reader, 1)[0] if select.select([reader], [], [], 0.5)[0] else None
            if heard is None and self.launcher != os.getppid():
                self.launcher = os.getppid()
                heard, said = signal.SIGTERM, LAUNCHER
            elif heard in STOPPING:
                said = signal.Signals(heard).name
            else:
                heard = None
            if heard == signal.SIGINT and self.reason == "SIGINT":
                self._end("stopped", "a second Ctrl-C", 128 + signal.SIGINT)
            if heard:
                self.reason = said
            if heard == signal.SIGTERM:  # who sends it does not wait for ever
                deadline = time.monotonic() + PATIENCE_S + 3 * self.step_s
            if self.has_failed and deadline < float("inf"):
                os._exit(128 + signal.SIGTERM)
            if time.monotonic() > deadline:
                self._end("failed", f"stopped by {self.reason} in the midst of a step: another rank died or hangs, or "
                                    "the step took too long", 128 + signal.SIGTERM)

    def _end(self, status: str, reason: str, code: int) -> None:
        mark_ended(self.run_json, status, reason)
        os._exit(code)


def agreed_reason(*mine: str | None) -> str | None:
    """Why any of the ranks is to stop; every rank gets the same answer at the same step."""
    number = max(map(REASONS.index, mine))
    if dist.get_world_size() > 1:
        agreed = torch.tensor(number)
        dist.all_reduce(agreed, dist.ReduceOp.MAX)
        number = int(agreed)
    return REASONS[number]


class FolderLock:
    """Held by the process that writes a run's folder, and let go by the system however that process ends.

    Raises:
        InputError: another process holds it.
    """

    NAME = ".lock"

    def __init__(self, folder: Path) -> None:
        self.file = open(folder / self.NAME, "a")  # noqa: SIM115  open as long as the run
        try:
            fcntl.flock(self.file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise InputError(f"{folder}: a running process is writing this run; wait for it, or give another "
                             "--run_name") from None
