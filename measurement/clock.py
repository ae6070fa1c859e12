"""Two clocks: one for throughput, over synchronised wall time; one for single steps, which makes no device wait."""

import time

import torch
import torch.distributed as dist


def synchronize(device: torch.device) -> None:
    """Wait until every device of the run has done its work."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    dist.barrier()


class ThroughputClock:
    """Counts samples and tokens over the wall time of training: not the warm-up, not evaluation.

    Devices are synchronised where the window opens and closes, not in between.
    """

    def __init__(self, device: torch.device, warmup_steps: int) -> None:
        self.device, self.steps_to_skip = device, warmup_steps
        self.opened_at: float | None = None
        self.seconds = 0.0
        self.samples = self.tokens = 0

    def open(self) -> None:
        """Training begins or goes on; does nothing before the warm-up is over."""
        if self.steps_to_skip == 0:
            synchronize(self.device)
            self.opened_at = time.perf_counter()

    def count(self, samples: int, tokens: int) -> None:
        """A step has been issued."""
        if self.opened_at is not None:
            self.samples += samples
            self.tokens += tokens
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
        if self.on_gpu:
            self.first = torch.cuda.Event(enable_timing=True)
            self.first.record()

    def mark(self) -> "Mark":
        """The end of a step."""
        return Mark(self)


class Mark:
    """A moment on a `StepClock`."""

    def __init__(self, clock: StepClock) -> None:
        self.began = self.time = clock.began
        self.event = None
        if clock.on_gpu:
            self.first = clock.first
            self.event = torch.cuda.Event(enable_timing=True)
            self.event.record()
        else:
            self.time = time.time()

    def has_passed(self) -> bool:
        return self.event is None or self.event.query()

    def seconds(self) -> float:
        """Since the epoch."""
        return self.time if self.event is None else self.began + self.first.elapsed_time(self.event) / 1000
