"""What `calibrate.py` has measured: one machine, one model, one task; read without torch."""

import dataclasses
import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from prediction.costs import Costs, Layer, PassCost
from prediction.links import LinkCost, Links
from prediction.setting import Setting
from workload.errors import InputError

NAME = "calibration.json"
RECOMPUTE = "recompute"  # the engine of DDP with --activation_checkpointing
SMALLEST_RATIO = 0.5  # no engine computes layers in less than half of what they take by themselves


@dataclass(frozen=True)
class Engine:
    """One strategy's own costs, from its script's steps on one device, and on all of them for its exchanges.

    Args:
        ratio: of its time for passes and the update to that of the layers and the optimizer by themselves.
        micro_batch_s, step_s: on top of it, for each micro-batch and for each step.
        base_gib: memory that does not depend on the batch, without parameters, gradients and the optimizer's states.
        token_gib: memory for each token of a micro-batch.
        exchange_s: for each exchange, on top of what its link takes by itself.
    """

    ratio: float
    micro_batch_s: float
    step_s: float
    base_gib: float
    token_gib: float
    exchange_s: float = 0.0

    def with_difference(self, one: "Engine", other: "Engine") -> "Engine":
        """These costs and what one engine has above another."""
        return Engine(*(max(mine + more - less, 0.0) for mine, more, less in zip(
            *map(dataclasses.astuple, (self, one, other)), strict=True)))


@dataclass(frozen=True)
class Calibration:
    """Everything that predictions are made from.

    Args:
        facts: hardware, versions, source digest, date, family, model, task, precision and threads of a process.
        devices: that were busy while engines were measured.
        cores: of the processor, over which processes without a GPU are spread; as many as devices where there are GPUs.
        layers: the model's ordered layers. A weight that two of them share is the first one's.
        tied_bytes: of that weight.
        hidden: width of the activation between two layers.
        value_bytes: of one of its values.
        lengths: of samples drawn from the task's data, in tokens.
        tensor_groups: sizes of groups that its layers can be split over.
        memory_gib: of a device; of the machine, where processes share it.
        multiple: batches are padded to a multiple of so many tokens.
        max_length: limit of padded lengths.
        passes: by layer's kind, then pass; see `Costs`.
        engines: by script, as `engine_costs.ENGINES` names them.
        links: (operation, devices, cost).
        power_w: of a device that trains, the mean over engines; None where it is not measured.
    """

    facts: Mapping[str, Any]
    devices: int
    cores: int
    layers: tuple[Layer, ...]
    tied_bytes: int
    hidden: int
    value_bytes: int
    lengths: tuple[int, ...]
    tensor_groups: tuple[int, ...]
    memory_gib: float
    multiple: int
    max_length: int
    passes: Mapping[str, Mapping[str, PassCost]]
    update_s_per_parameter: float
    engines: Mapping[str, Engine]
    links: tuple[tuple[str, int, LinkCost], ...]
    slowdown: float
    scatters: bool
    power_w: float | None = None

    def engine(self, setting: Setting) -> Engine:
        """A setting's own costs. What computing layers again adds was measured for DDP."""
        own = self.engines[setting.engine]
        return own.with_difference(self.engines[RECOMPUTE], self.engines["ddp"]) if setting.recomputes else own

    @property
    def warning(self) -> str | None:
        """Which engines' costs are not to be trusted, as their fits ended at their bound."""
        names = [name for name, engine in self.engines.items() if engine.ratio < 1.01 * SMALLEST_RATIO]
        if not names:
            return None
        return (f"Do not trust the predictions of {' and '.join(names)}: the machine's speed changed too much while "
                f"{'it was' if len(names) == 1 else 'they were'} calibrated. On a quiet machine, run python -m "
                "prediction.calibrate again, with the same flags.")

    @property
    def depth(self) -> int:
        """How many repeated layers the model has."""
        return sum(layer.kind == "layer" for layer in self.layers)

    @property
    def shares_memory(self) -> bool:
        """Whether devices are processes that share the machine's memory."""
        return not self.scatters

    def crowding(self, devices: int) -> float:
        """Devices for each core, if they are processes that share them, else 1."""
        return max(devices / self.cores, 1.0) if self.shares_memory else 1.0

    @property
    def measured_links(self) -> dict[tuple[str, int], LinkCost]:
        return {(operation, devices): cost for operation, devices, cost in self.links}

    def costs(self, setting: Setting, links: Links | None = None) -> Costs:
        """The costs of a setting. What an engine adds to a micro-batch is spread over the repeated layers' passes.

        Args:
            links: among its devices. (default: those measured)
        """
        own = self.engine(setting)
        crowding = self.crowding(setting.devices)
        slower = crowding / self.crowding(self.devices)
        count = 2 * self.depth

        def of_engine(kind: str, cost: PassCost) -> PassCost:
            added = slower * own.micro_batch_s / count if kind == "layer" else 0.0
            return cost.slower(slower * own.ratio, added)

        passes = {kind: {name: of_engine(kind, cost) for name, cost in costs.items()}
                  for kind, costs in self.passes.items()}
        return Costs(passes, slower * own.ratio * self.update_s_per_parameter,
                     links or Links(self.measured_links), self.slowdown, self.scatters, crowding,
                     slower * own.step_s, own.exchange_s)

    def as_json(self) -> dict[str, Any]:
        return dataclasses.asdict(self)


def read_calibration(path: Path) -> Calibration:
    """Read what `calibrate.py` wrote.

    Raises:
        InputError: there is no such file, or it cannot be read.
    """
    again = "run python -m prediction.calibrate again"
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
        return Calibration(**content | {
            "layers": tuple(Layer(**layer | {"parameters": tuple(layer["parameters"])}) for layer in content["layers"]),
            "lengths": tuple(content["lengths"]), "tensor_groups": tuple(content["tensor_groups"]),
            "passes": {kind: {name: PassCost(**cost) for name, cost in costs.items()}
                       for kind, costs in content["passes"].items()},
            "engines": {name: Engine(**engine) for name, engine in content["engines"].items()},
            "links": tuple((name, n, LinkCost(**cost)) for name, n, cost in content["links"])})
    except FileNotFoundError as error:
        raise InputError(f"{path}: there is no such calibration; {again}") from error
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise InputError(f"{path} cannot be read as a calibration; {again}") from error
