"""A strategy and its settings, as a command has them or as a row of summary.csv names them."""

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

# The strategies, and the engine of engine_costs.py that has their costs.
ENGINES = {name: name for name in ("ddp", "hf_trainer", "zero1", "zero2", "zero3", "fsdp", "pipeline", "torch_pipeline",
                                   "tensor_parallel")} | {"zero0": "zero1"}
NAME = re.compile(r"(?P<base>ddp|hf_trainer|zero[0-3]|fsdp|pipeline|torch_pipeline|tensor_parallel)"
                  r"(?P<no_reshard>_no_reshard)?(?P<bf16_gather>_bf16_gather)?(?:_(?:hybrid|hpz)(?P<group>\d+))?"
                  r"(?P<sequence>_sequence)?(?P<sharded>_fsdp)?(?P<recompute>_recompute)?")


@dataclass(frozen=True)
class Setting:
    """What one row of a comparison runs.

    Args:
        base: the strategy without its variants, a key of `ENGINES`.
        group: devices over which a copy of the model is sharded (FSDP, hpZ's second copies), or each layer is
            split (tensor parallel).
        schedule: of a pipeline; see `prediction.schedules`.
        reshards, gathers_bf16: FSDP's.
        shares_tokens, shards_replicas: tensor parallel's.
    """

    base: str
    devices: int
    micro_batches: int
    micro_batch_size: int
    pipeline_stages: int = 1
    schedule: str = ""
    group: int | None = None
    reshards: bool = True
    gathers_bf16: bool = False
    shares_tokens: bool = False
    shards_replicas: bool = False
    recomputes: bool = False

    @property
    def engine(self) -> str:
        return ENGINES[self.base]

    @property
    def tensor_group(self) -> int:
        """Devices that compute each layer together."""
        return self.group or 1 if self.base == "tensor_parallel" else 1

    @property
    def replicas(self) -> int:
        """Devices, or groups of them, that have samples of their own."""
        return self.devices // self.pipeline_stages // self.tensor_group

    @property
    def global_batch_size(self) -> int:
        return self.replicas * self.micro_batches * self.micro_batch_size


def setting_of(row: Mapping[str, Any]) -> Setting | None:
    """The setting that a row of summary.csv ran; None if there is no recipe for it, such as for offloading."""
    name = NAME.fullmatch(row["strategy"])
    if name is None or not row["micro_batches"] or not row["micro_batch_size"]:
        return None
    devices, stages = int(row["devices"]), int(row["pipeline_stages"] or 1)
    group = int(name["group"]) if name["group"] else None
    if name["base"] == "tensor_parallel":
        group = devices // int(row["replicas"])
    is_pipeline = "pipeline" in name["base"]
    return Setting(name["base"], devices, int(row["micro_batches"]), int(row["micro_batch_size"]), stages,
                   row["schedule"] if is_pipeline else "", group, not name["no_reshard"], bool(name["bf16_gather"]),
                   bool(name["sequence"]), bool(name["sharded"]), bool(name["recompute"]))
