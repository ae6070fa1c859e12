"""Predict which strategy is the fastest on N devices, how sure that is, and what limits it.

    python plan.py --task squad_v2 --sample --model tiny --devices 1 2 4                # a laptop, without data
    python plan.py --model bert-base-uncased --train_file train.json --eval_file dev.json --devices 1 2 4 8
    python plan.py --calibration results/calibration.json --devices 8 64 --link nvlink-4 infiniband-ndr

Predictions come from a short calibration on the devices at hand (see docs/prediction.md), which is made first if the
results folder has none for this model, task and code. Every setting that the scripts can run is tried: micro-batches,
stages, schedules, groups. Prints the best of each strategy, and writes plan.md, plan.csv (a row a setting) and figures.
"""

import argparse
import subprocess
import sys
from pathlib import Path

from tqdm import tqdm

from prediction.calibration import NAME, Calibration, read_calibration
from prediction.links import Links, links_of
from prediction.plan_report import Wanted, draw, plan_text, write_rows
from prediction.planning import Plan, all_settings, plan, read_band
from workload.argument_checks import divisors
from workload.errors import InputError, one_line_errors
from workload.flag_groups import Parser

PROJECT = Path(__file__).resolve().parent


def parse() -> tuple[argparse.Namespace, list[str]]:
    parser = Parser()
    parser.add_argument("--devices", type=int, nargs="+", help="numbers of devices to plan for "
                        "(default: those that were calibrated)")
    parser.add_argument("--global_batch_size", type=int, default=64,
                        help="samples per optimizer step, over all devices (default: %(default)s)")
    parser.add_argument("--calibration", type=Path, help="a calibration of another machine (default: this machine's)")
    parser.add_argument("--link", nargs="+", default=[], metavar="LINK",
                        help="links that cannot be measured here, from prediction/links.csv, such as nvlink-4 "
                             "infiniband-ndr")
    parser.add_argument("--devices_per_node", type=int, default=8,
                        help="used where --link names one between nodes (default: %(default)s)")
    parser.add_argument("--device_memory_gib", type=float, help="memory of a device (default: the calibration's)")
    parser.add_argument("--noise_scale", type=float, metavar="SAMPLES",
                        help="gradient noise scale (noise_scale_samples in summary.csv): adds goodput")
    parser.add_argument("--reference_batch_size", type=int, default=16,
                        help="the batch against which statistical efficiency is stated (default: %(default)s)")
    parser.add_argument("--target_samples", type=float, help="length of a training: adds its seconds, price and energy")
    parser.add_argument("--price_per_device_hour", type=float, help="in any currency: adds the price")
    parser.add_argument("--grams_co2_per_kwh", type=float,
                        help="of the electricity: adds CO2; needs GPUs that report their power")
    parser.add_argument("--num_gpus", type=int, help="devices to calibrate with (default: all GPUs, or 2 processes)")
    parser.add_argument("--output_dir", type=Path, default=Path("results"),
                        help="where calibration and plan go (default: %(default)s)")
    parser.epilog = (f"{parser.epilog}\n\nAll other flags, such as --task, --model and --train_file, are those of the "
                     "training scripts.")
    options, flags = parser.parse_known_args()
    if options.calibration and flags:
        parser.error(f"{flags[0]}: a calibration has its model and data; leave out {flags[0]} or --calibration")
    return options, flags


def main() -> None:
    options, flags = parse()
    calibration = read_calibration(options.calibration) if options.calibration else calibrate_here(options, flags)
    devices = sorted(set(options.devices or [calibration.devices]))
    check(options, devices)
    links = links_of(calibration.measured_links, options.link, {size for n in devices for size in divisors(n)},
                     options.devices_per_node)
    plans = make_plans(options, calibration, devices, links)
    wanted = Wanted(options.target_samples, options.price_per_device_hour, options.noise_scale,
                    options.reference_batch_size, options.grams_co2_per_kwh, calibration.power_w,
                    calibration.facts.get("flags", ()))
    text = plan_text(calibration, plans, wanted, options.link)
    print(text)
    options.output_dir.mkdir(parents=True, exist_ok=True)
    (options.output_dir / "plan.md").write_text(text + "\n", encoding="utf-8")
    write_rows(options.output_dir / "plan.csv", plans, wanted)
    figures = draw(options.output_dir / "figures", plans)
    print(f"Wrote plan.md, plan.csv and {figures} figures (figures/plan_*.png) to {options.output_dir}")


def calibrate_here(options: argparse.Namespace, flags: list[str]) -> Calibration:
    """The calibration in the results folder, made now unless it was made for the same things here."""
    from measurement.environment import source_digest, versions  # these import torch
    from verification.machine import hardware_name

    path = options.output_dir / NAME
    if path.is_file():
        found = read_calibration(path)
        here = {"flags": flags, "hardware": hardware_name(found.devices), "source_digest": source_digest()} | versions()
        same = all(found.facts.get(name) == value for name, value in here.items())
        if same and options.num_gpus in (None, found.devices):
            return found
    command = [sys.executable, "-m", "prediction.calibrate", "--output_dir", str(options.output_dir.absolute()),
               *(["--num_gpus", str(options.num_gpus)] if options.num_gpus is not None else []), *flags]
    if code := subprocess.run(command, cwd=PROJECT).returncode:
        sys.exit(code)  # it has said why
    return read_calibration(path)


def check(options: argparse.Namespace, devices: list[int]) -> None:
    """Refuse numbers that make no sense together."""
    batch = options.global_batch_size
    for name in ("global_batch_size", "devices_per_node", "device_memory_gib", "noise_scale", "reference_batch_size",
                 "target_samples", "price_per_device_hour", "grams_co2_per_kwh"):
        if (value := getattr(options, name)) is not None and value <= 0:
            raise InputError(f"--{name} {value}: use a number above 0")
    if devices[0] < 1:
        raise InputError(f"--devices {devices[0]}: use a number above 0")
    if devices[-1] > batch:
        raise InputError(f"--devices {devices[-1]}: a batch of {batch} has no sample for each of them; use "
                         f"--global_batch_size {devices[-1]}")


def make_plans(options: argparse.Namespace, calibration: Calibration, devices: list[int], links: Links) -> list[Plan]:
    """A plan for each number of devices."""
    batch = options.global_batch_size
    total = sum(len(all_settings(calibration, n, batch)) for n in devices)
    with tqdm(total=total, unit="setting", leave=False) as bar:
        return [plan(calibration, n, batch, links, memory_of(options, calibration, n),
                     read_band(calibration.crowding(n) > 1), bar.update) for n in devices]


def memory_of(options: argparse.Namespace, calibration: Calibration, devices: int) -> float:
    """Of a device, in GiB. CPU processes share the machine's."""
    if options.device_memory_gib:
        return options.device_memory_gib
    return calibration.memory_gib / (devices if calibration.shares_memory else 1)


if __name__ == "__main__":
    with one_line_errors():
        main()
