"""What measuring costs: stretches of 16 steps with everything measured and with nothing but the clock, in turn.

    python -m benchmarks.measurement_overhead                       # a quarter of an hour on two cores
    python -m benchmarks.measurement_overhead --pairs 20 --devices 4 --flags="--model bert-base-uncased"

Prints the ratio of the two token rates, on / off, for one process, DDP and the pipeline: the median over pairs of
neighbouring stretches, its 95 % interval, and the middle half of the pairs. Both of a pair come from one run and lie
seconds apart: on a shared machine whole runs differ by more from one to the next than measuring could cost.
"""

import json
import shlex
import tempfile
from pathlib import Path

import numpy as np
from scipy.stats import binom
from tqdm import tqdm

from benchmarks.alternating import STRETCH
from benchmarks.drawing import ROOT, run
from workload.flag_groups import Parser

FLAGS = ("--sample --model tiny --max_seq_length 128 --global_batch_size 32 --learning_rate 1e-3 --cpu_threads 1 "
         "--max_eval_examples 32")


def pair_ratios(script: str, flags: list[str], pairs: int) -> np.ndarray:
    """On / off, of each pair of neighbouring stretches of one run. (pairs,)"""
    steps = STRETCH * (2 * pairs + 2) + 1  # the first pair warms up; a last step ends the last stretch
    with tempfile.TemporaryDirectory() as folder:
        result = Path(folder) / "stretches.json"
        run(["-m", "benchmarks.alternating", *flags, "--max_steps", str(steps), "--eval_steps", str(steps),
             "--noise_scale_steps", str(STRETCH), "--output_dir", folder],
            {"ALTERNATING_SCRIPT": script, "ALTERNATING_RESULT": str(result),
             "PYTHONPATH": str(ROOT)})  # the launcher starts ranks by the file's path
        stretches = json.loads(result.read_text())[2:]
    rate = {}
    for place, stretch in enumerate(stretches):
        rate[place // 2, stretch["measured"]] = stretch["tokens"] / stretch["seconds"]
    return np.array([rate[pair, True] / rate[pair, False] for pair in range(pairs)])


def median_interval(values: np.ndarray) -> tuple[float, float]:
    """A 95 % confidence interval of the median that assumes no distribution: two of the ordered values."""
    low = int(binom.ppf(0.025, len(values), 0.5))
    ordered = np.sort(values)
    return ordered[max(low - 1, 0)], ordered[min(len(values) - low, len(values) - 1)]


def main() -> None:
    parser = Parser()
    parser.add_argument("--pairs", type=int, default=40, help="pairs of stretches for each strategy")
    parser.add_argument("--devices", type=int, default=2, help="of DDP and the pipeline")
    parser.add_argument("--flags", default=FLAGS, help="of every run")
    options = parser.parse_args()
    several = ["--num_gpus", str(options.devices)]
    runs = {"one process": ("bert_baseline", ["--num_gpus", "1"]),
            f"DDP x {options.devices}": ("bert_baseline", several),
            f"pipeline, {options.devices} stages": ("pipeline", several)}
    lines = []
    for name, (script, flags) in (bar := tqdm(runs.items(), unit="run")):
        bar.set_description(name)
        ratios = pair_ratios(script, [*shlex.split(options.flags), *flags], options.pairs)
        low, high = median_interval(ratios)
        quarter, three_quarters = np.quantile(ratios, [0.25, 0.75])
        lines.append(f"| {name} | {np.median(ratios):.3f} | {low:.3f} to {high:.3f} | {quarter:.3f} to "
                     f"{three_quarters:.3f} | {options.pairs} |")
    print("| strategy | median of on / off | its 95 % interval | middle half of the pairs | pairs |")
    print("|---|--:|--:|--:|--:|", *lines, sep="\n")


if __name__ == "__main__":
    main()
