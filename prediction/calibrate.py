"""Measure on this machine what predictions are made from: layers, engines, links, memory.

    python -m prediction.calibrate --num_gpus 2                                      # the embedded model and sample
    python -m prediction.calibrate --num_gpus 4 --model bert-base-uncased --train_file train.json --eval_file dev.json

Each layer goes forward and backward by itself at several sizes. Then every strategy's script trains some steps on one
device, as many scripts at a time as there are devices, so that memory and caches are as busy as in a run on all of
them. Links are read from verification.json, if verify.py has measured them here. Writes calibration.json to the results
folder. Takes two to four minutes on 2 cores with the embedded model.
"""

import argparse
import csv
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import torch
from scipy.optimize import lsq_linear
from tqdm import tqdm

from measurement.environment import source_digest, versions
from prediction.calibration import NAME, RECOMPUTE, Calibration, Engine
from prediction.costs import FP32, Batch, Layer, PassCost
from prediction.layer_times import measure_layers, measure_update
from prediction.links import LinkCost
from verification.machine import hardware_name
from verification.proof import torchrun
from verification.records import read_verifications
from workload.arguments import Arguments, parse_arguments
from workload.atomic_files import write_json
from workload.batches import PAD_TO_MULTIPLE_OF
from workload.digests import content_of
from workload.errors import InputError, one_line_errors
from workload.job import Job, prepare
from workload.launch import launcher
from workload.launch.processes import usable_cores
from workload.launch.start import devices_asked_for
from workload.models.families import FAMILIES
from workload.models.layers import ordered_layers, shared_weight
from workload.models.tensor_plans import fitting_groups
from workload.pipelines.pieces import step_cost

