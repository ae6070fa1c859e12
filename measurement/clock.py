"""Two clocks: one for throughput, over synchronised wall time; one for single steps, which makes no device wait."""

import time
from dataclasses import dataclass

import torch
import torch.distributed as dist


def synchronize(device: torch.device) -> None:
    """Wait until every device of the run has done its work."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    dist.barrier()


@dataclass(frozen=True)
class Work:
    """What one step, or several, worked through: over all devices, but for `data_s`."""

    steps: int = 0
    samples: int = 0
    tokens: int = 0  # real ones
    padded_tokens: int = 0  # with padding
    model_flops: float = 0.0  # for the real tokens
    hardware_flops: float = 0.0  # with padding
    data_s: float = 0.0  # seconds that this rank waited for its batches

    def __add__(self, other: "Work") -> "Work":
        return Work(*(mine + others for mine, others in zip(vars(self).values(), vars(other).values(), strict=True)))


class ThroughputClock:
    """Counts work over the wall time of training: not the first steps, not evaluation.

    Devices are synchronised where the window opens and closes, not in between.
    """

    def __init__(self, device: torch.device, steps_to_skip: int) -> None:
        self.device, self.steps_to_skip = device, steps_to_skip
        self.opened_at: float | None = None
        self.seconds = 0.0
        self.work = Work()

    def open(self) -> None:
        """Training begins or goes on; does nothing while there are steps to skip."""
        if self.steps_to_skip == 0:
            synchronize(self.device)
            self.opened_at = time.perf_counter()

    def count(self, work: Work) -> None:
        """A step has been issued."""
        if self.opened_at is not None:
            self.work += work
        elif self.steps_to_skip:
            self.steps_to_skip -= 1
            self.open()

    def close(self) -> None:
        """Training pauses or ends."""
        if self.opened_at is not None:
            synchronize(self.device)
            self.seconds += time.perf_counter() - self.opened_at
            self.opened_at = None

    @property
    def is_open(self) -> bool:
        return self.opened_at is not None


class StepClock:
    """When each step ended. On a GPU by events, read after they have passed, so that the host never waits."""

    def __init__(self, device: torch.device) -> None:
        self.on_gpu = device.type == "cuda"
        self.restart()

    def restart(self) -> None:
        """Begin a stretch of steps; on a GPU nothing may be under way."""
        self.began = time.time()
        self.last = Mark(None, self.on_gpu)
        self.last.moment = self.began

    def mark(self) -> "Mark":
        """The end of all work that was issued so far."""
        self.last = Mark(self.last, self.on_gpu)
        return self.last


class Mark:
    """A moment on a `StepClock`.

    Args:
        previous: the mark before. CUDA gives the time between two events as a float32, which after an hour is in
            quarters of a millisecond; so it is measured from mark to mark.
    """

    def __init__(self, previous: "Mark | None", on_gpu: bool) -> None:
        self.previous, self.event = previous, None
        self.moment: float | None = None
        if on_gpu:
            self.event = torch.cuda.Event(enable_timing=True)
            self.event.record()
        else:
            self.moment = time.time()

    def has_passed(self) -> bool:
        return self.event is None or self.event.query()

    def seconds(self) -> float:
        """Since the epoch."""
        if self.moment is None:
            self.moment = self.previous.seconds() + self.previous.event.elapsed_time(self.event) / 1000
            self.previous = None  # or every mark of the run would be kept
        return self.moment
