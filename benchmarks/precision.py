"""How much faster bf16 is than fp32 on this machine, and whether it ends with the same validation loss.

    python -m benchmarks.precision --model FOLDER --file squad.json --devices 2

Both train on the same questions of real lengths, in turn; each round has a seed of its own. Where the processor has no
bf16 arithmetic, which is slower there than fp32, it says so and ends.
"""

import statistics
import sys
import tempfile
from pathlib import Path

import torch
from tqdm import tqdm

from benchmarks.drawing import draw, run, summary
from workload.flag_groups import Parser

FLAGS = ("avx512_bf16", "amx_bf16", "sve_bf16", "bf16")  # of /proc/cpuinfo, on x86 and on ARM


def lacks_bf16() -> bool:
    """Whether products in bf16 would be emulated."""
    words = Path("/proc/cpuinfo").read_text(encoding="utf-8").split() if not torch.cuda.is_available() else FLAGS
    return not {*FLAGS} & {*words}


def main() -> None:
    parser = Parser()
    parser.add_argument("--model", required=True, help="Hub name or local folder of a BERT")
    parser.add_argument("--file", required=True, help="a SQuAD file, to draw questions from")
    parser.add_argument("--devices", type=int, default=2, help="of bert_baseline.py")
    parser.add_argument("--rounds", type=int, default=5, help="of both; each round has a seed of its own")
    parser.add_argument("--steps", type=int, default=30, help="of each training, of which a quarter is not timed")
    parser.add_argument("--evaluated", type=int, default=100, help="questions to evaluate on")
    parser.add_argument("--global_batch_size", type=int, default=12)
    options = parser.parse_args()
    if lacks_bf16():
        sys.exit("nothing to measure: this processor has none of " + ", ".join(FLAGS))
    found: dict[str, list[tuple[float, float]]] = {"fp32": [], "bf16": []}
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        files = draw(options.file, folder, options.global_batch_size * options.steps, options.evaluated, seed=0)
        for seed in tqdm(range(options.rounds), unit="round"):
            for precision, rows in found.items():
                name = f"{precision}{seed}"
                run(["bert_baseline.py", *files, "--model", options.model, "--num_gpus", str(options.devices),
                     "--global_batch_size", str(options.global_batch_size), "--max_steps", str(options.steps),
                     "--micro_batch_size", str(options.global_batch_size // options.devices), "--noise_scale_steps",
                     "0", "--precision", precision, "--seed", str(seed), "--output_dir", temporary, "--run_name", name])
                row = summary(folder / name)
                rows.append((float(row["throughput_samples_per_s"]), float(row["validation_loss"])))
    print("| seed | fp32: samples/s | bf16 | ratio | fp32: validation loss | bf16 |\n|--:|--:|--:|--:|--:|--:|")
    ratios = [bf16 / fp32 for (fp32, _), (bf16, _) in zip(*found.values(), strict=True)]
    for seed, (fp32, bf16, ratio) in enumerate(zip(*found.values(), ratios, strict=True)):
        print(f"| {seed} | {fp32[0]:.2f} | {bf16[0]:.2f} | {ratio:.2f} | {fp32[1]:.4f} | {bf16[1]:.4f} |")
    print(f"median {statistics.median(ratios):.2f} ({min(ratios):.2f} to {max(ratios):.2f})")


if __name__ == "__main__":
    main()
