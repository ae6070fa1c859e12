"""What this machine offers besides GPUs: the Hugging Face Hub, disk space, limits, a compiler."""

import os
import resource
import shlex
import shutil
import subprocess
import threading
from pathlib import Path
from typing import Any

from huggingface_hub import constants, get_session

from measurement.environment import GIB

HUB_TIMEOUT_S = 4.0
COMPILER_TIMEOUT_S = 3
PROXY_REFUSES = (403, 407)


class HubCheck:
    """Asks the Hub in a thread, since no time limit applies to the look-up of its name."""

    def __init__(self) -> None:
        self.problem: str | None = "no answer in time"
        self.thread = threading.Thread(target=self._ask, daemon=True)
        if not constants.HF_HUB_OFFLINE:
            self.thread.start()

    def _ask(self) -> None:
        try:
            status = get_session().head(constants.ENDPOINT, timeout=HUB_TIMEOUT_S).status_code
            self.problem = f"status {status}" if status in PROXY_REFUSES or status >= 500 else None
        except Exception as error:  # of several HTTP libraries, depending on huggingface_hub's version
            self.problem = type(error).__name__

    def answer(self) -> dict[str, Any]:
        """Wait for the Hub, not for long; returns `state` in words, and whether it `is_unreachable`."""
        if constants.HF_HUB_OFFLINE:
            return {"state": "not used (HF_HUB_OFFLINE is set)", "is_unreachable": False}
        self.thread.join(HUB_TIMEOUT_S)
        return {"state": f"cannot be reached ({self.problem})" if self.problem else "can be reached",
                "is_unreachable": self.problem is not None}


def space(folder: Path) -> dict[str, Any] | None:
    """Total and free space of the file system of a folder, which need not exist, in GiB."""
    nearest = next(place for place in (folder.absolute(), *folder.absolute().parents) if place.exists())
    if str(folder) == "/dev/shm" != str(nearest):
        return None
    usage = shutil.disk_usage(nearest)
    return {"folder": str(folder), "total_gib": round(usage.total / GIB, 3), "free_gib": round(usage.free / GIB, 3)}


def container_memory_gib(total: int) -> float | None:
    """The memory limit of this container, if it has one below the machine's."""
    for path in ("/sys/fs/cgroup/memory.max", "/sys/fs/cgroup/memory/memory.limit_in_bytes"):
        try:
            limit = Path(path).read_text().strip()
        except OSError:
            continue
        return round(int(limit) / GIB, 2) if limit.isdecimal() and int(limit) < total else None
    return None


def open_files() -> int | None:
    """How many files a process may open; None if there is no limit."""
    limit = resource.getrlimit(resource.RLIMIT_NOFILE)[0]
    return None if limit == resource.RLIM_INFINITY else limit


def compiler() -> str | None:
    """The C++ compiler that PyTorch and DeepSpeed would start, with its version."""
    command = shlex.split(os.environ.get("CXX") or "c++")
    if not shutil.which(command[0]):
        return None
    try:
        said = subprocess.run([*command, "--version"], capture_output=True, text=True, timeout=COMPILER_TIMEOUT_S)
    except (OSError, subprocess.TimeoutExpired):
        return None
    return said.stdout.split("\n")[0] or None
