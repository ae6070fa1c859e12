"""The lanes of the tests: marked by what a test uses, and kept by a guard.

`make check` runs the tests that start no training; `make test` adds runs of up to three processes; `make test-slow`
has the rest: pretended GPUs, runs of four processes and more, runs that are killed.
"""

import contextlib
import math
import os
import shlex
import subprocess
from collections.abc import Iterator
from itertools import pairwise
from pathlib import Path

import pytest

from tests.shared import warm_ranks
from tests.shared.runs import ROOT

TRAINING, SLOW = "environment", "slow_lane"  # fixtures; tests that take them, also through others, get the marks
MANY = 4  # processes
SCRIPTS = {path.name for path in ROOT.glob("*.py")} - {"plots.py"}
LAUNCHERS = {"torchrun", "deepspeed"}
COUNTS = {"--num_gpus", "--nproc-per-node", "--nproc_per_node"}

allowed: float = math.inf  # processes that the running test may start


def marks(item: pytest.Item) -> list[str]:
    """The marks of a test by its fixtures, and by the processes that its parameters ask for."""
    if TRAINING not in item.fixturenames:
        return ["slow"] if SLOW in item.fixturenames else []
    parameters = item.callspec.params if hasattr(item, "callspec") else {}
    asked = [parameters.get("count", 1), *(processes_of(value) for value in parameters.values())]
    return ["training"] + ["slow"] * (SLOW in item.fixturenames or max(asked) >= MANY)


def processes_of(command: object) -> int:
    """How many processes a command asks for; 1 where it does not say, or is no command."""
    words = [str(word) for word in command] if isinstance(command, tuple | list) else []
    return max((int(count) for flag, count in pairwise(words) if flag in COUNTS), default=1)


def trains(words: list[str]) -> bool:
    """Whether a command starts a strategy's script, by Python or a launcher."""
    names = [Path(word).name for word in words]
    return bool(LAUNCHERS.intersection(names)) or any(
        name.startswith("python") and script in SCRIPTS for name, script in pairwise(names))


def check(processes: int) -> None:
    """Fail the running test if its lane does not allow a run of that many processes."""
    if processes > allowed:
        pytest.fail(f"a run of {processes} process{'es' * (processes > 1)} in a lane that allows {allowed}; use the "
                    + (f"fixture {SLOW}" if allowed else f"fixtures of conftest.py that take {TRAINING}"))


class CheckedPopen(subprocess.Popen):
    """`subprocess.Popen`, which fails the running test if it starts a run that the lane does not allow."""

    def __init__(self, args, *more, **options) -> None:
        words = shlex.split(args) if isinstance(args, str) else [os.fsdecode(word) for word in args]
        if trains(words):
            check(processes_of(words))
        super().__init__(args, *more, **options)


@contextlib.contextmanager
def guarded(item: pytest.Item) -> Iterator[None]:
    """Fail this test if it starts more processes that train than its marks allow."""
    names, start_ranks = {mark.name for mark in item.iter_markers()}, warm_ranks.start_ranks

    def checked_ranks(script: str, words: list[str], count: int, *more):
        check(count)
        return start_ranks(script, words, count, *more)

    with pytest.MonkeyPatch.context() as patch:
        limit = math.inf if "slow" in names else MANY - 1 if "training" in names else 0
        patch.setattr("tests.shared.lanes.allowed", limit)
        patch.setattr(subprocess, "Popen", CheckedPopen)
        patch.setattr(warm_ranks, "start_ranks", checked_ranks)
        yield
