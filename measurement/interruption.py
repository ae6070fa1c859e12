"""A run that is stopped from outside still says so: its status never stays "running" while anybody is left to write."""

import json
import os
import signal
import threading
import time
from pathlib import Path

from measurement.redaction import without_secrets
from measurement.results import free_room, utc_time, write_json


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


def watch_signals(run_json: Path) -> None:
    """From now on SIGTERM marks the run failed and ends this process at once.

    Launchers send it when another rank has died. Python runs a handler between two of its own instructions only, and
    a rank that waits for a dead one inside a collective may never get there: so a thread listens.
    """
    reader, writer = os.pipe()
    os.set_blocking(writer, False)
    signal.signal(signal.SIGTERM, lambda number, frame: None)
    signal.set_wakeup_fd(writer)

    def listen() -> None:
        while number := os.read(reader, 1):
            if number[0] == signal.SIGTERM:
                mark_ended(run_json, "failed", "stopped by SIGTERM: another rank died, or the job was cancelled")
                os._exit(128 + signal.SIGTERM)

    threading.Thread(target=listen, name="signals", daemon=True).start()
