"""The memory that each strategy needs on the device that needs most, in bytes.

16 bytes a parameter: itself, its gradient and Adam's two moments in fp32 (Rajbhandari et al., ZeRO, 2020, section 3).
Activations are linear in a micro-batch's samples; a pipeline holds those of as many micro-batches as are under way.
"""

from collections.abc import Sequence

from measurement.pipelines.idle_replay import Action
from prediction.costs import FP32, Layer

STATES = 4 * FP32  # parameter, gradient, two moments


def parameters_of(layers: Sequence[Layer]) -> float:
    """Of one device, where layers are split."""
    return sum(layer.count for layer in layers)


def ddp(layers: Sequence[Layer], activations: float) -> float:
    """Everything, and the activations of one micro-batch."""
    return STATES * parameters_of(layers) + activations


def zero(layers: Sequence[Layer], activations: float, devices: int, stage: int,
         secondary_group: int | None = None) -> float:
    """What a stage divides, by the devices. Stage 3 keeps gathered parameters, below its limit all of them.

    hpZ keeps a second shard of them, by the devices of a group.
    """
    parameters = parameters_of(layers)
    divided = {0: 0, 1: 2 * FP32, 2: 3 * FP32, 3: STATES}[stage]
    gathered = FP32 * parameters if stage == 3 else 0
    gathered += FP32 * parameters / secondary_group if secondary_group else 0
    return (STATES - divided) * parameters + divided * parameters / devices + gathered + activations


def fsdp(layers: Sequence[Layer], activations: float, devices: int, reshards: bool = True) -> float:
    """Shards of everything, and what is gathered at once: two layers and the rest, or without resharding the model.

    Whole gradients add up on the device until the last micro-batch, as no communication is spent on the others.
    """
    parameters = parameters_of(layers)
    rest = sum(layer.bytes for layer in layers if layer.kind != "layer")
    two = 2 * max((layer.bytes for layer in layers if layer.kind == "layer"), default=0)
    gathered = rest + two if reshards else FP32 * parameters
    return STATES * parameters / devices + gathered + FP32 * parameters + activations


def pipeline(stages: Sequence[Sequence[Layer]], activations: Sequence[float], held: Sequence[float]) -> float:
    """The largest stage's.

    Args:
        activations: of one micro-batch on each stage, all its pieces together.
        held: micro-batches whose activations a stage holds at once; see `under_way`.
    """
    return max(STATES * parameters_of(layers) + each * count
               for layers, each, count in zip(stages, activations, held, strict=True))


def under_way(queue: Sequence[Action]) -> float:
    """Micro-batches whose activations a stage holds at once, in the order of its passes.

    A piece's are held from its forward to its last backward pass: of a split one that of the weights. So all of them
    in GPipe, p - i on stage i of p in 1F1B.
    """
    last = "weight" if any(action.kind == "weight" for action in queue) else "backward"
    pieces = len({action.piece for action in queue})
    most = held = 0
    for action in queue:
        held += {"forward": 1, last: -1}.get(action.kind, 0)
        most = max(most, held)
    return most / pieces


def tensor_parallel(layers: Sequence[Layer], activations: float, sharding_replicas: int) -> float:
    """Layers are divided (see `recipes.shared_out`), the embedding and the head are whole, and so are most activations
    between layers. Replicas that shard these parts gather all of them, as FSDP's devices do.
    """
    parts = parameters_of(layers)
    gathered = 2 * FP32 * parts if sharding_replicas > 1 else 0.0
    return STATES * parts / sharding_replicas + gathered + activations