GIB = 2**30
STEPS, UNTIMED = 12, 4  # of an engine's run
# Of an engine's runs: micro-batches, and samples in each. The first two tell apart what a micro-batch and a step cost,
# the last two what samples do.
SHAPES = ((4, 4), (1, 4), (1, 16))
KEPT_LENGTHS = 2000
SMALLEST_RATIO = 0.5  # no engine computes layers in less than half of what they take by themselves
# name: script, flags
ENGINES = {"ddp": ("bert_baseline.py",), RECOMPUTE: ("bert_baseline.py", "--activation_checkpointing"),
           "hf_trainer": ("hf_trainer.py",),
           **{f"zero{stage}": ("zero.py", "--stage", str(stage)) for stage in (1, 2, 3)},
           "fsdp": ("fsdp.py",), "tensor_parallel": ("tensor_parallel.py",),
           "pipeline": ("pipeline.py", "--stages", "1"), "torch_pipeline": ("torch_pipeline.py", "--stages", "1")}


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0], allow_abbrev=False)
    parser.add_argument("--num_gpus", type=int, help="devices (default: all visible GPUs; without GPUs, 2 processes)")
    parser.add_argument("--output_dir", type=Path, default=Path("results"),
                        help="where calibration.json goes (default: %(default)s)")
    options, asked = parser.parse_known_args()
    flags = list(asked)
    if not {"--train_file", "--sample"} & set(flags):
        flags += ["--sample", *([] if "--model" in flags else ["--model", "tiny"])]
    devices = options.num_gpus or max(devices_asked_for(None), 2)
    with tempfile.TemporaryDirectory() as folder:
        threads = str(max(usable_cores() // devices, 1))
        flags += [] if "--cpu_threads" in flags else ["--cpu_threads", threads]
        batch = str(max(count * size for count, size in SHAPES))
        job = prepare("calibrate", parse_arguments(Arguments, [
            *flags, "--num_gpus", "1", "--output_dir", folder, "--global_batch_size", batch]), 1)
        family = FAMILIES.get(job.task.config.model_type)
        if not (family and family.layers):
            known = ", ".join(name for name, each in FAMILIES.items() if each.layers)
            raise InputError(f"--model {job.task.model_name}: its type, {job.task.config.model_type!r}, has no list of "
                             f"layers to measure; use a model of type {known}")
        with tqdm(total=3 + len(SHAPES) * len(ENGINES), unit="part", desc="calibration") as bar:
            calibration = calibrate(job, flags, devices, options.output_dir, bar)
    options.output_dir.mkdir(parents=True, exist_ok=True)
    calibration = replace(calibration, facts={**calibration.facts, "flags": asked})
    write_json(options.output_dir / NAME, calibration.as_json())
    print(f"Wrote {options.output_dir / NAME}")


def calibrate(job: Job, flags: list[str], devices: int, results: Path, bar: tqdm) -> Calibration:
    """Measure everything, one part of the bar at a time."""
    task, device = job.task, job.processes.device
    lengths = [int(length) for length in task.samples("train")["length"][:KEPT_LENGTHS]]
    model = job.build_model(device).train()
    modules = ordered_layers(model)
    layers, tied_bytes = describe_layers(modules)
    passes = measure_layers(job, list(modules.values()), layers)
    update = measure_update(job, list(model.parameters()))
    bar.update()
    del model, modules
    parameters = round(sum(layer.count for layer in layers))
    runs = measure_engines(flags, devices, job, bar)
    engines = {name: fit_engine(passes, update * parameters, parameters, layers, rows) for name, rows in runs.items()}
    links = measure_links(devices, results)
    bar.update()
    slowdown = measure_overlap(devices)
    bar.update()
    digests = content_of(task)
    facts = {"date": time.strftime("%Y-%m-%d", time.gmtime()), "hardware": hardware_name(devices),
             "source_digest": source_digest(), **versions(), "family": task.config.model_type,
             "model": task.model_name, "model_sha256": digests["model"], "data_sha256": digests["data"]["train"],
             "task": task.name, "max_seq_length": task.max_length, "precision": job.precision,
             "cpu_threads": job.processes.cpu_threads}
    cores = devices if device.type == "cuda" else usable_cores()
    value_bytes = FP32 if job.precision == "fp32" else FP32 // 2
    family = FAMILIES[task.config.model_type]
    groups = tuple(fitting_groups(task.config, task.config.num_attention_heads)) if family.tensor_plan else ()
    memory = (torch.cuda.get_device_properties(device).total_memory if device.type == "cuda" else
              psutil.virtual_memory().total) / GIB
    return Calibration(facts, devices, cores, layers, tied_bytes, task.config.hidden_size, value_bytes, tuple(lengths),
                       groups, memory, PAD_TO_MULTIPLE_OF[device.type], task.max_length, passes, update, engines, links,
                       slowdown, scatters=device.type == "cuda")


def describe_layers(modules: dict[str, Any]) -> tuple[tuple[Layer, ...], int]:
    """The ordered layers, and the bytes of the weight that the first and the last share.

    Those in a row whose names end in numbers are the repeated ones.
    """
    names, shared = list(modules), shared_weight(modules)
    layers = []
    for place, (name, module) in enumerate(modules.items()):
        kind = ("layer" if name.rpartition(".")[2].isdigit() else "embedding" if place < len(names) / 2 else "head")
        own = tuple(parameter.numel() for parameter in module.parameters() if place == 0 or parameter is not shared)
        layers.append(Layer(kind, own, step_cost=step_cost(module)))
    return tuple(layers), FP32 * shared.numel() if shared is not None else 0


# ---------------------------------------------------------------------- engines

def measure_engines(flags: list[str], devices: int, job: Job, bar: tqdm) -> dict[str, list[dict[str, Any]]]:
    """Each engine's runs on one device: of every timed step its shape and seconds, and the run's peak memory."""
    def run(name: str, micro_batches: int, size: int) -> dict[str, Any]:
        script, *own = ENGINES[name]
        with tempfile.TemporaryDirectory() as folder:
            shape = (["--micro_batches", str(micro_batches)] if "pipeline" in script else
                     ["--micro_batch_size", str(size)])
            command = [sys.executable, script, *own, *flags, "--num_gpus", "1", *shape, "--global_batch_size",
                       str(micro_batches * size), "--max_steps", str(STEPS), "--noise_scale_steps", "0",
                       "--profile_steps", "0", "--max_eval_examples", "4", "--output_dir", folder, "--run_name", "run"]
            environment = {name: value for name, value in os.environ.items() if name not in launcher.VARIABLES}
            done = subprocess.run(command, capture_output=True, text=True, cwd=Path(__file__).parents[1],
                                  env=environment)
            if done.returncode:
                raise InputError(f"{script} on one device: {done.stderr.strip().splitlines()[-1]}")
            steps = _rows(Path(folder, "run", "steps.csv"))
            summary = _rows(Path(folder, "run", "summary.csv"))[0]
        bar.update()
        padded = np.diff([0.0, *(float(row["padded_tokens"]) for row in steps)]) / (micro_batches * size)
        timed = [(Batch(micro_batches, size, round(length)), float(row["step_s"]))
                 for row, length in zip(steps[UNTIMED:], padded[UNTIMED:], strict=True)]
        return {"steps": timed, "peak_gib": float(summary["peak_memory_gib"]), "tokens": size * round(max(padded))}

    wanted = [(name, *shape) for name in ENGINES for shape in SHAPES]
    with ThreadPoolExecutor(devices) as pool:  # threads that wait for processes
        found = list(pool.map(lambda each: run(*each), wanted))
    count = len(SHAPES)
    return {name: found[count * place:count * (place + 1)] for place, name in enumerate(ENGINES)}


def fit_engine(passes: Mapping[str, Mapping[str, PassCost]], update_s: float, parameters: int,
               layers: tuple[Layer, ...], runs: list[dict[str, Any]]) -> Engine:
    """Fit a step = ratio x (its layers and the update by themselves) + micro-batches x micro_batch_s + step_s."""
    steps = [step for run in runs for step in run["steps"]]
    seconds = np.array([taken for _, taken in steps])
    alone = np.array([update_s + batch.micro_batches * sum(passes[layer.kind][kind].seconds(batch) for layer in layers
                                                for kind in ("forward", "backward")) for batch, _ in steps])
    terms = np.stack([alone, [batch.micro_batches for batch, _ in steps], np.ones(len(steps))], axis=1)
    # Noisy steps alone could say that passes cost nothing: then predictions would not depend on tokens at all.
    ratio, micro_batch_s, step_s = lsq_linear(terms / seconds[:, None], np.ones(len(steps)),
                                              bounds=([SMALLEST_RATIO, 0, 0], np.inf)).x.tolist()
    small, *_, large = sorted(runs, key=lambda run: run["tokens"])
    token_gib = max((large["peak_gib"] - small["peak_gib"]) / max(large["tokens"] - small["tokens"], 1), 0.0)
    base = max(small["peak_gib"] - token_gib * small["tokens"] - 4 * FP32 * parameters / GIB, 0.0)
    return Engine(ratio, micro_batch_s, step_s, base, token_gib)


def _rows(path: Path) -> list[dict[str, str]]:
    with open(path, newline="") as file:
        return list(csv.DictReader(file))


# ---------------------------------------------------------------------- links

def measure_links(devices: int, results: Path) -> tuple[tuple[str, int, LinkCost], ...]:
    """Latency and bandwidth of each operation in groups of every size that divides the devices."""
    found = []
    for count in (number for number in range(2, devices + 1) if devices % number == 0):
        links = next((entry["links"] for entry in read_verifications(results)
                      if entry["hardware"] == hardware_name(count) and entry["devices"] == count and entry["links"]),
                     None) or _measured(count, "verification.links")
        everyone = list(range(count))
        for fit in links["fits"]:
            if fit["ranks"] == everyone or fit["operation"] == "send/receive" and fit["ranks"] == [0, 1]:
                cost = LinkCost(fit["latency_s"], fit["bandwidth_bytes_per_s"] or 1e15)
                found.append((fit["operation"], count if fit["ranks"] == everyone else 2, cost))
    return tuple(found)


def measure_overlap(devices: int) -> float:
    return _measured(devices, "prediction.overlap")["slowdown"] if devices > 1 else 1.0


def _measured(devices: int, module: str) -> dict[str, Any]:
    """What a module writes that runs on all devices."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, "measured.json")
        command, environment = torchrun(devices, module, str(path))
        done = subprocess.run(command, env=environment, capture_output=True, text=True)
        if done.returncode:
            raise InputError(f"--num_gpus {devices}: the devices cannot exchange data on this machine; run verify.py")
        return json.loads(path.read_text(encoding="utf-8"))


if __name__ == "__main__":
    with one_line_errors():
        main()
