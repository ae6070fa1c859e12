"""What each strategy issues in one step, and in which order.

Each recipe takes the ordered layers, the batch of one replica, the costs, and its number of devices; it returns the
work of one device, or of all stages of a pipeline. `events.simulate` says when it happens. Where devices do the same,
one stands for all of them.
"""

from collections.abc import Sequence

from prediction.costs import FP32, Batch, Costs, Layer
from prediction.events import Issued, Work

MIB = 2**20
FIRST_BUCKET, BUCKET = MIB, 25 * MIB  # DDP's, in bytes
Actions = Sequence[Sequence[tuple[str, int, int]]]  # for each stage: (pass, piece, micro-batch) in order


class Step(Issued):
    """The work of one step, with the costs of one strategy."""

    def __init__(self, layers: Sequence[Layer], batch: Batch, costs: Costs, devices: int) -> None:
        super().__init__()
        self.layers, self.batch, self.costs, self.devices = layers, batch, costs, devices

    def run(self, layer: Layer, kind: str, *after: Work) -> Work:
        """A pass of one micro-batch through a layer."""
        return self.compute(kind, self.costs.pass_s(layer, kind, self.batch), *after)

    def exchange(self, operation: str, size: float, *after: Work) -> Work:
        """A collective of a tensor of `size` bytes among all devices."""
        seconds, moved = self.costs.exchanged(operation, size, self.devices)
        return self.communicate(operation, seconds, *after, size=moved)

    def update(self, parameters: float, *after: Work) -> Work:
        return self.compute("optimizer", self.costs.update_s(parameters), *after)

    @property
    def parameters(self) -> int:
        return sum(sum(layer.parameters) for layer in self.layers)


def ddp(layers: Sequence[Layer], batch: Batch, costs: Costs, devices: int) -> list[Work]:
    """Buckets of gradients are all-reduced as they fill up in the last backward pass.

    They are filled in the order of the backward pass, by 25 MiB each and the first by 1 MiB (PyTorch's defaults). So
    the word embedding, whose gradient comes last, is never hidden.
    """
    step = Step(layers, batch, costs, devices)
    reductions: list[Work] = []
    ready: list[Work] = []
    size = 0
    for micro_batch in range(batch.micro_batches):
        for layer in layers:
            step.run(layer, "forward")
        for layer in reversed(layers):
            ready = [step.run(layer, "backward")]
            for parameters in reversed(layer.parameters) if micro_batch == batch.micro_batches - 1 else ():
                size += FP32 * parameters
                if size >= (BUCKET if reductions else FIRST_BUCKET):
                    reductions.append(step.exchange("all-reduce", size, *ready))
                    size = 0
    if size:
        reductions.append(step.exchange("all-reduce", size, *ready))
    step.update(step.parameters, *reductions)
    return step.work


def zero(layers: Sequence[Layer], batch: Batch, costs: Costs, devices: int, stage: int) -> list[Work]:
    """DeepSpeed's stages 1 to 3, as `ds_config.json` sets them.

    Stage 1 reduces gradients with the last micro-batch, 2 and 3 with every one. 1 and 2 all-reduce them, by DeepSpeed's
    default (`use_multi_rank_bucket_allreduce`), and gather parameters after the update; 3 gathers each layer before its
    forward pass, ahead of time, and keeps it for the backward pass.
    """
    step = Step(layers, batch, costs, devices)
    reduce = "all-reduce" if stage < 3 else "reduce-scatter"
    exchanges: list[Work] = []
    for micro_batch in range(batch.micro_batches):
        for layer in layers:
            gathered = [step.exchange("all-gather", layer.bytes)] if stage == 3 else []
            step.run(layer, "forward", *gathered)
        for layer in reversed(layers):
            ready = step.run(layer, "backward")
            if stage > 1 or micro_batch == batch.micro_batches - 1:
                exchanges.append(step.exchange(reduce, layer.bytes, ready))
    update = step.update(step.parameters / devices, *exchanges)
    if stage < 3:
        step.exchange("all-gather", FP32 * step.parameters, update)
    return step.work


def fsdp(layers: Sequence[Layer], batch: Batch, costs: Costs, devices: int, reshards: bool = True) -> list[Work]:
    """Layers are gathered one ahead, and with `reshards` again for the backward pass; gradients are scattered once.

    The embedding and the head belong to the model's own group, which is gathered first, once for both passes.
    """
    step = Step(layers, batch, costs, devices)
    whole = [layer for layer in layers if layer.kind == "layer"]
    rest = sum(layer.bytes for layer in layers if layer.kind != "layer")
    scattered: list[Work] = []
    computed: list[Work] = []  # one layer is gathered while the one before it computes
    for micro_batch in range(batch.micro_batches):
        is_first, is_last = micro_batch == 0, micro_batch == batch.micro_batches - 1
        root = [step.exchange("all-gather", rest)] if reshards or is_first else []
        computed = []
        for layer in layers:
            gathered = root
            if layer.kind == "layer" and (reshards or is_first):
                gathered = [*root, step.exchange("all-gather", layer.bytes, *computed[-2:-1])]
            computed.append(step.run(layer, "forward", *gathered))
        for layer in reversed(layers):
            gathered = []
            if layer in whole and reshards:
                gathered = [step.exchange("all-gather", layer.bytes, *computed[-2:-1])]
            computed.append(step.run(layer, "backward", *gathered))
            if layer.kind == "layer" and is_last:
                scattered.append(step.exchange("reduce-scatter", layer.bytes, computed[-1]))
    scattered.append(step.exchange("reduce-scatter", rest, *computed[-1:]))
    step.update(step.parameters / devices, *scattered)
    return step.work


