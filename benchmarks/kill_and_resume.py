"""Kill runs with SIGKILL at random steps, resume them, and compare them with one that was never interrupted.

    python benchmarks/kill_and_resume.py                                     # every strategy, 20 kills each
    python benchmarks/kill_and_resume.py --only "DDP x 2" --kills 3

The embedded model with dropout, on the CPU. For each strategy: kills spread over 1, 2 and 4 processes where it takes as
many. Steps, losses, gradient norms, evaluations and final weights must be the same bit for bit.
"""

import argparse
import csv
import json
import os
import random
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import psutil
from drawing import ROOT
from safetensors.numpy import load_file
from tqdm import tqdm

STEPS = 16
FLAGS = ["--sample", "--model", "tiny", "--max_seq_length", "64", "--max_steps", str(STEPS), "--eval_steps", "6",
         "--global_batch_size", "16", "--micro_batch_size", "2", "--learning_rate", "1e-3", "--dropout", "0.1",
         "--cpu_threads", "1", "--max_eval_examples", "16", "--precision", "fp32", "--save_model",
         "--checkpoint_steps", "2"]
STRATEGIES = {
    "one process": ("bert_baseline.py", "--num_gpus 1"),
    "DataParallel": ("data_parallel.py", "--num_gpus 1"),
    **{f"DDP x {n}": ("bert_baseline.py", f"--num_gpus {n}") for n in (2, 4)},
    **{f"FSDP x {n}": ("fsdp.py", f"--num_gpus {n}") for n in (2, 4)},
    **{f"ZeRO-{stage} x {n}": ("zero.py", f"--num_gpus {n} --stage {stage}") for stage in range(4) for n in (2, 4)},
    **{f"Trainer x {n}": ("hf_trainer.py", f"--num_gpus {n}") for n in (1, 2)},
    "Trainer ZeRO-2 x 2": ("hf_trainer.py", "--num_gpus 2 --deepspeed_config experiments/zero2.json"),
    "pipeline 2": ("pipeline.py", "--num_gpus 2"),
    "pipeline 4": ("pipeline.py", "--num_gpus 4"),
    "pipeline 2 x 2": ("pipeline.py", "--num_gpus 4 --stages 2"),
    "torch_pipeline 1f1b 2": ("torch_pipeline.py", "--num_gpus 2"),
    "torch_pipeline zbv 2": ("torch_pipeline.py", "--num_gpus 2 --schedule zbv"),
    "torch_pipeline 1f1b 4": ("torch_pipeline.py", "--num_gpus 4"),
}


def command(script: str, flags: str, folder: Path, name: str, *more: str) -> list[str]:
    return [sys.executable, script, *FLAGS, *flags.split(), "--output_dir", str(folder), "--run_name", name, *more]


def recorded_steps(run: Path) -> int:
    return (run / "steps.csv").read_text().count("\n") - 1 if (run / "steps.csv").exists() else 0


def kill_at(step: int, words: list[str], run: Path) -> int:
    """Start a run, and kill all of its processes as soon as that step is recorded; gives the steps recorded by then."""
    process = subprocess.Popen(words, cwd=ROOT, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True)
    while process.poll() is None:
        if recorded_steps(run) >= step:
            break
        time.sleep(0.02)
    family = [process, *psutil.Process(process.pid).children(recursive=True)] if process.poll() is None else []
    for member in family:
        os.kill(member.pid, signal.SIGKILL)
    if process.wait() not in (0, -signal.SIGKILL):  # 0: it had finished before
        sys.exit(process.stderr.read().strip().splitlines()[-1])
    return recorded_steps(run)


def differences(run: Path, whole: Path) -> list[str]:
    """What is not the same bit for bit."""
    found = []
    for name, ignored in (("steps.csv", ("elapsed_s", "step_s", "data_s")), ("evaluations.csv", ("elapsed_s",)),
                          ("epochs.csv", ("epoch_s",))):
        tables = []
        for folder in (run, whole):
            with open(folder / name, newline="") as file:
                tables.append([{key: value for key, value in row.items() if key not in ignored}
                               for row in csv.DictReader(file)])
        if tables[0] != tables[1]:
            found.append(name)
    weights, expected = (load_file(folder / "model" / "model.safetensors") for folder in (run, whole))
    if any((weights[name] != expected[name]).any() for name in expected) or weights.keys() != expected.keys():
        found.append("weights")
    hashes = [json.loads((folder / "run.json").read_text())["order_hash"] for folder in (run, whole)]
    return found + ["order_hash"] * (hashes[0] != hashes[1])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0], allow_abbrev=False)
    parser.add_argument("--only", nargs="+", default=list(STRATEGIES), choices=STRATEGIES, metavar="STRATEGY")
    parser.add_argument("--kills", type=int, default=10, help="of each strategy")
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    generator, failed = random.Random(options.seed), False
    print("| strategy | kills | steps lost | differs from the uninterrupted run |\n|---|--:|--:|---|", flush=True)
    for strategy in tqdm(options.only, unit="strategy"):
        with tempfile.TemporaryDirectory() as name:
            folder = Path(name)
            whole = command(*STRATEGIES[strategy], folder, "whole")
            subprocess.run(whole, cwd=ROOT, check=True, capture_output=True)
            words, lost, found = command(*STRATEGIES[strategy], folder, "killed", "--resume", "auto"), 0, []
            kills = 0
            while kills < options.kills:  # several in one run, then another
                reached = [kill_at(step, words, folder / "killed") for step in
                           sorted(generator.sample(range(1, STEPS - 1), min(5, options.kills - kills)))]
                kills += len(reached)
                subprocess.run(words, cwd=ROOT, check=True, capture_output=True)
                attempts = json.loads((folder / "killed" / "run.json").read_text())["attempts"][-len(reached):]
                lost += sum(reached) - sum(attempt["from_step"] for attempt in attempts)
                found += differences(folder / "killed", folder / "whole")
                subprocess.run(["rm", "-r", str(folder / "killed")], check=True)
            failed = failed or bool(found)
            print(f"| {strategy} | {kills} | {lost} | {', '.join(found) or 'nothing'} |", flush=True)
    sys.exit(failed)


if __name__ == "__main__":
    main()
