"""A small discrete-event model of devices: streams of compute and communication, and what waits for what.

Work is issued in order. A piece of it begins as soon as each of its streams is free and all that it waits for has
ended, as on a GPU. While a device computes and communicates at the same time, both go slower.
"""

from dataclasses import dataclass, field
from math import inf

COMPUTE, COMMUNICATION = "compute", "communication"
START = "start"  # what starting an exchange takes of the compute stream
Stream = tuple[int, str]  # device, COMPUTE or COMMUNICATION


@dataclass(eq=False)
class Work:
    """One piece of work, on one stream of each device that takes part.

    Args:
        kind: such as "forward" or "all-reduce".
        seconds: if nothing slows it down.
        after: what must have ended before it begins.
        bytes: that it exchanges; 0 for computation.
        number: of its micro-batch, where it is drawn.
    """

    kind: str
    seconds: float
    streams: tuple[Stream, ...]
    after: tuple["Work", ...] = ()
    bytes: float = 0.0
    number: int = 0
    start: float = field(default=-1.0, init=False)
    end: float = field(default=inf, init=False)


class Issued:
    """The work of one step, in the order in which it is issued.

    Args:
        exchange_s: by which each exchange holds up both of its device's streams: to start it, and to wake who waits.
    """

    def __init__(self, exchange_s: float = 0.0) -> None:
        self.work: list[Work] = []
        self.exchange_s = exchange_s

    def compute(self, kind: str, seconds: float, *after: Work, device: int = 0, number: int = 0) -> Work:
        """Issue a computation on one device."""
        return self._add(Work(kind, seconds, ((device, COMPUTE),), after, number=number))

    def communicate(self, kind: str, seconds: float, *after: Work, devices: tuple[int, ...] = (0,),
                    size: float = 0.0) -> Work:
        """Issue an exchange of `size` bytes among devices; one that takes no time is none."""
        if seconds and self.exchange_s:
            seconds += self.exchange_s
            for device in devices:
                self.compute(START, self.exchange_s, device=device)
        return self._add(Work(kind, seconds, tuple((device, COMMUNICATION) for device in devices), after, size))

    def _add(self, work: Work) -> Work:
        self.work.append(work)
        return work


def simulate(work: list[Work], slowdown: float = 1.0, crowding: float = 1.0) -> float:
    """Set `start` and `end` of each piece of work, in seconds; returns when the last ends.

    Args:
        work: in the order of issue, which each stream keeps.
        slowdown: gamma, how many times as long compute and communication take while a device does both (>= 1): then
            ov(X, C) = max(X, C) + (gamma - 1) min(X, C) for work X and C that overlaps as far as it can.
        crowding: devices for each processor core where they are processes that share cores, else 1. The seconds of
            computations hold while all devices compute; while some wait, the others have more of the cores.

    Raises:
        ValueError: work waits for itself, by way of the order of issue.
    """
    queues: dict[Stream, list[Work]] = {}
    for each in work:
        for stream in each.streams:
            queues.setdefault(stream, []).append(each)
    for queue in queues.values():
        queue.reverse()  # the next is the last
    devices = len({device for device, _ in queues})
    left = {id(each): each.seconds for each in work}
    running: list[Work] = []
    busy: set[Stream] = set()
    now, ended = 0.0, 0
    while ended < len(work):
        for stream in queues:
            _begin(stream, queues, running, busy, now)
        if not running:
            raise ValueError("the work of this step waits for itself")
        computing = sum(kind == COMPUTE for _, kind in busy)
        speed = crowding / max(crowding * computing / devices, 1.0)
        rates = [(speed if each.streams[0][1] == COMPUTE else 1.0) / (slowdown if _overlaps(each, busy) else 1.0)
                 for each in running]
        passed = min(left[id(each)] / rate for each, rate in zip(running, rates, strict=True))
        now += passed
        for each, rate in zip(list(running), rates, strict=True):
            left[id(each)] -= passed * rate
            if left[id(each)] <= 1e-12 * max(each.seconds, now):
                each.end, ended = now, ended + 1
                running.remove(each)
                busy.difference_update(each.streams)
    return now


def _begin(stream: Stream, queues: dict[Stream, list[Work]], running: list[Work], busy: set[Stream],
           now: float) -> None:
    """Begin the next work of a stream, if everything that it needs is there."""
    queue = queues[stream]
    if not queue or stream in busy:
        return
    each = queue[-1]
    is_next = all(queues[other] and queues[other][-1] is each and other not in busy for other in each.streams)
    if is_next and all(before.end <= now for before in each.after):
        for other in each.streams:
            queues[other].pop()
        each.start = now
        running.append(each)
        busy.update(each.streams)


def _overlaps(work: Work, busy: set[Stream]) -> bool:
    """Whether one of its devices computes and communicates now."""
    return any((device, COMPUTE if kind == COMMUNICATION else COMMUNICATION) in busy for device, kind in work.streams)
