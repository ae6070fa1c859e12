"""Records one step of a pipeline: what this rank did when."""

import contextlib
import time
from collections import Counter
from collections.abc import Callable, Iterator
from typing import Any

import torch

from measurement.pipelines.spans import Span


class StepTimeline:
    """Records what one rank does in one step. On a GPU by events, read when the step is over.

    All ranks should create theirs at the same moment, while their devices are idle.
    """

    def __init__(self, replica: int, stage: int, device: torch.device) -> None:
        self.replica, self.stage, self.on_gpu = replica, stage, device.type == "cuda"
        self.began = time.time()
        self.first = self._moment()
        self.marks: list[tuple] = []
        self.counts: Counter[str] = Counter()

    @contextlib.contextmanager
    def span(self, kind: str, number: int | None = None, piece: int = 0) -> Iterator[None]:
        """Record this context on the timeline; without a number it gets the next one of its kind."""
        start = self._moment()
        yield
        number = self.counts[kind] if number is None else number
        self.marks.append((kind, number, start, self._moment(), piece))
        self.counts[kind] += 1

    def timed(self, kind: str, function: Callable) -> Callable:
        """A wrapper of `function` that records its calls on the timeline."""
        def call(*args, **kwargs):
            with self.span(kind):
                return function(*args, **kwargs)
        return call

    def spans(self) -> list[Span]:
        """The recorded spans; waits for the device."""
        if self.on_gpu:
            torch.cuda.synchronize()
        return [Span(self.replica, self.stage, kind, number, self._seconds(start), self._seconds(end), piece)
                for kind, number, start, end, piece in self.marks]

    def _moment(self) -> Any:
        """Now: seconds since the epoch on a CPU, an event on a GPU."""
        if not self.on_gpu:
            return time.time()
        event = torch.cuda.Event(enable_timing=True)
        event.record()
        return event

    def _seconds(self, moment: Any) -> float:
        return self.began + self.first.elapsed_time(moment) / 1000 if self.on_gpu else moment


def on_timeline(timeline: StepTimeline | None, kind: str) -> contextlib.AbstractContextManager:
    """`timeline.span(kind)` if there is a timeline."""
    return timeline.span(kind) if timeline else contextlib.nullcontext()
