"""What the harness costs: stretches of bert_baseline.py's steps, each followed by a bare loop over the same batches.

    python benchmarks/bare_loop.py                                                  # the embedded model
    python benchmarks/bare_loop.py --stretches 10 --flags="--model FOLDER --train_file FILE --eval_file FILE"

The script runs as it is, with all that it measures, writes and loads on the clock. Between its steps the bare loop
trains the same model on the micro-batches that the script just had, lying ready in memory: forward, backward, clipping,
optimizer. Prints step time / bare step time: the median over stretches, its 95 % interval, the middle half.
"""

import argparse
import contextlib
import io
import shlex
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
import torch
from measurement_overhead import median_interval

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

import bert_baseline  # noqa: E402
from measurement.clock import synchronize  # noqa: E402
from measurement.run import Run  # noqa: E402

STRETCH = 16  # steps: in each the noise scale is sampled once
FLAGS = "--sample --model tiny --max_seq_length 128 --global_batch_size 32 --learning_rate 1e-3 --max_eval_examples 32"

made: dict = {}  # the script's own model and optimizer
ratios: list[float] = []


def bare_loop(task, shares: list) -> None:
    model, optimizer = made["model"], made["optimizer"]
    model.train()
    for share in shares:
        for micro_batch in share.micro_batches:
            loss = task.loss(task.logits(model, micro_batch.inputs), micro_batch.labels).mean()
            (loss / len(share.micro_batches)).backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad()


class StretchedRun(Run):
    def training_steps(self, *arguments):
        shares, began = [], None
        for step, share in super().training_steps(*arguments):
            if len(shares) == STRETCH:
                synchronize(self.device)
                seconds, began = time.perf_counter() - began, time.perf_counter()
                bare_loop(self.job.task, shares)
                synchronize(self.device)
                ratios.append(seconds / (time.perf_counter() - began))
                shares, began = [], None
            began = began or time.perf_counter()
            shares.append(share)
            yield step, share


def keep(name: str, function):
    def kept(*arguments, **options):
        made[name] = function(*arguments, **options)
        return made[name]
    return kept


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0], allow_abbrev=False)
    parser.add_argument("--stretches", type=int, default=40)
    parser.add_argument("--flags", default=FLAGS, help="of the run; one process")
    options = parser.parse_args()
    steps = STRETCH * (options.stretches + 1) + 1  # the first stretch warms up
    with tempfile.TemporaryDirectory() as folder:
        sys.argv = ["bert_baseline.py", *shlex.split(options.flags), "--num_gpus", "1", "--max_steps", str(steps),
                    "--eval_steps", str(steps), "--precision", "fp32", "--output_dir", folder]
        bert_baseline.Run, bert_baseline.leave = StretchedRun, lambda: None
        bert_baseline.build_optimizer = keep("optimizer", bert_baseline.build_optimizer)
        from workload.tasks.squad_v2 import SquadV2
        SquadV2.build_model = keep("model", SquadV2.build_model)
        with contextlib.redirect_stdout(io.StringIO()):
            bert_baseline.main()
    low, high = median_interval(np.array(ratios[1:]))
    quarter, three_quarters = np.quantile(ratios[1:], [0.25, 0.75])
    print(f"harness / bare: median {np.median(ratios[1:]):.3f}, 95 % interval {low:.3f} to {high:.3f}, middle half "
          f"{quarter:.3f} to {three_quarters:.3f} of {len(ratios) - 1} stretches")


if __name__ == "__main__":
    main()
