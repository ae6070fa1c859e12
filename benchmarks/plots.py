"""Seconds that `plots.py` takes for 100, 1,000, 2,000 and 10,000 runs.

    python -m benchmarks.plots
    python -m benchmarks.plots --runs 100 2000

The runs are copies of those in results/reference: of each one after the other, with the next seed for each round of
copies, and with the measured values of a round changed by 2 % at random. So the settings, and with them the tables and
figures, are those of results/reference however many runs there are.
"""

import csv
import itertools
import os
import random
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from benchmarks.drawing import ROOT
from workload.flag_groups import Parser

MEASURED = ["throughput_samples_per_s", "throughput_tokens_per_s", "runtime_s", "validation_loss", "epoch_s", "f1",
            "goodput_samples_per_s", "statistical_efficiency", "peak_memory_gib"]


def copy_run(source: Path, target: Path, seed: int, chance: random.Random) -> None:
    """A run folder with a summary of its own; its other files are links."""
    target.mkdir(parents=True)
    for path in source.iterdir():
        if path.name != "summary.csv":
            (target / path.name).symlink_to(path)
    with open(source / "summary.csv", newline="", encoding="utf-8") as file:
        [row] = csv.DictReader(file)
    row |= {name: str(float(row[name]) * chance.lognormvariate(0, 0.02)) for name in MEASURED if row.get(name)}
    with open(target / "summary.csv", "w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, row)
        writer.writeheader()
        writer.writerow(row | {"seed": str(seed)})


def main() -> None:
    parser = Parser()
    parser.add_argument("--runs", type=int, nargs="+", default=[100, 1000, 2000, 10_000])
    options = parser.parse_args()
    sources = sorted(path.parent for path in (ROOT / "results" / "reference").rglob("summary.csv"))
    print("| runs | figures | wall s | processor s |\n|--:|--:|--:|--:|")
    for count in options.runs:
        with tempfile.TemporaryDirectory() as name:
            folder, chance = Path(name), random.Random(0)
            for number, source in zip(range(count), itertools.cycle(sources), strict=False):
                copy_run(source, folder / "runs" / str(number), number // len(sources), chance)
            before, began = resource.getrusage(resource.RUSAGE_CHILDREN), time.perf_counter()
            done = subprocess.run([sys.executable, "plots.py", str(folder / "runs"), "--output_dir", str(folder)],
                                  cwd=ROOT, stdout=subprocess.DEVNULL)
            seconds, after = time.perf_counter() - began, resource.getrusage(resource.RUSAGE_CHILDREN)
            if done.returncode:
                sys.exit(done.returncode)
            busy = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
            print(f"| {count:,} | {len(os.listdir(folder / 'figures'))} | {seconds:.1f} | {busy:.1f} |", flush=True)


if __name__ == "__main__":
    main()