def tensor_parallel(layers: Sequence[Layer], batch: Batch, costs: Costs, devices: int, hidden: int,
                    value_bytes: int) -> list[Work]:
    """Two all-reduces of a layer's activations in each pass, which nothing hides: the next product needs them."""
    step = Step(layers, batch, costs, devices)
    last: list[Work] = []
    for _ in range(batch.micro_batches):
        for kind, order in (("forward", layers), ("backward", layers[::-1])):
            for layer in order:
                last = [step.run(layer, kind, *last)]
                if layer.kind == "layer":
                    size = 2 * batch.tokens * hidden * value_bytes
                    last = [step.exchange("all-reduce", size, *last)]
    shared = sum(sum(layer.parameters) for layer in layers if layer.kind == "layer")
    step.update(step.parameters - shared + shared / devices, *last)
    return step.work


def pipeline(pieces: Sequence[Sequence[Layer]], stage_of: Sequence[int], actions: Actions, batch: Batch, costs: Costs,
             replicas: int, message: float, tied: float = 0.0) -> list[Work]:
    """A schedule of passes of pieces, with messages on the edges between stages.

    Args:
        pieces: the layers of each piece of the model, in order.
        stage_of: the stage of each piece.
        actions: each stage's passes in order; "backward" is whole unless the schedule has passes "weight", too.
        message: bytes of the activation between two pieces, for one micro-batch. ("send/receive" between 2 devices)
        tied: bytes of a weight that the first and the last piece share.
    """
    issued, done, waiting = Issued(), {}, [list(queue) for queue in actions]
    splits = any(kind == "weight" for queue in actions for kind, _, _ in queue)
    names = {"forward": "forward", "backward": "inputs" if splits else "backward", "weight": "weights"}

    def inputs(kind: str, piece: int, micro_batch: int) -> list[tuple[str, int, int]]:
        if kind == "forward":
            return [(kind, piece - 1, micro_batch)] if piece else []
        if kind == "weight":
            return [("backward", piece, micro_batch)]
        behind = [(kind, piece + 1, micro_batch)] if piece < len(pieces) - 1 else []
        return [("forward", piece, micro_batch), *behind]

    while any(waiting):
        before = len(done)
        for stage, queue in enumerate(waiting):
            while queue and all(needed in done for needed in inputs(*queue[0])):
                kind, piece, micro_batch = queue.pop(0)
                needed = [done[each] for each in inputs(kind, piece, micro_batch)]
                seconds = sum(costs.pass_s(layer, names[kind], batch) for layer in pieces[piece])
                work = issued.compute(kind, seconds, *needed, device=stage)
                to = piece + {"forward": 1, "backward": -1}.get(kind, 0)
                if 0 <= to < len(pieces) and stage_of[to] != stage:
                    # It is received where it is needed; only the sender's stream is held here.
                    sent, moved = costs.exchanged("send/receive", message, 2)
                    work = issued.communicate("send/receive", sent, work, devices=(stage,), size=moved)
                done[kind, piece, micro_batch] = work
        if len(done) == before:
            raise ValueError("the stages of this schedule wait for each other")
    for stage in range(len(actions)):
        mine = [layer for piece, layers in enumerate(pieces) if stage_of[piece] == stage for layer in layers]
        parameters = sum(sum(layer.parameters) for layer in mine)
        own = [work for work in issued.work if work.streams[0][0] == stage]
        last = own[-1:]
        if tied and stage in (stage_of[0], stage_of[-1]) and stage_of[0] != stage_of[-1]:
            seconds, moved = costs.exchanged("all-reduce", tied, 2)
            last = [issued.communicate("all-reduce", seconds, *own, devices=(stage,), size=moved)]
        if replicas > 1:
            seconds, moved = costs.exchanged("all-reduce", FP32 * parameters, replicas)
            last = [issued.communicate("all-reduce", seconds, *own, *last, devices=(stage,), size=moved)]
        issued.compute("optimizer", costs.update_s(parameters), *own, *last, device=stage)
    return issued.work


def gpipe(stages: int, micro_batches: int) -> Actions:
    """All forward passes, then all backward passes."""
    return [[("forward", stage, each) for each in range(micro_batches)]
            + [("backward", stage, each) for each in range(micro_batches)] for stage in range(stages)]


def one_forward_one_backward(stages: int, micro_batches: int) -> Actions:
    """1F1B: a stage goes ahead by as many forward passes as there are stages behind it, then alternates."""
    queues = []
    for stage in range(stages):
        ahead = min(stages - stage - 1, micro_batches)
        queue = [("forward", stage, each) for each in range(ahead)]
        for each in range(micro_batches - ahead):
            queue += [("forward", stage, ahead + each), ("backward", stage, each)]
        queues.append(queue + [("backward", stage, each) for each in range(micro_batches - ahead, micro_batches)])
    return queues
