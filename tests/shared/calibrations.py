"""A calibration that is made by hand, whose predictions can be worked out."""

from prediction.calibration import RECOMPUTE, Calibration, Engine
from prediction.costs import FP32, Layer, PassCost
from prediction.links import LinkCost

LAYERS = (Layer("embedding", (4_000_000,)), *[Layer("layer", (1_000_000, 500_000), step_cost=1.0)] * 4,
          Layer("head", (1000,)))
PARAMETERS = 10_001_000
OPERATIONS = ("all-reduce", "all-gather", "reduce-scatter", "send/receive")
FREE = LinkCost(0.0, 1e30)


def made(link: LinkCost = FREE, lengths: tuple[int, ...] = (64,), ratio: float = 1.0,
         added: float = 0.0, more: dict | None = None) -> Calibration:
    """1 ms a token and layer forward, 2 backward; embedding and head take nothing."""
    passes = {kind: {name: PassCost(0, 0, seconds * (kind == "layer"), 0) for name, seconds in
                     (("forward", 1e-3), ("backward", 2e-3), ("inputs", 1e-3), ("weights", 1e-3))}
              for kind in ("embedding", "layer", "head")}
    names = ("ddp", RECOMPUTE, "zero1", "zero2", "zero3", "fsdp", "hf_trainer", "tensor_parallel", "pipeline",
             "torch_pipeline")
    facts = {"hardware": "a CPU", "family": "bert"} | (more or {})
    return Calibration(facts, 4, 4, LAYERS, 0, 128, FP32, lengths, (1, 2, 4), 64.0, 8, 384, passes, 0.0,
                       {name: Engine(ratio, added, 0.0, 0.5, 1e-4) for name in names},
                       tuple((name, n, link) for name in OPERATIONS for n in (2, 4)), 1.0, True)
