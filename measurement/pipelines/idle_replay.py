"""How much of the devices' time a pipeline's schedule leaves idle, by replaying it, where there is no formula."""

from collections import Counter
from typing import NamedTuple

from measurement.pipelines.spans import Span, seconds_by_kind


class Action(NamedTuple):
    """One entry of a device's schedule: a pass of one micro-batch through one piece of the model."""

    kind: str  # "forward"; "backward", whole or the inputs' gradients only; "weight", the weights' gradients
    piece: int  # index in the order of the forward pass
    micro_batch: int


Actions = list[list[Action]]  # for each device, its actions in order


def replayed_bubble_pct(actions: Actions, seconds: dict[str, float]) -> float:
    """Share of the devices' time that a schedule leaves idle, in percent, if sending takes no time.

    Args:
        actions: each device's actions in order.
        seconds: duration of an action by its kind; the same for all pieces.

    Raises:
        ValueError: the devices would deadlock.
    """
    ends = replay(actions, seconds)
    work = sum(seconds[action.kind] for action in ends)
    return 100 * (1 - work / (len(actions) * max(ends.values())))


def replay(actions: Actions, seconds: dict[str, float]) -> dict[Action, float]:
    """When each action ends, from 0: it starts as soon as its device is free and its inputs are ready.

    Raises:
        ValueError: the devices would deadlock.
    """
    last_piece = max(action.piece for queue in actions for action in queue)
    ends: dict[Action, float] = {}
    free_at, done = [0.0] * len(actions), [0] * len(actions)
    while len(ends) < sum(map(len, actions)):
        before = len(ends)
        for device, queue in enumerate(actions):
            for action in queue[done[device]:]:
                needed = needs(action, last_piece)
                if any(need not in ends for need in needed):
                    break
                start = max([free_at[device], *(ends[need] for need in needed)])
                ends[action] = free_at[device] = start + seconds[action.kind]
                done[device] += 1
        if len(ends) == before:
            raise ValueError("the devices of this schedule wait for each other")
    return ends


def mean_seconds(actions: Actions, steps: list[list[Span]]) -> dict[str, float]:
    """Mean seconds of one action of each kind, over steps, replicas, pieces and micro-batches."""
    spans = [span for step in steps for span in step]
    replicas = len({span.replica for span in spans})
    seconds = seconds_by_kind(spans)
    counts = Counter(action.kind for queue in actions for action in queue)
    return {kind: seconds[kind] / (count * replicas * len(steps)) for kind, count in counts.items()}


def needs(action: Action, last_piece: int) -> list[Action]:
    """The actions whose results an action needs."""
    kind, piece, micro_batch = action
    if kind == "forward":
        return [Action("forward", piece - 1, micro_batch)] if piece else []
    if kind == "weight":
        return [Action("backward", piece, micro_batch)]
    behind = [Action("backward", piece + 1, micro_batch)] if piece < last_piece else []
    return [Action("forward", piece, micro_batch), *behind]
