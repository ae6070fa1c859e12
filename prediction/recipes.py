"""What each strategy issues in one step, and in which order.

Each recipe takes the ordered layers, the batch of one replica, the costs, and its number of devices; it returns the
work of one device, which stands for all of them. `events.simulate` says when it happens. Pipelines, whose stages
differ, are in `pipelines.py`.
"""

from collections.abc import Sequence
from dataclasses import replace

from prediction.costs import FP32, Batch, Costs, Layer
from prediction.events import Issued, Work

MIB = 2**20
FIRST_BUCKET, BUCKET = MIB, 25 * MIB  # DDP's, in bytes


class Step(Issued):
    """The work of one step, with the costs of one strategy."""

    def __init__(self, layers: Sequence[Layer], batch: Batch, costs: Costs, devices: int) -> None:
        super().__init__(costs.exchange_s)
        self.layers, self.batch, self.costs, self.devices = layers, batch, costs, devices

    def run(self, layer: Layer, kind: str, *after: Work) -> Work:
        """A pass of one micro-batch through a layer."""
        return self.compute(kind, self.costs.pass_s(layer, kind, self.batch), *after)

    def exchange(self, operation: str, size: float, *after: Work, among: int | None = None,
                 span: int | None = None) -> Work:
        """A collective of a tensor of `size` bytes among so many devices (default: all), of so many neighbours.
        (default: those devices)
        """
        seconds, moved = self.costs.exchanged(operation, size, among or self.devices, span)
        return self.communicate(operation, seconds, *after, size=moved)

    def update(self, parameters: float, *after: Work) -> Work:
        return self.compute("optimizer", self.costs.update_s(parameters), *after)

    @property
    def parameters(self) -> float:
        return sum(layer.count for layer in self.layers)


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


def zero(layers: Sequence[Layer], batch: Batch, costs: Costs, devices: int, stage: int,
         secondary_group: int | None = None) -> list[Work]:
    """DeepSpeed's stages 0 to 3, as `ds_config.json` sets them.

    Stages 0 and 1 reduce gradients with the last micro-batch, 2 and 3 with every one. Up to 2 they are all-reduced, by
    DeepSpeed's default (`use_multi_rank_bucket_allreduce`); 1 and 2 gather parameters after the update. 3 gathers each
    layer before its forward pass, ahead of time, and keeps it for the backward pass; with a secondary group (hpZ) only
    the first micro-batch gathers from all devices.
    """
    step = Step(layers, batch, costs, devices)
    reduce = "all-reduce" if stage < 3 else "reduce-scatter"
    exchanges: list[Work] = []
    for micro_batch in range(batch.micro_batches):
        among = secondary_group if micro_batch else devices
        for layer in layers:
            gathered = [step.exchange("all-gather", layer.bytes, among=among)] if stage == 3 else []
            step.run(layer, "forward", *gathered)
        for layer in reversed(layers):
            ready = step.run(layer, "backward")
            if stage > 1 or micro_batch == batch.micro_batches - 1:
                exchanges.append(step.exchange(reduce, layer.bytes, ready))
    update = step.update(step.parameters / (devices if stage else 1), *exchanges)
    if stage in (1, 2):
        step.exchange("all-gather", FP32 * step.parameters, update)
    return step.work


def fsdp(layers: Sequence[Layer], batch: Batch, costs: Costs, devices: int, reshards: bool = True,
         group: int | None = None, gathered_bytes: int = FP32) -> list[Work]:
    """Layers are gathered one ahead, and with `reshards` again for the backward pass; gradients are scattered once.

    The embedding and the head belong to the model's own group, which is gathered first, once for both passes. All this
    happens in a group of devices (default: all); each shard of the gradients is then averaged over the groups.
    """
    step, group = Step(layers, batch, costs, devices), group or devices
    rest = sum(layer.bytes for layer in layers if layer.kind != "layer")
    reduced: list[Work] = []
    computed: list[Work] = []  # one layer is gathered while the one before it computes

    def gather(size: float, *after: Work) -> Work:
        return step.exchange("all-gather", size * gathered_bytes / FP32, *after, among=group)

    def reduce(size: float, *after: Work) -> None:
        scattered = step.exchange("reduce-scatter", size, *after, among=group)
        reduced.append(step.exchange("all-reduce", size / group, scattered, among=devices // group, span=devices)
                       if group < devices else scattered)

    for micro_batch in range(batch.micro_batches):
        gathers = reshards or micro_batch == 0
        root = [gather(rest)] if gathers else []
        computed = []
        for layer in layers:
            gathered = [gather(layer.bytes, *computed[-2:-1])] if layer.kind == "layer" and gathers else []
            computed.append(step.run(layer, "forward", *root, *gathered))
        for layer in reversed(layers):
            gathered = [gather(layer.bytes, *computed[-2:-1])] if layer.kind == "layer" and reshards else []
            computed.append(step.run(layer, "backward", *gathered))
            if layer.kind == "layer" and micro_batch == batch.micro_batches - 1:
                reduce(layer.bytes, computed[-1])
    reduce(rest, *computed[-1:])
    step.update(step.parameters / group, *reduced)
    return step.work


def tensor_parallel(layers: Sequence[Layer], batch: Batch, costs: Costs, group: int, replicas: int, hidden: int,
                    value_bytes: int, shares_tokens: bool = False, shards_replicas: bool = False) -> list[Work]:
    """Two all-reduces of a layer's activations in each pass, which nothing hides: the next product needs them.

    With `shares_tokens` each is a reduce-scatter and an all-gather, and the first and the last layer gather once more.
    Replicas average gradients in one message, or with `shards_replicas` as FSDP's devices do.

    Args:
        layers: as one device of the group has them; see `shared_out`.
    """
    step, devices = Step(layers, batch, costs, group), group * replicas
    activation = batch.tokens * hidden * value_bytes
    last: list[Work] = []
    for _ in range(batch.micro_batches):
        for kind, order in (("forward", layers), ("backward", layers[::-1])):
            for layer in order:
                if shards_replicas:
                    last = [*last, step.exchange("all-gather", layer.bytes, among=replicas, span=devices)]
                last = [step.run(layer, kind, *last)]
                for operation in 2 * (["reduce-scatter", "all-gather"] if shares_tokens else ["all-reduce"]):
                    last = [step.exchange(operation, activation, *last)] if layer.kind == "layer" else last
            if shares_tokens:
                last = [step.exchange("all-gather", activation, *last)]
    gradients = FP32 * step.parameters
    last = [step.exchange("reduce-scatter" if shards_replicas else "all-reduce", gradients, *last, among=replicas,
                          span=devices)]
    step.update(step.parameters / (replicas if shards_replicas else 1), *last)
    return step.work


def shared_out(layers: Sequence[Layer], group: int) -> list[Layer]:
    """The layers as one device of a tensor group has them: repeated ones in part, the others whole."""
    return [replace(layer, share=1 / group) if layer.kind == "layer" else layer for layer in layers]
