"""The table of peak rates, and the share of them that a run reaches."""

import csv

import pytest
import torch

from measurement.peak_rates import PEAK_RATES, peak_tflops, utilization_pct


def test_utilization_by_hand():
    # 2 devices of 10 TFLOPS, 4 s: 80 TFLOP could have been done.
    assert utilization_pct(8e12, seconds=4, devices=2, peak=10) == pytest.approx(10)


@pytest.mark.parametrize("gpu, precision, expected", [
    ("NVIDIA A100-SXM4-40GB", "bf16", 312), ("NVIDIA A100 80GB PCIe", "fp32", 19.5),
    ("NVIDIA H100 80GB HBM3", "bf16_native", 989.4), ("NVIDIA H100 PCIe", "fp16", 756), ("NVIDIA H200", "bf16", 989.4),
    ("Tesla V100-SXM2-16GB", "fp16", 125), ("Tesla T4", "fp32", 8.1), ("NVIDIA L4", "bf16", 121),
    ("NVIDIA H100 NVL", "bf16", 835.5), ("NVIDIA H200 NVL", "fp32", 60), ("NVIDIA GH200 480GB", "bf16", 989.5),
    ("NVIDIA H800", "bf16", 989.5), ("NVIDIA H800 PCIe", "fp16", 756.5), ("NVIDIA A800-SXM4-80GB", "bf16", 312),
    ("NVIDIA A800 40GB Active", "fp32", 19.5), ("NVIDIA H20", "bf16", 148), ("NVIDIA B200", "bf16", 2250),
    ("NVIDIA B200", "fp32", 75),
    ("NVIDIA L40", "bf16", 181.05), ("NVIDIA L40S", "bf16", 362.05), ("NVIDIA RTX 6000 Ada Generation", "fp16", 364.2),
])
def test_peak_rates_by_the_names_that_torch_gives(gpu, precision, expected):
    assert peak_tflops(gpu, precision)[0] == expected


@pytest.mark.parametrize("gpu", ["NVIDIA H100 80GB HBM3 MIG 1g.10gb", "NVIDIA A100-SXM4-40GB MIG 3g.20gb",
                                 "Tesla V100-SXM2-16GB bf16", "NVIDIA GeForce RTX 4090 Laptop GPU", "Some GPU", None])
def test_an_unknown_device_has_no_peak_rate(gpu):
    peak, reason = peak_tflops(gpu, "bf16")
    assert peak is None and "--peak_tflops" in reason


def test_tf32_counts_where_it_is_allowed(monkeypatch):
    monkeypatch.setattr(torch, "get_float32_matmul_precision", lambda: "high")
    assert peak_tflops("NVIDIA A100-SXM4-40GB", "fp32")[0] == 156


def test_every_peak_rate_has_a_source():
    with open(PEAK_RATES, newline="") as file:
        rows = list(csv.DictReader(file))
    assert all(float(row["tflops"]) > 0 and "NVIDIA" in row["source"] for row in rows)
    assert len({(row["gpu"], row["dtype"]) for row in rows}) == len(rows)
