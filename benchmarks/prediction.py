"""How far predictions are off: calibrate, then run every strategy, and compare.

    python -m benchmarks.prediction --devices 1 2 4 --sample --model tiny
    python -m benchmarks.prediction --devices 2 --model FOLDER --train_file train.json --eval_file dev.json

For each number of devices it calibrates first; nothing that a prediction is made from comes from the runs that it
predicts. The runs are the settings that verify.py proves equal. A run whose machine drifted by 5 % or more is run
again, once, and the steadier one counts. A prediction holds for the speed that the machine had while it was calibrated:
what a run's fixed matrix products took tells how much slower the machine was during the run, and errors are those of
the prediction at that speed. With --output_dir it keeps calibrations and runs, for `plots.py` to show. With --errors it
adds a row a run to a table such as prediction/errors.csv, from which `plan.py` takes its bands.
"""

import csv
import statistics
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path

from tqdm import tqdm

from benchmarks.drawing import run, summary
from prediction.calibration import NAME, read_calibration
from prediction.engine_costs import product_s
from prediction.planning import covering
from prediction.predict import predict
from prediction.setting import setting_of
from verification.machine import hardware_name
from verification.settings import Setting, batch_flags, settings
from workload.arguments import Arguments, parse_arguments
from workload.cores import usable_cores
from workload.errors import one_line_errors
from workload.flag_groups import Parser
from workload.launch.gpus import visible_gpus
from workload.models.tensor_plans import fitting_groups
from workload.tasks.registry import open_task
from workload.tasks.task import Task

MOST_DRIFT_PCT, TRIES = 5.0, 2
LEFT_OUT = ("DataParallel", "offload", "HF Trainer ZeRO")  # they have no recipe


def main() -> None:
    parser = Parser()
    parser.add_argument("--devices", type=int, nargs="+", default=[1, 2])
    parser.add_argument("--steps", type=int, default=40, help="of each run, of which a quarter is not timed")
    parser.add_argument("--output_dir", type=Path, help="keep calibrations and runs here (default: nowhere)")
    parser.add_argument("--errors", type=Path, metavar="FILE.csv", help="add a row a run to this table")
    options, flags = parser.parse_known_args()
    flags += ["--precision", "fp32"]
    task = open_task(parse_arguments(Arguments, flags))
    with tempfile.TemporaryDirectory() as temporary:
        folder = options.output_dir or Path(temporary)
        matrix = {devices: [each for each in settings(devices, task.config.num_hidden_layers, visible_gpus() > 0,
                                                      fitting_groups(task.config, devices),
                                                      task.max_length)
                            if not any(name in each.name for name in LEFT_OUT)] for devices in options.devices}
        lines: list[Outcome] = []
        with tqdm(total=sum(1 + len(each) for each in matrix.values()), unit="part") as bar:
            for devices, several in matrix.items():
                lines += predict_and_run(devices, several, flags, options.steps, folder, bar)
                if options.errors:
                    add_errors(options.errors, lines[-len(several):], task)
    report(lines)


@dataclass(frozen=True)
class Outcome:
    """A run beside its prediction.

    Args:
        slower: how many times as long matrix products took during the run as during the calibration; 1 if unknown.
    """

    devices: int
    name: str
    predicted: float  # samples/s
    measured: float
    predicted_gib: float
    gib: float
    drift_pct: float
    slower: float

    @property
    def error_pct(self) -> float:
        """At the speed that the machine had during the run."""
        return 100 * (self.predicted / self.slower / self.measured - 1)

    @property
    def uncorrected_error_pct(self) -> float:
        return 100 * (self.predicted / self.measured - 1)

    @property
    def memory_error_pct(self) -> float:
        return 100 * (self.predicted_gib / self.gib - 1)

    @property
    def is_steady(self) -> bool:
        return abs(self.drift_pct) < MOST_DRIFT_PCT


