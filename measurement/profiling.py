"""`--profile_steps`: runs torch.profiler over some untimed steps, and keeps every rank's trace."""

import contextlib
import os
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import torch
from torch.profiler import ProfilerActivity, profile, supported_activities

from measurement.clock import synchronize
from measurement.communication import communication, read_trace
from workload.launch.processes import Processes


class StepProfiler:
    """Profiles the steps `first` to `last`; the profiler warms up on the step before.

    Args:
        folder: for this rank's trace.
    """

    def __init__(self, first: int, last: int, processes: Processes, folder: Path) -> None:
        self.first, self.last, self.processes, self.folder = first, last, processes, folder
        self.is_tracing = self.is_paused = False
        self.cpu_seconds = 0.0
        self.costs: dict[str, float | None] = {}  # per step, in the columns of ranks.csv; empty until `save`
        on_gpu = processes.device.type == "cuda"
        self.activities = [ProfilerActivity.CPU]
        if on_gpu and ProfilerActivity.CUDA in supported_activities():
            self.activities.append(ProfilerActivity.CUDA)
        # Whether the trace shows the device's work: a PyTorch built without CUPTI traces the host only.
        self.sees_device = not on_gpu or ProfilerActivity.CUDA in self.activities

    def begin_step(self, step: int) -> None:
        if step == self.first - 1:
            self.profile = profile(activities=self.activities, record_shapes=True)
            with _quiet():
                self.profile.prepare_trace()
        elif step == self.first:
            synchronize(self.processes.device)
            with _quiet():
                self.profile.start_trace()
            self._begin_stretch()

    def end_step(self, step: int) -> bool:
        """Whether this was the last profiled step; `save` must then be called."""
        if step == self.last:
            self._end_stretch()
            with _quiet():
                self.profile.stop_trace()
        return step == self.last

    def pause(self) -> None:
        """Exclude what follows, such as an evaluation."""
        if self.is_tracing:
            self._end_stretch()
            self.profile.toggle_collection_dynamic(False, self.activities)
            self.is_paused = True

    def resume(self) -> None:
        """Training resumes."""
        if self.is_paused:
            self.profile.toggle_collection_dynamic(True, self.activities)
            self._begin_stretch()
            self.is_paused = False

    def _begin_stretch(self) -> None:
        self.is_tracing, self.cpu_began = True, time.process_time()

    def _end_stretch(self) -> None:
        if self.processes.device.type == "cuda":
            torch.cuda.synchronize(self.processes.device)
        self.cpu_seconds += time.process_time() - self.cpu_began
        self.is_tracing = False

    def save(self) -> None:
        """Write the trace, and read the steps' costs from it."""
        path = self.folder / f"rank{self.processes.rank}.json.gz"
        path.parent.mkdir(parents=True, exist_ok=True)
        self.profile.export_chrome_trace(str(path))
        del self.profile
        steps = self.last - self.first + 1
        self.costs = {"host_cpu_s_per_step": self.cpu_seconds / steps}
        if self.sees_device:
            self.costs |= communication(read_trace(path), steps)


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Hide the profiler's messages, which C++ writes to file descriptor 2. Errors are raised all the same."""
    sys.stderr.flush()
    kept, nowhere = os.dup(2), os.open(os.devnull, os.O_WRONLY)
    os.dup2(nowhere, 2)
    try:
        yield
    finally:
        sys.stderr.flush()
        os.dup2(kept, 2)
        os.close(kept)
        os.close(nowhere)
