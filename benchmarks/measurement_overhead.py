"""What measuring costs: pairs of runs with everything measured and with nothing but the clock, in turn.

    python benchmarks/measurement_overhead.py                       # some 25 minutes on two cores
    python benchmarks/measurement_overhead.py --pairs 3 --devices 4 --flags="--model bert-base-uncased --max_steps 100"

Prints the ratio of the two throughputs, on / off, for one process, DDP and the pipeline: each pair's, their median
and their spread. Which of a pair goes first alternates, so that a machine that slows down favours neither.
"""

import argparse
import shlex
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path

import pandas as pd
from tqdm import tqdm

ROOT = Path(__file__).resolve().parents[1]
FLAGS = ("--sample --model tiny --max_seq_length 128 --max_steps 300 --global_batch_size 32 --learning_rate 1e-3 "
         "--cpu_threads 1 --max_eval_examples 32 --eval_steps 1000")


def throughput(command: list[str], measure: str, folder: str) -> float:
    """Samples a second of one run."""
    done = subprocess.run([sys.executable, *command, "--measure", measure, "--output_dir", folder, "--run_name", "run",
                           "--overwrite"], cwd=ROOT, capture_output=True, text=True)
    if done.returncode:
        sys.exit(done.stderr.strip().splitlines()[-1] if done.stderr.strip() else f"{command[0]} failed")
    return float(pd.read_csv(Path(folder) / "run" / "summary.csv")["throughput_samples_per_s"].iloc[0])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0], allow_abbrev=False)
    parser.add_argument("--pairs", type=int, default=5, help="pairs of runs for each strategy")
    parser.add_argument("--devices", type=int, default=2, help="of DDP and the pipeline")
    parser.add_argument("--flags", default=FLAGS, help="of every run")
    options = parser.parse_args()
    flags, several = shlex.split(options.flags), ["--num_gpus", str(options.devices)]
    commands = {"one process": ["bert_baseline.py", "--num_gpus", "1"],
                f"DDP x {options.devices}": ["bert_baseline.py", *several],
                f"pipeline, {options.devices} stages": ["pipeline.py", *several]}
    rates = {(name, measure): [] for name in commands for measure in ("all", "throughput")}
    with tempfile.TemporaryDirectory() as folder, tqdm(total=2 * options.pairs * len(commands), unit="run") as bar:
        for pair in range(options.pairs):
            for name, command in commands.items():
                for measure in ("all", "throughput")[::1 if pair % 2 else -1]:
                    bar.set_description(f"{name}, {measure}")
                    rates[name, measure].append(throughput([*command, *flags], measure, folder))
                    bar.update()
    print("| strategy | samples/s, all measured | samples/s, clock only | ratio of each pair | median | spread |")
    print("|---|--:|--:|---|--:|--:|")
    for name in commands:
        on, off = rates[name, "all"], rates[name, "throughput"]
        ratios = [a / b for a, b in zip(on, off, strict=True)]
        print(f"| {name} | {statistics.median(on):.1f} | {statistics.median(off):.1f} | "
              f"{', '.join(f'{ratio:.3f}' for ratio in ratios)} | {statistics.median(ratios):.3f} | "
              f"{min(ratios):.3f} to {max(ratios):.3f} |")


if __name__ == "__main__":
    main()
