"""Kill runs with SIGKILL at random steps, resume them, and compare them with one that was never interrupted.

    python -m benchmarks.kill_and_resume                               # every strategy, 20 kills each
    python -m benchmarks.kill_and_resume --only DDP pipeline --kills 3

The embedded model with dropout, on the CPU. A strategy's kills are spread over its settings, of 1, 2 and 4 processes
where it takes as many. Ranks are processes of their own, forked with their imports done: what a launcher does when one
dies is in `tests/test_interruption.py`. Steps, losses, gradient norms, evaluations and final weights must be the same
bit for bit.
"""

import contextlib
import csv
import json
import os
import random
import shutil
import sys
import tempfile
import time
from pathlib import Path

from safetensors.numpy import load_file
from tqdm import tqdm

from tests.shared.warm_ranks import run_ranks, start_ranks
from workload.flag_groups import Parser

STEPS, AT_ONCE = 16, 5  # steps of a run; most kills of one run
FLAGS = ["--sample", "--model", "tiny", "--max_seq_length", "64", "--max_steps", str(STEPS), "--eval_steps", "6",
         "--global_batch_size", "16", "--micro_batch_size", "2", "--learning_rate", "1e-3", "--dropout", "0.1",
         "--cpu_threads", "1", "--max_eval_examples", "16", "--precision", "fp32", "--save_model",
         "--checkpoint_steps", "2"]
ENVIRONMENT = os.environ | {"HF_HUB_OFFLINE": "1", "CUDA_VISIBLE_DEVICES": "", "DS_ACCELERATOR": "cpu",
                            "TORCH_EXTENSIONS_DIR": os.path.join(sys.prefix, "torch_extensions"),
                            "PYTHONWARNINGS": "ignore:resource_tracker"}  # it would report killed ranks' semaphores
STRATEGIES = {  # processes and further flags
    "DDP": ("bert_baseline.py", [(1, ""), (2, ""), (4, "")]),
    "DataParallel": ("data_parallel.py", [(1, "")]),
    "pipeline": ("pipeline.py", [(1, "--micro_batches 8"), (2, "--micro_batches 8"), (4, "--micro_batches 8"),
                                 (4, "--stages 2 --micro_batches 4")]),
    "torch_pipeline": ("torch_pipeline.py", [(1, "--micro_batches 8"), (2, "--schedule zbv --micro_batches 8"),
                                             (4, "--micro_batches 8")]),
    "FSDP": ("fsdp.py", [(1, ""), (2, ""), (4, "")]),
    "FSDP hybrid": ("fsdp.py", [(4, "--shard_group 2")]),
    "tensor parallel": ("tensor_parallel.py", [(1, ""), (2, "--sequence_parallel"),
                                               (4, "--tensor_parallel 2 --shard_replicas")]),
    **{f"ZeRO-{stage}": ("zero.py", [(count, f"--stage {stage}") for count in (1, 2, 4)]) for stage in range(4)},
    "ZeRO-3 hpZ": ("zero.py", [(2, "--stage 3 --secondary_shard_group 2"),
                               (4, "--stage 3 --secondary_shard_group 2")]),
    "Trainer": ("hf_trainer.py", [(1, ""), (2, ""), (4, ""), (2, "--deepspeed_config experiments/zero2.json")]),
}


