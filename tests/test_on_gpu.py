"""experiments/on_gpu.sh to its end on pretended GPUs: every part, resumed, and what fails is named."""

import csv
import json
import os
import subprocess
from pathlib import Path

import pandas as pd
import pytest

from comparison.verified import verified
from experiments.gpu_records import ALL_PROVEN
from tests.pretended_cuda import build
from tests.shared.runs import ROOT

FOLDER = "nvidia_h100_80gb_hbm3_sample"


@pytest.fixture
def on_gpu(environment, slow_lane, tmp_path):
    """Start on_gpu.sh with its few steps; every process that it starts has so many pretended GPUs."""
    if reason := build.why_not():
        pytest.skip(reason)
    build.built()

    def on_gpu(gpus: int, *parts: str) -> subprocess.Popen:
        paths = os.pathsep.join([str(ROOT), str(ROOT / "tests" / "pretended_cuda" / "everywhere")])
        variables = {"PRETENDED_GPUS": str(gpus), "PYTHONPATH": paths, "SAMPLE": "1", "SEEDS": "0",
                     "RESULTS": str(tmp_path), "PART_LIMIT_S": "1200"}
        return subprocess.Popen(["bash", "experiments/on_gpu.sh", *parts], cwd=ROOT, env=environment | variables,
                                stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    return on_gpu


def summaries(folder: Path) -> list[dict[str, str]]:
    rows = []
    for path in sorted(folder.glob("*/summary.csv")):
        with open(path, newline="") as file:
            rows += csv.DictReader(file)
    return rows


@pytest.mark.timeout(1500)
def test_all_parts_on_one_gpu(on_gpu, tmp_path):
    """Parts run beside each other here, which takes half the time. --compile needs Triton, so it fails."""
    begun = [on_gpu(1, "verify"), on_gpu(1, "reference", "batches", "strategies", "pipelines", "precision")]
    outputs = [process.communicate()[0] for process in begun]
    assert [process.returncode for process in begun] == [0, 0], outputs
    whole = on_gpu(1)
    output = whole.communicate()[0]
    assert whole.returncode == 1, output
    failed = [line for line in output.splitlines() if line.startswith("failed: ")]
    assert [line.split()[1:4] for line in failed] == [["compile:", script, "--compile"]
                                                      for script in ("bert_baseline.py", "fsdp.py")]
    folder = tmp_path / "on_gpu" / FOLDER
    rows = summaries(folder)
    assert output.count(" is finished") == len(rows) + 4, "verification, and four parts that begin with plain DDP"
    assert {row["strategy"] for row in rows} == {
        "ddp", "ddp_recompute", "data_parallel", "zero0", "zero1", "zero2", "zero3", "zero3_offload", "fsdp",
        "fsdp_no_reshard", "hf_trainer", "hf_trainer_zero2", "pipeline", "torch_pipeline"}
    assert {row["precision"] for row in rows} == {"bf16", "fp32"} and {row["devices"] for row in rows} == {"1"}
    assert all(float(row["host_cpu_s_per_step"]) > 0 for row in rows), "each is profiled"
    [entry] = json.loads((folder / "verification.json").read_text())["verifications"]
    assert {row["status"] for row in entry["rows"]} == {"equal"} and len(entry["rows"]) == 18
    table = pd.DataFrame([row | {"devices": int(row["devices"]), "family": "bert", "setting": row["run_name"]}
                          for row in rows])
    assert verified(table, [entry]).endswith(ALL_PROVEN)


@pytest.mark.timeout(900)
def test_pipelines_on_two_gpus(on_gpu, tmp_path):
    process = on_gpu(2, "pipelines")
    output = process.communicate()[0]
    assert process.returncode == 0, output
    rows = summaries(tmp_path / "on_gpu" / FOLDER)
    assert {row["schedule"] for row in rows} == {"1f1b", "gpipe", "interleaved", "zero_bubble", "zbv"}
    assert len(rows) == 6, "DeepSpeed's is a 1f1b, too"
    assert {(row["devices"], row["pipeline_stages"]) for row in rows} == {("2", "2")}
