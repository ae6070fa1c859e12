"""Measure on this machine what predictions are made from: layers, engines, links, memory.

    python -m prediction.calibrate --num_gpus 2 --sample --model tiny                # a laptop, without data
    python -m prediction.calibrate --num_gpus 4                                      # bert-base-uncased on SQuAD v2

Each layer goes forward and backward by itself at several sizes. Then every strategy's script trains some steps on one
device, as many scripts at a time as there are devices, so that memory and caches are as busy as in a run on all of
them; and on all devices, which shows what its exchanges cost beyond their links. Links are read from verification.json,
if verify.py has measured them here. Writes calibration.json to the results folder.
"""

import argparse
import statistics
import tempfile
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import psutil
import torch
from tqdm import tqdm

from measurement.environment import GIB, source_digest, versions
from measurement.machine_state import product_seconds
from prediction.calibration import NAME, Calibration
from prediction.costs import FP32, Batch, Layer
from prediction.engine_costs import (
    ENGINES,
    SHAPES,
    exchange_settings,
    fit_engine,
    measure_engines,
    measure_exchanges,
)
from prediction.layer_times import measure_layers, measure_update
from prediction.links import LinkCost
from verification.machine import hardware_name
from verification.proof import measured
from verification.records import read_verifications
from workload.argument_checks import divisors
from workload.arguments import Arguments, parse_arguments
from workload.atomic_files import write_json
from workload.batches import PAD_TO_MULTIPLE_OF
from workload.digests import content_of
from workload.errors import InputError, one_line_errors
from workload.flag_groups import Parser
from workload.job import Job, prepare
from workload.launch.processes import usable_cores
from workload.launch.start import devices_asked_for
from workload.models.families import FAMILIES
from workload.models.layers import ordered_layers, shared_weight
from workload.models.tensor_plans import fitting_groups
from workload.pipelines.pieces import step_cost

KEPT_LENGTHS = 2000


