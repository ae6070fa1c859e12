"""What the stages of a pipeline issue in one step, in the order of its schedule."""

from collections.abc import Sequence

from measurement.pipelines.idle_replay import Action, Actions, needs
from prediction.costs import FP32, Batch, Costs, Layer
from prediction.events import Issued, Work


def pipeline(pieces: Sequence[Sequence[Layer]], stage_of: Sequence[int], actions: Actions, batch: Batch, costs: Costs,
             replicas: int, message: float, tied: float = 0.0) -> list[Work]:
    """A schedule of passes of pieces, with messages on the edges between stages; then gradients and the update.

    Replicas of a stage are neighbours, as DeepSpeed numbers devices, and so stages lie far apart.

    Args:
        pieces: the layers of each piece of the model, in order.
        stage_of: the stage of each piece.
        message: bytes of the activation between two pieces, for one micro-batch. ("send/receive" between 2 devices)
        tied: bytes of a weight that the first and the last piece share.

    Raises:
        ValueError: the stages wait for each other.
    """
    issued, stages = Issued(costs.exchange_s), len(actions)
    devices = stages * replicas
    _passes(issued, pieces, stage_of, actions, batch, costs, message, devices)
    for stage in range(stages):
        own = [work for work in issued.work if work.streams[0][0] == stage]
        parameters = sum(layer.count for piece, layers in enumerate(pieces) if stage_of[piece] == stage
                         for layer in layers)
        ends = {stage_of[0], stage_of[-1]}
        if tied and stage in ends and len(ends) == 2:
            seconds, moved = costs.exchanged("all-reduce", tied, 2, span=devices)
            own.append(issued.communicate("all-reduce", seconds, *own, devices=(stage,), size=moved))
        seconds, moved = costs.exchanged("all-reduce", FP32 * parameters, replicas)
        own.append(issued.communicate("all-reduce", seconds, *own, devices=(stage,), size=moved))
        issued.compute("optimizer", costs.update_s(parameters), *own, device=stage)
    return issued.work


def _passes(issued: Issued, pieces: Sequence[Sequence[Layer]], stage_of: Sequence[int], actions: Actions, batch: Batch,
            costs: Costs, message: float, devices: int) -> None:
    """Issue every pass as soon as what it needs has been issued."""
    done: dict[Action, Work] = {}
    waiting = [list(queue) for queue in actions]
    splits = any(kind == "weight" for queue in actions for kind, _, _ in queue)
    names = {"forward": "forward", "backward": "inputs" if splits else "backward", "weight": "weights"}
    while any(waiting):
        before = len(done)
        for stage, queue in enumerate(waiting):
            while queue and all(needed in done for needed in needs(queue[0], len(pieces) - 1)):
                kind, piece, micro_batch = action = queue.pop(0)
                needed = [done[each] for each in needs(action, len(pieces) - 1)]
                seconds = sum(costs.pass_s(layer, names[kind], batch) for layer in pieces[piece])
                work = issued.compute(kind, seconds, *needed, device=stage, number=micro_batch)
                to = piece + {"forward": 1, "backward": -1}.get(kind, 0)
                if 0 <= to < len(pieces) and stage_of[to] != stage:
                    # It is received where it is needed; only the sender's stream is held here.
                    sent, moved = costs.exchanged("send/receive", message, 2, span=devices)
                    work = issued.communicate("send/receive", sent, work, devices=(stage,), size=moved)
                done[action] = work
        if len(done) == before:
            raise ValueError("the stages of this schedule wait for each other")
