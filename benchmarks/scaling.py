"""DDP on 2 processes and a pipeline of 2 stages, against two processes that know nothing of each other.

    python -m benchmarks.scaling --model FOLDER --file squad.json

Two unconnected trainings at the same time are what the machine can do, its shared memory and caches included: on many a
machine less than twice one alone. DDP should reach it; a pipeline m / (m + 1) of it, the schedule's share of busy
time with m micro-batches on 2 stages. All train on the same questions with the same global batch and micro-batches,
each with one thread, in turn.
"""

import statistics
import subprocess
import sys
import tempfile
from pathlib import Path

from tqdm import tqdm

from benchmarks.drawing import ROOT, draw, run, summary
from workload.flag_groups import Parser

PIPELINES = {"pipeline.py", "torch_pipeline.py"}


def unconnected(flags: list[str], folder: Path, name: str) -> float:
    """Samples/s of two unconnected processes together."""
    both = [subprocess.Popen([sys.executable, "bert_baseline.py", *flags, "--num_gpus", "1", "--run_name",
                              f"{name}-{number}"], cwd=ROOT, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
            for number in range(2)]
    codes = [process.wait() for process in both]
    if any(codes):
        sys.exit("error: one of the unconnected processes failed")
    return sum(float(summary(folder / f"{name}-{number}")["throughput_samples_per_s"]) for number in range(2))


def main() -> None:
    parser = Parser()
    parser.add_argument("--model", required=True, help="Hub name or local folder of a BERT")
    parser.add_argument("--file", required=True, help="a SQuAD file, to draw questions from")
    parser.add_argument("--rounds", type=int, default=3, help="of all trainings; each round has a seed of its own")
    parser.add_argument("--steps", type=int, default=13, help="of each training, of which a quarter is not timed")
    parser.add_argument("--pipelines", nargs="*", default=["pipeline.py"], choices=PIPELINES)
    parser.add_argument("--micro_batches", type=int, default=8, help="of a step; the global batch is 64")
    options = parser.parse_args()
    size, share = 64 // options.micro_batches, options.micro_batches / (options.micro_batches + 1)
    ratios: dict[str, list[float]] = {}
    lines = []
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        files = draw(options.file, folder, 64 * options.steps, 16, seed=0)
        for seed in tqdm(range(options.rounds), unit="round"):
            flags = [*files, "--model", options.model, "--max_steps", str(options.steps), "--eval_steps",
                     str(options.steps), "--precision", "fp32", "--cpu_threads", "1", "--seed", str(seed),
                     "--output_dir", temporary]
            micro = ["--micro_batch_size", str(size)]
            bound = unconnected([*flags, *micro], folder, f"unconnected{seed}")
            lines.append(f"| {seed} | two unconnected | {bound:.2f} | | | |")
            several = {"bert_baseline.py": [*micro, "--num_gpus", "2"]} | dict.fromkeys(
                options.pipelines, ["--num_gpus", "2", "--micro_batches", str(options.micro_batches)])
            for script, more in several.items():
                name = f"{script}{seed}"
                run([script, *flags, *more, "--run_name", name])
                row = summary(folder / name)
                rate = float(row["throughput_samples_per_s"])
                ratio = rate / bound / (share if script in PIPELINES else 1)
                ratios.setdefault(script, []).append(ratio)
                watched = [f"{float(row[name]):.1f}" if row[name] else "" for name in ("bubble_pct", "imbalance_pct")]
                lines.append(f"| {seed} | {script} | {rate:.2f} | {ratio:.3f} | {' | '.join(watched)} |")
    print(f"global batch 64, micro-batches of {size}; of the bound: of the two unconnected, pipelines of "
          f"{options.micro_batches}/{options.micro_batches + 1} of it")
    print("| seed | | samples/s | of the bound | idle time % | stages' imbalance % |")
    print("|--:|---|--:|--:|--:|--:|", *lines, sep="\n")
    for script, values in ratios.items():
        print(f"{script}: median {statistics.median(values):.3f}, {min(values):.3f} to {max(values):.3f}")


if __name__ == "__main__":
    main()
