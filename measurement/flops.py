"""Model FLOPs, and the peak rates they are compared with."""

import csv
import re
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch

PEAK_RATES = Path(__file__).with_name("peak_tflops.csv")
FORWARD_AND_BACKWARD = 3  # the backward pass makes two matrix products for each of the forward pass


@dataclass(frozen=True)
class TransformerShape:
    """What the FLOPs of a transformer depend on besides the length of its input."""

    layers: int
    hidden: int
    intermediate: int  # width of the feed-forward network
    outputs: int  # that the head gives for each token

    def training_flops(self, lengths: np.ndarray) -> np.ndarray:
        """FLOPs of one forward and backward pass over sequences of `lengths` tokens. (sequences,) -> (sequences,)

        Matrix products alone, a multiplication and an addition counted as two, as Narayanan et al. 2021 (appendix)
        and Chowdhery et al. 2022 (PaLM, appendix B) do: in each layer 8 n h^2 for the four projections of attention,
        4 n^2 h for its scores and weighted sums, 4 n h i for the feed-forward network; 2 n h per output of the head.
        Looking up embeddings, LayerNorm, activations and the optimizer are not counted.
        """
        n = lengths.astype(float)
        per_layer = 8 * n * self.hidden**2 + 4 * n**2 * self.hidden + 4 * n * self.hidden * self.intermediate
        return FORWARD_AND_BACKWARD * (self.layers * per_layer + 2 * n * self.hidden * self.outputs)


def peak_tflops(gpu: str | None, precision: str) -> tuple[float | None, str]:
    """A GPU's dense peak rate for matrix products in `precision`, and its source; or None, and why.

    fp32 products run on tensor cores (TF32) only if PyTorch was allowed to use them.

    Args:
        gpu: its name from `torch.cuda.get_device_name`, such as "NVIDIA A100-SXM4-40GB"; None for a CPU.
    """
    if gpu is None:
        return None, "no peak rate is known for a CPU; --peak_tflops gives one"
    dtype = precision.removesuffix("_native")
    if dtype == "fp32" and torch.get_float32_matmul_precision() != "highest":
        dtype = "tf32"
    name = gpu.removeprefix("NVIDIA ").removeprefix("Tesla ")
    if " MIG " in name:
        return None, f"no peak rate is known for a part of a GPU ({gpu}); --peak_tflops gives one"
    with open(PEAK_RATES, newline="", encoding="utf-8") as file:
        for row in csv.DictReader(file):
            if row["dtype"] == dtype and re.fullmatch(row["gpu"], name):
                return float(row["tflops"]), row["source"]
    return None, f"no peak rate is known for {gpu} in {dtype}; --peak_tflops gives one"


def utilization_pct(flops: float, seconds: float, devices: int, peak: float) -> float:
    """FLOPs per second in percent of the peak rate (TFLOPS) of `devices`: MFU or HFU.

    MFU: Chowdhery et al. 2022 (PaLM), section 4.1. If `flops` includes padding, this is the hardware's share (HFU).
    """
    return 100 * flops / (seconds * devices * peak * 1e12)
