"""Two clocks: one for throughput, over synchronised wall time; one for single steps, which makes no device wait."""

import time
from dataclasses import dataclass

import numpy as np
import torch
import torch.distributed as dist

from workload.models.flops import TransformerShape


def synchronize(device: torch.device) -> None:
    """Wait until every device of the run has finished its work."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    dist.barrier()


@dataclass(frozen=True)
class Work:
    """Work done in one or more steps, summed over all devices (data_s: this rank only)."""

    steps: int = 0
    samples: int = 0
    tokens: int = 0  # without padding
    padded_tokens: int = 0  # with padding
    model_flops: float = 0.0  # without padding
    hardware_flops: float = 0.0  # with padding, and with what is computed again
    data_s: float = 0.0  # seconds spent waiting for batches

    def __add__(self, other: "Work") -> "Work":
        return Work(*(mine + others for mine, others in zip(vars(self).values(), vars(other).values(), strict=True)))


def work_of_step(lengths: np.ndarray, padded_length: int, shape: TransformerShape | None, data_s: float,
                 recomputed: bool = False) -> Work:
    """The work of one step.

    Args:
        lengths: tokens of each sample, without padding. (samples,)
        padded_length: tokens that each sample is padded to.
        shape: the model's; None if its FLOPs are unknown, which then count as 0.
        data_s: seconds that this rank waited for the batch.
        recomputed: whether the backward pass computes activations again.
    """
    samples = len(lengths)
    model_flops = shape.training_flops(lengths).sum().item() if shape else 0.0
    hardware_flops = shape.training_flops(np.array(padded_length), recomputed).item() if shape else 0.0
    return Work(steps=1, samples=samples, tokens=lengths.sum().item(), padded_tokens=samples * padded_length,
                model_flops=model_flops, hardware_flops=samples * hardware_flops, data_s=data_s)


class ThroughputClock:
    """Counts work over the wall time of training, without the first steps and without evaluation.

    Devices are synchronised when the clock starts and stops, and not in between.
    """

    def __init__(self, device: torch.device, steps_to_skip: int) -> None:
        self.device, self.steps_to_skip = device, steps_to_skip
        self.opened_at: float | None = None
        self.seconds = 0.0
        self.work = Work()

    def open(self) -> None:
        """Start or resume. While there are steps to skip it synchronizes the devices, and remains closed."""
        synchronize(self.device)
        if self.steps_to_skip == 0:
            self.opened_at = time.perf_counter()

    def count(self, work: Work) -> None:
        """Count a step that has been issued to the devices."""
        if self.opened_at is not None:
            self.work += work
        elif self.steps_to_skip:
            self.steps_to_skip -= 1
            if self.steps_to_skip == 0:
                self.open()

    def close(self) -> None:
        """Pause or stop."""
        if self.opened_at is not None:
            synchronize(self.device)
            self.seconds += time.perf_counter() - self.opened_at
            self.opened_at = None

    @property
    def is_open(self) -> bool:
        return self.opened_at is not None


class StepClock:
    """Tells when each step ended. On a GPU by events, read after they have passed, so that the host never waits."""

    def __init__(self, device: torch.device) -> None:
        self.on_gpu = device.type == "cuda"
        self.restart()

    def restart(self) -> None:
        """Begin a stretch of steps; a GPU must be idle at this moment."""
        self.began = time.time()
        self.last = Mark(None, self.on_gpu)
        self.last.moment = self.began

    def mark(self) -> "Mark":
        """Mark the end of all work issued so far."""
        self.last = Mark(self.last, self.on_gpu)
        return self.last


class Mark:
    """A moment on a `StepClock`.

    Args:
        previous: the mark before. CUDA gives the time between two events as a float32, which after an hour resolves
            only quarters of a millisecond; so time is measured from mark to mark.
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
        """The moment in seconds since the epoch; the mark must have passed."""
        if self.moment is None:
            assert self.previous and self.previous.event and self.event  # only a clock's first mark is given its moment
            self.moment = self.previous.seconds() + self.previous.event.elapsed_time(self.event) / 1000
            self.previous = None  # otherwise every mark of the run would stay in memory
        return self.moment