def predict_and_run(devices: int, several: list[Setting], flags: list[str], steps: int, folder: Path,
                    bar: tqdm) -> list[Outcome]:
    """Calibrate, then run."""
    place = folder / f"calibration_{devices}"
    threads = str(max(usable_cores() // devices, 1))
    run(["-m", "prediction.calibrate", "--num_gpus", str(devices), "--output_dir", str(place), *flags])
    bar.update()
    calibration, found = read_calibration(place / NAME), []
    for number, setting in enumerate(several):
        command = [setting.script, *flags, *setting.flags, *batch_flags(devices), "--max_steps", str(steps),
                   "--max_eval_examples", "4", "--noise_scale_steps", "0", "--cpu_threads", threads, "--output_dir",
                   str(folder)]
        row, drift, product = run_steadily(command, folder, f"{devices}-{number}")
        what = setting_of(row)
        assert what is not None, f"there is no recipe for {row['strategy']}"
        expected = predict(calibration, what)
        found.append(Outcome(devices, setting.name, expected.throughput_samples_per_s,
                             float(row["throughput_samples_per_s"]), expected.peak_memory_gib,
                             float(row["peak_memory_gib"]), drift,
                             product / calibration.facts["matrix_product_s"] if product else 1.0))
        bar.update()
    return found


def run_steadily(command: list[str], folder: Path, name: str) -> tuple[dict[str, str], float, float | None]:
    """The first run on a machine that did not drift, or of `TRIES` the one on which it drifted least.

    Returns:
        Its summary, its drift in percent, and the seconds of its matrix products.
    """
    found: list[tuple[dict[str, str], float, float | None]] = []
    for number in range(1, TRIES + 1):
        place = folder / f"{name}-{number}"
        run([*command, "--run_name", place.name])
        row = summary(place)
        found.append((row, float(row["machine_drift_pct"] or "inf"), product_s(place)))
        if abs(found[-1][1]) < MOST_DRIFT_PCT:
            break
    return min(found, key=lambda each: abs(each[1]))


def add_errors(path: Path, outcomes: list[Outcome], task: Task) -> None:
    """Append to a table, in percent: positive where the prediction was too high."""
    is_new = not path.exists()
    with open(path, "a", newline="", encoding="utf-8") as file:
        writer = csv.writer(file)
        if is_new:
            writer.writerow(["date", "hardware", "model", "task", "devices", "cores", "setting",
                             "throughput_error_pct", "uncorrected_error_pct", "memory_error_pct", "machine_drift_pct",
                             "machine_slower_pct", "is_steady"])
        for each in outcomes:
            writer.writerow([time.strftime("%Y-%m-%d", time.gmtime()), hardware_name(each.devices),
                             Path(task.model_name).name, task.name, each.devices, usable_cores(), each.name,
                             round(each.error_pct, 1), round(each.uncorrected_error_pct, 1),
                             round(each.memory_error_pct, 1), round(each.drift_pct, 1),
                             round(100 * (each.slower - 1), 1), each.is_steady])


def report(outcomes: list[Outcome]) -> None:
    """Print a table of all runs, then what the errors come to."""
    print("| devices | setting | predicted samples/s | measured | error % | at the run's speed % | predicted GiB | "
          "measured | error % | drift % |")
    print("|--:|---|--:|--:|--:|--:|--:|--:|--:|--:|")
    for each in outcomes:
        print(f"| {each.devices} | {each.name} | {each.predicted:.1f} | {each.measured:.1f} | "
              f"{each.uncorrected_error_pct:+.1f} | {each.error_pct:+.1f} | "
              f"{each.predicted_gib:.3f} | {each.gib:.3f} | {each.memory_error_pct:+.1f} | {each.drift_pct:.1f} |")
    for devices in dict.fromkeys(each.devices for each in outcomes):
        rows = [each for each in outcomes if each.devices == devices]
        steady = [each for each in rows if each.is_steady]
        if not steady:
            print(f"{devices} devices: the machine drifted in every run")
            continue
        errors = [abs(each.error_pct) for each in steady]
        uncorrected = statistics.median(abs(each.uncorrected_error_pct) for each in steady)
        # Measured one after the other, the runs are compared at one speed.
        winner = max(rows, key=lambda each: each.predicted)
        best = max(each.measured * each.slower for each in rows)
        print(f"{devices} devices, {len(steady)} of {len(rows)} runs without drift: median error "
              f"{statistics.median(errors):.1f} %, nine in ten within "
              f"{covering(errors):.1f} % (median without correction for speed "
              f"{uncorrected:.1f} %); memory: median "
              f"{statistics.median(abs(each.memory_error_pct) for each in steady):.1f} %; predicted winner "
              f"{winner.name}, {100 * winner.measured * winner.slower / best:.1f} % of the best measured")


if __name__ == "__main__":
    with one_line_errors():
        main()
