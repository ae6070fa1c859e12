"""What `calibrate.py` has measured: one machine, one model, one task; read without torch."""

import dataclasses
import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from prediction.costs import Costs, Layer, LinkCost, PassCost
from workload.errors import InputError

NAME = "calibration.json"


@dataclass(frozen=True)
class Engine:
    """One strategy's own costs, from its script's steps on one device.

    Args:
        ratio: of its time for passes to that of the layers by themselves.
        micro_batch_s: on top of it, for each micro-batch.
        base_gib: memory that does not depend on the batch, without parameters, gradients and the optimizer's states.
        token_gib: memory for each token of a micro-batch.
    """

    ratio: float
    micro_batch_s: float
    base_gib: float
    token_gib: float


@dataclass(frozen=True)
class Calibration:
    """Everything that predictions are made from.

    Args:
        facts: hardware, versions, source digest, date, family, model, task, for the record.
        layers: the model's ordered layers.
        hidden: width of the activation between two layers.
        lengths: of samples drawn from the task's data, in tokens.
        multiple: batches are padded to a multiple of so many tokens.
        max_length: limit of padded lengths.
        passes: by layer's kind, then pass; see `Costs`.
        engines: by script, as `calibrate.ENGINES` names them.
        links: (operation, devices, cost).
    """

    facts: Mapping[str, Any]
    layers: tuple[Layer, ...]
    hidden: int
    lengths: tuple[int, ...]
    multiple: int
    max_length: int
    passes: Mapping[str, Mapping[str, PassCost]]
    update_s_per_parameter: float
    engines: Mapping[str, Engine]
    links: tuple[tuple[str, int, LinkCost], ...]
    slowdown: float
    scatters: bool

    def costs(self, engine: str) -> Costs:
        """The costs of an engine. What it adds to a micro-batch is spread over the passes of the repeated layers."""
        own = self.engines[engine]
        count = 2 * sum(layer.kind == "layer" for layer in self.layers)

        def of_engine(kind: str, cost: PassCost) -> PassCost:
            added = own.micro_batch_s / count if kind == "layer" else 0.0
            return PassCost(own.ratio * cost.floor + added, own.ratio * cost.a + added, own.ratio * cost.b,
                            own.ratio * cost.c)

        passes = {kind: {name: of_engine(kind, cost) for name, cost in costs.items()}
                  for kind, costs in self.passes.items()}
        return Costs(passes, self.update_s_per_parameter, {(name, n): cost for name, n, cost in self.links},
                     self.slowdown, self.scatters)

    def as_json(self) -> dict[str, Any]:
        return dataclasses.asdict(self)


def read_calibration(path: Path, **facts: Any) -> Calibration:
    """Read what `calibrate.py` wrote.

    Args:
        facts: that it must share, such as hardware and family.

    Raises:
        InputError: there is no such file, it cannot be read, or it was made for something else.
    """
    again = "run python -m prediction.calibrate again"
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
        found = Calibration(**content | {
            "layers": tuple(Layer(layer["kind"], tuple(layer["parameters"])) for layer in content["layers"]),
            "lengths": tuple(content["lengths"]),
            "passes": {kind: {name: PassCost(**cost) for name, cost in costs.items()}
                       for kind, costs in content["passes"].items()},
            "engines": {name: Engine(**engine) for name, engine in content["engines"].items()},
            "links": tuple((name, n, LinkCost(**cost)) for name, n, cost in content["links"])})
    except FileNotFoundError as error:
        raise InputError(f"{path}: there is no such calibration; {again}") from error
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise InputError(f"{path} cannot be read as a calibration; {again}") from error
    for name, value in facts.items():
        if found.facts.get(name) != value:
            raise InputError(f"{path} was made for {name} {found.facts.get(name)}, not {value}; {again}")
    return found
