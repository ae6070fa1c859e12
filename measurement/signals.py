"""What tells a run to stop: signals, the death of its launcher, a NaN. All ranks agree on it after each step."""

import os
import select
import signal
import threading
import time
from pathlib import Path

import torch
import torch.distributed as dist

from measurement.run_json import mark_ended

STOP_SIGNALS = (signal.SIGTERM, signal.SIGUSR1, signal.SIGINT)
NONFINITE = "a NaN or infinite loss"
LAUNCHER = "the launcher's death"
REASONS = (None, "SIGINT", "SIGUSR1", "SIGTERM", LAUNCHER, NONFINITE)  # by precedence, the strongest last
PATIENCE_S = 10.0  # grace period after SIGTERM: this plus three times the longest step


class StopListener:
    """Listens for SIGTERM, USR1 (SLURM's early warning), Ctrl-C, and the death of the launcher.

    The training loop looks at `reason` after each step and stops cleanly. A rank that waits for a dead one inside a
    collective never gets there, and Python runs no signal handler meanwhile. So a thread listens, and ends the process
    after a grace period. A second Ctrl-C ends it at once.
    """

    def __init__(self, run_json: Path) -> None:
        self.run_json = run_json
        self.reason: str | None = None
        self.step_s = 0.0  # duration of the longest step so far, set by the training loop
        self.has_failed = False  # an error is being reported: there will be no clean stop
        self.launcher = os.getppid()
        reader, writer = os.pipe()
        os.set_blocking(writer, False)
        for number in STOP_SIGNALS:
            signal.signal(number, lambda number, frame: None)
        signal.set_wakeup_fd(writer)
        threading.Thread(target=self._listen, args=(reader,), name="signals", daemon=True).start()

    def _listen(self, reader: int) -> None:
        deadline = float("inf")
        while True:
            received = os.read(reader, 1)[0] if select.select([reader], [], [], 0.5)[0] else None
            reason = None
            if received is None and self.launcher != os.getppid():
                self.launcher = os.getppid()
                reason = LAUNCHER
            elif received in STOP_SIGNALS:
                reason = signal.Signals(received).name
            if reason == self.reason == "SIGINT":
                self._end("stopped", "a second Ctrl-C", 128 + signal.SIGINT)
            if reason:
                self.reason = reason
            if reason in ("SIGTERM", LAUNCHER):  # its sender will not wait forever
                deadline = time.monotonic() + PATIENCE_S + 3 * self.step_s
            if self.has_failed and deadline < float("inf"):
                os._exit(128 + signal.SIGTERM)
            if time.monotonic() > deadline:
                self._end("failed", f"stopped by {self.reason} in the middle of a step: another rank died or hangs, or "
                                    "the step took too long", 128 + signal.SIGTERM)

    def _end(self, status: str, reason: str, code: int) -> None:
        mark_ended(self.run_json, status, reason)
        os._exit(code)


def agreed_reason(*reasons: str | None) -> str | None:
    """The strongest of all ranks' reasons to stop; every rank gets the same answer at the same step."""
    number = max(map(REASONS.index, reasons))
    if dist.get_world_size() > 1:
        agreed = torch.tensor(number)
        dist.all_reduce(agreed, dist.ReduceOp.MAX)
        number = int(agreed)
    return REASONS[number]
