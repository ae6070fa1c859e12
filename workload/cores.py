"""The cores that a process may use."""

import os


def usable_cores() -> int:
    """CPU cores this process may use; a cluster job often gets only some of a node's."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