class Setting:
    """One script with its flags and number of processes; its runs are in one folder."""

    def __init__(self, script: str, count: int, flags: str, folder: Path) -> None:
        self.script, self.count, self.folder = script, count, folder
        self.words = [*FLAGS, *flags.split(), "--num_gpus", str(count), "--output_dir", str(folder), "--run_name"]

    def finish(self, name: str, *more: str) -> Path:
        """Run to the end; returns the run's folder."""
        done = run_ranks(self.script, [*self.words, name, *more], self.count, ENVIRONMENT, self.folder, 600)
        if done.returncode:
            sys.exit((done.stderr.strip() or f"{self.script} failed").splitlines()[-1])
        return self.folder / name

    def kill(self, name: str, step: int, *more: str) -> tuple[int, int]:
        """Run until that step is recorded, then kill all ranks; returns the step it began after and the last one."""
        run, before = self.folder / name, change_time(self.folder / name)
        ranks, _ = start_ranks(self.script, [*self.words, name, *more], self.count, ENVIRONMENT, self.folder)
        while all(rank.is_alive() for rank in ranks) and (change_time(run) == before or recorded_steps(run) < step):
            time.sleep(0.005)
        for rank in ranks:
            rank.kill()
        for rank in ranks:
            rank.join()
        if change_time(run) == before or recorded_steps(run) < step:  # it ended by itself
            sys.exit((self.folder / "rank0.err").read_text().strip().splitlines()[-1])
        return first_step(run), recorded_steps(run)


def change_time(run: Path) -> int | None:
    """When steps.csv last changed; every attempt replaces it."""
    with contextlib.suppress(FileNotFoundError):
        return (run / "steps.csv").stat().st_ctime_ns


def recorded_steps(run: Path) -> int:
    with contextlib.suppress(FileNotFoundError):
        return (run / "steps.csv").read_text().count("\n") - 1
    return 0


def first_step(run: Path) -> int:
    """The step after which the run's latest attempt began."""
    return json.loads((run / "run.json").read_text())["attempts"][-1]["from_step"]


def differences(run: Path, whole: Path) -> list[str]:
    """The files and values of two runs that are not the same bit for bit."""
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
    if {name: weight.tobytes() for name, weight in weights.items()} != {
            name: weight.tobytes() for name, weight in expected.items()}:
        found.append("weights")
    hashes = [json.loads((folder / "run.json").read_text())["order_hash"] for folder in (run, whole)]
    return found + ["order_hash"] * (hashes[0] != hashes[1])


def main() -> None:
    parser = Parser()
    parser.add_argument("--only", nargs="+", default=list(STRATEGIES), choices=STRATEGIES, metavar="STRATEGY")
    parser.add_argument("--kills", type=int, default=20, help="of each strategy")
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    os.environ["PYTHONWARNINGS"] = ENVIRONMENT["PYTHONWARNINGS"]
    generator, failed = random.Random(options.seed), False
    print("| strategy | processes | flags | kills | steps lost | differs from the uninterrupted run |\n"
          "|---|--:|---|--:|--:|---|", flush=True)
    progress = tqdm(total=options.kills * len(options.only), unit="kill", dynamic_ncols=True)
    for strategy in options.only:
        script, settings = STRATEGIES[strategy]
        for place, (count, flags) in enumerate(settings):
            planned, kills, lost, found = (options.kills + place) // len(settings), 0, 0, []
            if not planned:
                continue
            with tempfile.TemporaryDirectory() as name:
                setting = Setting(script, count, flags, Path(name))
                whole = setting.finish("whole")
                while kills < planned:  # several in one run, then another
                    steps = sorted(generator.sample(range(1, STEPS - 1), min(AT_ONCE, planned - kills)))
                    reached = [setting.kill("killed", step, "--resume", "auto") for step in steps]
                    run = setting.finish("killed", "--resume", "auto")
                    begun = [*(begin for begin, _ in reached[1:]), first_step(run)]
                    lost += sum(end for _, end in reached) - sum(begun)
                    found += differences(run, whole)
                    kills += len(reached)
                    progress.update(len(reached))
                    shutil.rmtree(run)
            failed = failed or bool(found)
            tqdm.write(f"| {strategy} | {count} | {f'`{flags}`' if flags else ''} | {kills} | {lost} | "
                       f"{', '.join(found) or 'nothing'} |", file=sys.stdout)
    progress.close()
    sys.exit(failed)


if __name__ == "__main__":
    main()
