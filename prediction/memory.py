"""The memory that each strategy needs on the device that needs most, in bytes.

16 bytes a parameter: itself, its gradient and Adam's two moments in fp32 (Rajbhandari et al., ZeRO, 2020, section 3).
Activations are linear in a micro-batch's samples; a pipeline holds those of as many micro-batches as are under way.
"""

from collections.abc import Sequence

from prediction.costs import FP32, Layer

STATES = 4 * FP32  # parameter, gradient, two moments


def parameters_of(layers: Sequence[Layer]) -> int:
    return sum(sum(layer.parameters) for layer in layers)


def ddp(layers: Sequence[Layer], activations: float) -> float:
    """Everything, and the activations of one micro-batch."""
    return STATES * parameters_of(layers) + activations


def zero(layers: Sequence[Layer], activations: float, devices: int, stage: int) -> float:
    """What a stage divides, by the devices. Stage 3 keeps gathered parameters, below its limit all of them."""
    parameters = parameters_of(layers)
    divided = {0: 0, 1: 2 * FP32, 2: 3 * FP32, 3: STATES}[stage]
    gathered = FP32 * parameters if stage == 3 else 0
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


def pipeline(stages: Sequence[Sequence[Layer]], activations: Sequence[float], under_way: Sequence[int]) -> float:
    """The largest stage's.

    Args:
        activations: of one micro-batch on each stage.
        under_way: micro-batches whose activations a stage holds at once: all of them in GPipe, p - i on stage i of p
            in 1F1B, at most as many as there are.
    """
    return max(STATES * parameters_of(layers) + each * count
               for layers, each, count in zip(stages, activations, under_way, strict=True))


def tensor_parallel(layers: Sequence[Layer], activations: float, devices: int) -> float:
    """Layers are divided, the embedding and the head are whole; so are most activations between layers."""
    divided = sum(layer.bytes for layer in layers if layer.kind == "layer")
    whole = sum(layer.bytes for layer in layers) - divided
    return STATES / FP32 * (whole + divided / devices) + activations
