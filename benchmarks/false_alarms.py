"""How often does the comparison mark a difference where nothing differs, and how often one that is there?

    python -m benchmarks.false_alarms        # 36 runs of some seconds each; the same command resumes

All runs are of one strategy: 12 for each of 3 seeds, one process, a tiny model, the embedded sample. A thousand times
the runs of each seed are given labels at random, as if they were strategies, and compared as plots.py compares: once
with 12 labels, once with DDP twice a seed as experiments/ run it. Then one label is made slower by 5 and by 10 %.
"""

from pathlib import Path
from typing import NamedTuple

import numpy as np
import pandas as pd
from tqdm import tqdm

from benchmarks.drawing import run
from comparison.changes import Changes, Runs, find_changes, runs_of
from comparison.runs import find_runs
from comparison.study import DRIFT, Study
from plots import STUDY
from workload.flag_groups import Parser

SEEDS, RUNS = 3, 12  # runs of each seed
FLAGS = ["--sample", "--model", "tiny", "--max_seq_length", "64", "--global_batch_size", "16", "--max_steps", "60",
         "--eval_steps", "60", "--max_eval_examples", "16", "--cpu_threads", "1", "--num_gpus", "1"]
RATES = ["throughput_samples_per_s", "throughput_tokens_per_s", "goodput_samples_per_s"]
SECONDS = ["runtime_s", "epoch_s"]  # epoch_s is empty in runs that are shorter than an epoch


class Outcome(NamedTuple):
    """What became of many relabellings."""

    result: float  # share of tables `Result` with a mark
    tables: float  # share of all tables with a mark
    found: float  # share of relabellings in which the slower label's throughput is marked


def labels(random: np.random.Generator, seed: np.ndarray, are_reruns: bool) -> np.ndarray:
    """A random label for each run, drawn within its seed. 0 is DDP; with reruns, two runs of each seed have it.

    Args:
        seed: (runs,), numbers from 0; equally many runs of each.
    """
    count = np.bincount(seed)[0]
    names = np.maximum(np.arange(count) - are_reruns, 0)
    drawn = np.empty(len(seed), int)
    for number in np.unique(seed):
        drawn[seed == number] = random.permutation(names)
    return drawn


def compare_labels(runs: Runs, row: np.ndarray, slowdown: float, study: Study) -> Changes:
    """The changes of all labels against label 0, the last label's runs taking (1 + slowdown) times as long."""
    factors = np.array([1 / (1 + slowdown) if column in RATES else 1 + slowdown if column in SECONDS else 1
                        for column in study.measured])
    values = np.where((row == row.max())[:, None], runs.values * factors, runs.values)
    count = row.max() + 1
    baseline = np.where(np.arange(count) > 0, 0, -1)
    labelled = Runs(values, row, runs.seed, runs.has_moved)
    return find_changes(labelled, baseline, np.ones(count, bool), np.zeros(count), study)


def relabel(runs: Runs, relabellings: int, are_reruns: bool, slowdown: float) -> Outcome:
    """The outcome of so many relabellings, which are the same in every call."""
    random = np.random.default_rng(0)
    tables = [[STUDY.measured.index(column) for column in family] for family in STUDY.families]
    rate = STUDY.measured.index(RATES[0])
    seen = []
    for _ in range(relabellings):
        found = compare_labels(runs, labels(random, runs.seed, are_reruns), slowdown, STUDY)
        marks = [found.is_marked[:, table].any() for table in tables if found.n[:, table].any()]
        seen.append((marks[0], np.mean(marks), found.is_marked[-1, rate]))
    return Outcome(*np.mean(seen, axis=0))


def read(folder: Path) -> Runs:
    """The finished runs below a folder as one row."""
    table = pd.DataFrame([found.summary for found in find_runs(folder, STUDY)])
    return runs_of(table.reindex(columns=["seed", *STUDY.measured, DRIFT]).assign(row=0), STUDY)


def main() -> None:
    parser = Parser()
    parser.add_argument("--folder", type=Path, default=Path("results/false_alarms"), help="where the runs go")
    parser.add_argument("--relabellings", type=int, default=1000)
    options = parser.parse_args()
    kinds = [(are_reruns, slowdown) for are_reruns in (False, True) for slowdown in (0.0, 0.05, 0.1)]
    outcomes = []
    with tqdm(total=SEEDS * RUNS + len(kinds)) as progress:
        for seed in range(SEEDS):
            for number in range(RUNS):
                name = f"seed{seed}-{number}"
                if not (options.folder / name / "summary.csv").exists():
                    run(["bert_baseline.py", *FLAGS, "--seed", str(seed), "--output_dir", str(options.folder),
                         "--run_name", name, "--overwrite"])
                progress.update()
        runs = read(options.folder)
        for are_reruns, slowdown in kinds:
            outcomes.append(relabel(runs, options.relabellings, are_reruns, slowdown))
            progress.update()
    logs = np.log(runs.values[:, STUDY.measured.index(RATES[0])])
    within = np.sqrt(np.mean([logs[runs.seed == seed].var(ddof=1) for seed in range(SEEDS)]))
    print(f"{options.relabellings} relabellings of {len(logs)} runs; throughput of one seed's runs varies by "
          f"{100 * within:.2g} % (standard deviation)")
    print("| DDP runs a seed | one label slower by % | marks in the first table: % | in any one table: % | the slower "
          "label's throughput marked: % |\n|--:|--:|--:|--:|--:|")
    for (are_reruns, slowdown), outcome in zip(kinds, outcomes, strict=True):
        shares = " | ".join(f"{100 * share:.1f}" for share in outcome)
        print(f"| {1 + are_reruns} | {100 * slowdown:g} | {shares} |")


if __name__ == "__main__":
    main()
