"""What single operations cost: passes through layers, updates, and exchanges, from a calibration's coefficients."""

from collections.abc import Mapping
from dataclasses import dataclass

from prediction.links import Links
from verification.link_model import WIRE

FP32 = 4  # bytes of a parameter, of its gradient, of each of Adam's two moments


@dataclass(frozen=True)
class Layer:
    """One of a model's ordered layers.

    Args:
        kind: "embedding", "layer" or "head".
        parameters: of each tensor, in the order of the model. A weight that two layers share is the first one's.
        share: of its matrix products and parameters that one device has.
        step_cost: by which pipelines cut the model.
    """

    kind: str
    parameters: tuple[int, ...]
    share: float = 1.0
    step_cost: float = 0.0

    @property
    def count(self) -> float:
        """Of its parameters on one device."""
        return self.share * sum(self.parameters)

    @property
    def bytes(self) -> float:
        """Of its parameters in fp32, and so of its gradients, on one device."""
        return FP32 * self.count


@dataclass(frozen=True)
class Batch:
    """One step's batch on one replica: micro-batches of equal shape.

    Args:
        samples: in a micro-batch.
        length: to which they are padded, in tokens.
    """

    micro_batches: int
    samples: int
    length: int

    @property
    def tokens(self) -> int:
        """In a micro-batch."""
        return self.samples * self.length


@dataclass(frozen=True)
class PassCost:
    """Seconds of one pass of a micro-batch through a layer: max(floor, a + b tokens + c tokens x length).

    The floor is what the host needs to issue the pass, below which a device waits for it. The last term is attention's.
    """

    floor: float
    a: float
    b: float
    c: float

    def seconds(self, batch: Batch, share: float = 1.0) -> float:
        """For a micro-batch of this shape, and a share of the layer's matrix products."""
        products = self.b * batch.tokens + self.c * batch.tokens * batch.length
        return max(self.floor, self.a + share * products)

    def slower(self, factor: float, added: float = 0.0) -> "PassCost":
        """With so many times the seconds, and some more."""
        return PassCost(factor * self.floor + added, factor * self.a + added, factor * self.b, factor * self.c)


def wire_bytes(operation: str, size: float, devices: int) -> float:
    """The bytes that pass each device's link, by ring algorithms (NCCL's performance notes)."""
    return size * WIRE[operation](devices)


@dataclass(frozen=True)
class Costs:
    """The costs of one machine for one engine.

    Args:
        passes: by layer's kind, then "forward", "backward", and for split backward passes "inputs" and "weights".
        update_s_per_parameter: the optimizer's, clipping included.
        links: among its devices.
        slowdown, crowding: see `events.simulate`.
        scatters: whether a reduce-scatter is one. Gloo has none, and all-reduces.
        step_s: of each step, whatever it trains.
        exchange_s: of each exchange, on top of its link's; see `events.Issued`.
    """

    passes: Mapping[str, Mapping[str, PassCost]]
    update_s_per_parameter: float
    links: Links
    slowdown: float = 1.0
    scatters: bool = True
    crowding: float = 1.0
    step_s: float = 0.0
    exchange_s: float = 0.0

    def pass_s(self, layer: Layer, kind: str, batch: Batch) -> float:
        """Seconds of a pass of one micro-batch."""
        return self.passes[layer.kind][kind].seconds(batch, layer.share)

    def update_s(self, parameters: float) -> float:
        """Seconds of the optimizer's step, and of what else happens once a step."""
        return self.step_s + parameters * self.update_s_per_parameter

    def exchanged(self, operation: str, size: float, devices: int, span: int | None = None) -> tuple[float, float]:
        """Seconds of an exchange of a tensor of `size` bytes, and the bytes that pass each device's link.

        Args:
            span: neighbours among which the group's devices lie. (default: they are neighbours)
        """
        if devices == 1:
            return 0.0, 0.0
        if operation == "reduce-scatter" and not self.scatters:
            operation = "all-reduce"
        moved = wire_bytes(operation, size, devices)
        return self.links.cost(operation, devices, span or devices).seconds(moved), moved