def main() -> None:
    parser = Parser()
    parser.add_argument("--num_gpus", type=int, help="devices (default: all visible GPUs; without GPUs, 2 processes)")
    parser.add_argument("--output_dir", type=Path, default=Path("results"),
                        help="where calibration.json goes (default: %(default)s)")
    options, asked = parser.parse_known_args()
    parse_arguments(Arguments, asked)  # refuses wrong flags before anything starts; --device cpu takes effect
    devices = devices_asked_for(options.num_gpus, without_gpus=2)
    with tempfile.TemporaryDirectory() as folder:
        threads = str(max(usable_cores() // devices, 1))
        flags = ["--cpu_threads", threads, *without_duration(asked)]  # the last one counts: the user's, if given
        batch = str(max(count * size for count, size in SHAPES))
        job = prepare("calibrate", parse_arguments(Arguments, [
            *flags, "--num_gpus", "1", "--output_dir", folder, "--global_batch_size", batch]), 1)
        family = FAMILIES.get(job.task.config.model_type)
        if not (family and family.layers):
            known = ", ".join(name for name, each in FAMILIES.items() if each.layers)
            raise InputError(f"--model {job.task.model_name}: its type, {job.task.config.model_type!r}, has no list of "
                             f"layers to measure; use a model of type {known}")
        groups = tensor_groups(job)
        several = exchange_settings(devices, job.task.config.num_hidden_layers, groups)
        with tqdm(total=2 + len(SHAPES) * len(ENGINES) + devices + len(several), unit="part",
                  desc="calibration") as bar:
            calibration = calibrate(job, flags, devices, options.output_dir, bar)
    options.output_dir.mkdir(parents=True, exist_ok=True)
    calibration = replace(calibration, facts={**calibration.facts, "flags": asked})
    write_json(options.output_dir / NAME, calibration.as_json())
    print(f"Wrote {options.output_dir / NAME}")
    if calibration.warning:
        print(calibration.warning)


def without_duration(flags: list[str]) -> list[str]:
    """A run's flags without those that say how long it trains: an engine's run has steps of its own."""
    parser = argparse.ArgumentParser(add_help=False, allow_abbrev=False)
    parser.add_argument("--epochs")
    parser.add_argument("--max_steps")
    return parser.parse_known_args(flags)[1]


def calibrate(job: Job, flags: list[str], devices: int, results: Path, bar: tqdm) -> Calibration:
    """Measure everything, one part of the bar at a time."""
    task, device = job.task, job.processes.device
    lengths = [int(length) for length in task.samples("train")["length"][:KEPT_LENGTHS]]
    model = job.build_model(device).train()
    modules = ordered_layers(model)
    layers, tied_bytes = describe_layers(modules)
    products = [product_seconds([device])]
    passes = measure_layers(job, list(modules.values()), layers)
    update = measure_update(job, list(model.parameters()))
    products.append(product_seconds([device]))
    bar.update()
    del model, modules
    parameters = round(sum(layer.count for layer in layers))
    largest = Batch(*SHAPES[-1], round(statistics.mean(lengths)))
    step_s = update * parameters + sum(passes[layer.kind][kind].seconds(largest) for layer in layers
                                       for kind in ("forward", "backward"))
    runs = measure_engines(flags, devices, step_s, bar)
    # The machine's speed changes within minutes: all that is measured is brought to the speed of the median run.
    known = [run.product_s for several in runs.values() for run in several if run.product_s]
    speed = statistics.median(known or products)
    slower = speed / statistics.mean(products)
    passes = {kind: {name: cost.slower(slower) for name, cost in costs.items()} for kind, costs in passes.items()}
    update *= slower
    engines = {name: fit_engine(passes, update * parameters, parameters, layers,
                                [run.at_speed(speed) for run in several]) for name, several in runs.items()}
    links = measure_links(devices, results)
    bar.update()
    slowdown = measure_overlap(devices)
    bar.update()
    digests = content_of(task)
    facts = {"date": time.strftime("%Y-%m-%d", time.gmtime()), "hardware": hardware_name(devices),
             "source_digest": source_digest(), **versions(), "family": task.config.model_type,
             "model": task.model_name, "model_sha256": digests["model"], "data_sha256": digests["data"]["train"],
             "task": task.name, "max_seq_length": task.max_length, "precision": job.precision,
             "cpu_threads": job.processes.cpu_threads, "matrix_product_s": speed}
    cores = devices if device.type == "cuda" else usable_cores()
    value_bytes = FP32 if job.precision == "fp32" else FP32 // 2
    memory = (torch.cuda.get_device_properties(device).total_memory if device.type == "cuda" else
              psutil.virtual_memory().total) / GIB
    watts = [run.power_w for several in runs.values() for run in several if run.power_w]
    made = Calibration(facts, devices, cores, layers, tied_bytes, task.config.hidden_size, value_bytes, tuple(lengths),
                       tensor_groups(job), memory, PAD_TO_MULTIPLE_OF[device.type], task.max_length, passes, update,
                       engines, links, slowdown, scatters=device.type == "cuda",
                       power_w=statistics.mean(watts) if watts else None)
    return measure_exchanges(made, flags, step_s, bar)


def tensor_groups(job: Job) -> tuple[int, ...]:
    """Sizes of groups that the model's layers can be split over."""
    config = job.task.config
    return tuple(fitting_groups(config, config.num_attention_heads)) if FAMILIES[config.model_type].tensor_plan else ()


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


# ---------------------------------------------------------------------- links

def measure_links(devices: int, results: Path) -> tuple[tuple[str, int, LinkCost], ...]:
    """Latency and bandwidth of each operation in groups of every size that divides the devices."""
    found = []
    for count in divisors(devices)[1:]:
        links = next((entry["links"] for entry in read_verifications(results)
                      if entry["hardware"] == hardware_name(count) and entry["devices"] == count and entry["links"]),
                     None) or measured(count, "verification.links", quiet=True)
        everyone = list(range(count))
        for fit in links["fits"]:
            if fit["ranks"] == everyone or fit["operation"] == "send/receive" and fit["ranks"] == [0, 1]:
                cost = LinkCost(fit["latency_s"], fit["bandwidth_bytes_per_s"] or 1e15)
                found.append((fit["operation"], count if fit["ranks"] == everyone else 2, cost))
    return tuple(found)


def measure_overlap(devices: int) -> float:
    return measured(devices, "prediction.overlap", quiet=True)["slowdown"] if devices > 1 else 1.0


if __name__ == "__main__":
    with one_line_errors():
        main()
