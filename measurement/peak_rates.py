"""Peak rates of GPUs, and the share of them that a run reaches."""

import csv
import re
from pathlib import Path

import torch

PEAK_RATES = Path(__file__).with_name("peak_tflops.csv")


def peak_tflops(gpu: str | None, precision: str) -> tuple[float | None, str]:
    """A GPU's dense peak rate for matrix products in `precision` and its source, or None and the reason.

    fp32 counts as TF32 where PyTorch may run fp32 products on tensor cores.

    Args:
        gpu: from `torch.cuda.get_device_name`, such as "NVIDIA A100-SXM4-40GB"; None for a CPU.
    """
    if gpu is None:
        return None, "no peak rate is known for a CPU; give it with --peak_tflops"
    dtype = precision.removesuffix("_native")
    if dtype == "fp32" and torch.get_float32_matmul_precision() != "highest":
        dtype = "tf32"
    name = gpu.removeprefix("NVIDIA ").removeprefix("Tesla ")
    if " MIG " in name:
        return None, f"no peak rate is known for a part of a GPU ({gpu}); give it with --peak_tflops"
    with open(PEAK_RATES, newline="", encoding="utf-8") as file:
        for row in csv.DictReader(file):
            if row["dtype"] == dtype and re.fullmatch(row["gpu"], name):
                return float(row["tflops"]), row["source"]
    return None, f"no peak rate is known for {gpu} in {dtype}; give it with --peak_tflops"


def utilization_pct(flops: float, seconds: float, devices: int, peak: float) -> float:
    """FLOPs per second in percent of the peak rate of `devices` devices: MFU or HFU.

    With the FLOPs of the real tokens this is MFU (Chowdhery et al. 2022, PaLM, section 4.1); with those of the padded
    sequences it is HFU, the hardware's share.

    Args:
        peak: TFLOPS of one device.
    """
    return 100 * flops / (seconds * devices * peak * 1e12)
