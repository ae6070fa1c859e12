"""How far predictions are off: calibrate, then run every strategy, and compare.

    python -m benchmarks.prediction --devices 1 2 4 --sample --model tiny
    python -m benchmarks.prediction --devices 2 --model FOLDER --train_file train.json --eval_file dev.json

For each number of devices it calibrates first; nothing that a prediction is made from comes from the runs that it
predicts. The runs are the settings that verify.py proves equal. A run whose machine drifted by 5 % or more is run
again, up to three times. With --output_dir it keeps calibrations and runs, for `plots.py` to show.
"""

import argparse
import math
import statistics
import tempfile
from collections import defaultdict
from pathlib import Path

from tqdm import tqdm

from benchmarks.drawing import run, summary
from prediction.calibration import NAME, read_calibration
from prediction.predict import predict
from prediction.setting import setting_of
from verification.settings import Setting, batch_flags, settings
from workload.arguments import Arguments, parse_arguments
from workload.cores import usable_cores
from workload.errors import one_line_errors
from workload.launch.gpus import visible_gpus
from workload.models.tensor_plans import fitting_groups
from workload.tasks.registry import open_task

MOST_DRIFT_PCT, TRIES = 5.0, 3
LEFT_OUT = ("DataParallel", "offload", "HF Trainer ZeRO")  # they have no recipe


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0], allow_abbrev=False)
    parser.add_argument("--devices", type=int, nargs="+", default=[1, 2])
    parser.add_argument("--steps", type=int, default=40, help="of each run, of which a quarter is not timed")
    parser.add_argument("--output_dir", type=Path, help="keep calibrations and runs here (default: nowhere)")
    options, flags = parser.parse_known_args()
    flags += ["--precision", "fp32"]
    task = open_task(parse_arguments(Arguments, flags))
    groups = fitting_groups(task.config, max(options.devices))
    with tempfile.TemporaryDirectory() as temporary:
        folder = options.output_dir or Path(temporary)
        matrix = {devices: [each for each in settings(devices, task.config.num_hidden_layers, visible_gpus() > 0,
                                                      [group for group in groups if devices % group == 0],
                                                      task.max_length)
                            if not any(name in each.name for name in LEFT_OUT)] for devices in options.devices}
        lines = []
        with tqdm(total=sum(1 + len(each) for each in matrix.values()), unit="part") as bar:
            for devices, several in matrix.items():
                lines += predict_and_run(devices, several, flags, options.steps, folder, bar)
    report(lines)


def predict_and_run(devices: int, several: list[Setting], flags: list[str], steps: int, folder: Path,
                    bar: tqdm) -> list[tuple]:
    """Calibrate, then run: of each setting its devices, name, predicted and measured samples/s and memory, and drift.

    Returns:
        (devices, name, predicted samples/s, measured, predicted GiB, measured, drift in percent)
    """
    place = folder / f"calibration_{devices}"
    threads = str(max(usable_cores() // devices, 1))
    run(["-m", "prediction.calibrate", "--num_gpus", str(devices), "--output_dir", str(place), *flags])
    bar.update()
    calibration, found = read_calibration(place / NAME), []
    for number, setting in enumerate(several):
        command = [setting.script, *flags, *setting.flags, *batch_flags(devices), "--max_steps", str(steps),
                   "--max_eval_examples", "4", "--noise_scale_steps", "0", "--cpu_threads", threads, "--output_dir",
                   str(folder)]
        row, drift = run_steadily(command, folder, f"{devices}-{number}")
        what = setting_of(row)
        assert what is not None, f"there is no recipe for {row['strategy']}"
        expected = predict(calibration, what)
        found.append((devices, setting.name, expected.throughput_samples_per_s, float(row["throughput_samples_per_s"]),
                      expected.peak_memory_gib, float(row["peak_memory_gib"]), drift))
        bar.update()
    return found


def run_steadily(command: list[str], folder: Path, name: str, tries: int = TRIES) -> tuple[dict[str, str], float]:
    """The summary of a run on a machine that did not drift, or of the last of so many tries; its drift in percent."""
    run([*command, "--run_name", f"{name}-{tries}"])
    row = summary(folder / f"{name}-{tries}")
    drift = float(row["machine_drift_pct"] or "nan")
    if abs(drift) < MOST_DRIFT_PCT or tries == 1:
        return row, drift
    return run_steadily(command, folder, name, tries - 1)


def report(lines: list[tuple]) -> None:
    """Print a table of all runs, then what the errors come to."""
    print("| devices | setting | predicted samples/s | measured | error % | predicted GiB | measured | error % | "
          "drift % |")
    print("|--:|---|--:|--:|--:|--:|--:|--:|--:|")
    speed, memory, by_devices = defaultdict(list), defaultdict(list), defaultdict(list)
    for devices, name, predicted, measured, predicted_gib, gib, drift in lines:
        error = 100 * (predicted / measured - 1)
        of_memory = 100 * (predicted_gib / gib - 1)
        print(f"| {devices} | {name} | {predicted:.1f} | {measured:.1f} | {error:+.1f} | {predicted_gib:.3f} | "
              f"{gib:.3f} | {of_memory:+.1f} | {drift:.1f} |")
        by_devices[devices].append((predicted, measured, name))
        if abs(drift) < MOST_DRIFT_PCT:
            speed[devices].append(abs(error))
            memory[devices].append(abs(of_memory))
    for devices, rows in by_devices.items():
        errors, winner, best = sorted(speed[devices]), max(rows), max(measured for _, measured, _ in rows)
        if not errors:
            print(f"{devices} devices: the machine drifted in every run")
            continue
        print(f"{devices} devices, {len(errors)} of {len(rows)} runs without drift: median error "
              f"{statistics.median(errors):.1f} %, nine in ten within "
              f"{errors[math.ceil(0.9 * len(errors)) - 1]:.1f} %; memory: median "
              f"{statistics.median(memory[devices]):.1f} %; predicted winner {winner[2]}, "
              f"{100 * winner[1] / best:.1f} % of the best measured")


if __name__ == "__main__":
    with one_line_errors():
        main()
