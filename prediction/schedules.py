"""The order in which the stages of a pipeline compute, for each schedule that the scripts offer.

"backward" makes the inputs' gradients, and the weights' as well unless the schedule has passes "weight" for them. A
test compares each order with PyTorch's own.
"""

from collections.abc import Callable

from measurement.pipelines.idle_replay import Action, Actions
from workload.pipelines.dealing import pieces_of


def gpipe(stages: int, micro_batches: int) -> Actions:
    """All forward passes, then all backward passes."""
    return [[Action("forward", stage, each) for each in range(micro_batches)]
            + [Action("backward", stage, each) for each in range(micro_batches)] for stage in range(stages)]


def one_forward_one_backward(stages: int, micro_batches: int) -> Actions:
    """1F1B: a stage goes ahead by as many forward passes as there are stages behind it, then alternates."""
    return [_alternate([Action("forward", stage, each) for each in range(micro_batches)],
                       [Action("backward", stage, each) for each in range(micro_batches)],
                       ahead=stages - stage - 1) for stage in range(stages)]


def interleaved(stages: int, micro_batches: int) -> Actions:
    """1F1B with two pieces a stage: a round of micro-batches goes through the first, then through the second."""
    return [_alternate(*_rounds(stage, stages, micro_batches),
                       ahead=_round(stages, micro_batches) + 2 * (stages - stage - 1)) for stage in range(stages)]


def zero_bubble(stages: int, micro_batches: int) -> Actions:
    """Interleaved, with split backward passes; a stage's weights follow as many passes late as its number."""
    return [_alternate(*_rounds(stage, stages, micro_batches), ahead=_round(stages, micro_batches) + stages - stage - 1,
                       weights_late=stage) for stage in range(stages)]


def zbv(stages: int, micro_batches: int) -> Actions:
    """There and back again: stage i holds pieces i and 2p - 1 - i (Qi et al., Zero Bubble, 2024, section 6).

    PyTorch plans at least 2p - 1 micro-batches, and leaves out those that are not there.
    """
    planned = max(2 * stages - 1, micro_batches)
    queues = []
    for stage in range(stages):
        first, second = pieces_of("zbv", stage, stages)
        queue: list[Action] = []
        count: dict[tuple[str, int], int] = {}

        def add(*passes: tuple[str, int], queue: list[Action] = queue, count: dict = count) -> None:
            for kind, piece in passes:
                number = count.get((kind, piece), 0)
                queue.append(Action(kind, piece, number))
                count[kind, piece] = number + 1

        ahead, back = ("forward", first), ("forward", second)
        whole = {piece: (("backward", piece), ("weight", piece)) for piece in (first, second)}
        add(*[ahead] * (2 * (stages - stage) - 1), *[back, ahead] * stage)
        for _ in range(stages - stage):
            add(back, *whole[second])
        while count.get(back, 0) < count[ahead] or count[ahead] < planned:
            add(*[ahead] * (count[ahead] < planned), *whole[first], back, *whole[second])
        add(*[("backward", first), ("backward", second)] * stage)
        for _ in range(stages - stage):
            add(*whole[first])
        for piece in (second, first):
            add(*[("weight", piece)] * (count["backward", piece] - count["weight", piece]))
        queues.append([action for action in queue if action.micro_batch < micro_batches])
    return queues


def _round(stages: int, micro_batches: int) -> int:
    """Micro-batches that go through one piece of a stage before its next piece."""
    return micro_batches // max(micro_batches // stages, 1)


def _rounds(stage: int, stages: int, micro_batches: int) -> tuple[list[Action], list[Action]]:
    """A stage's forward and backward passes, round by round; backward the last piece comes first."""
    held, each = pieces_of("interleaved", stage, stages), _round(stages, micro_batches)

    def passes(kind: str, order: list[int]) -> list[Action]:
        return [Action(kind, piece, number) for first in range(0, micro_batches, each) for piece in order
                for number in range(first, first + each)]

    return passes("forward", held), passes("backward", held[::-1])


def _alternate(forward: list[Action], backward: list[Action], ahead: int,
               weights_late: int | None = None) -> list[Action]:
    """So many forward passes first, then one forward, one backward, then what is left.

    Args:
        weights_late: backward passes after which the first of the weights' passes comes; None: they are not split.
    """
    ahead = min(ahead, len(forward))
    weights = [Action("weight", piece, number) for _, piece, number in backward]
    queue = forward[:ahead]
    for place, action in enumerate(backward):
        queue += [*forward[ahead + place:ahead + place + 1], action]
        if weights_late is not None and place >= weights_late:
            queue.append(weights[place - weights_late])
    return queue + (weights[max(len(weights) - weights_late, 0):] if weights_late else [])


ORDERS: dict[str, Callable[[int, int], Actions]] = {
    "gpipe": gpipe, "1f1b": one_forward_one_backward, "interleaved": interleaved, "zero_bubble": zero_bubble,
    "zbv": zbv}
