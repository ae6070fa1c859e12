"""What the harness costs: steps of bert_baseline.py, each followed by bare ones on the same batch.

    python -m benchmarks.bare_loop                                                  # the embedded model
    python -m benchmarks.bare_loop --stretches 10 --flags="--model FOLDER --train_file FILE --eval_file FILE"

The script runs as it is, with all that it measures, writes and loads on the clock. A bare step trains the same model on
the same micro-batches: forward, backward, clipping, optimizer. There are two: one finds its micro-batches in memory;
the other is a step of a bare loop, which reads them as the script does. Prints step time / bare step time over
stretches of 16 steps, in each of which the noise scale is sampled once: the median, its 95 % interval, the middle half.
"""

import contextlib
import io
import shlex
import sys
import tempfile
import time

import numpy as np
import torch

import bert_baseline
from benchmarks.alternating import STRETCH
from benchmarks.measurement_overhead import median_interval
from measurement.clock import synchronize
from measurement.run import Run
from workload import optimization
from workload.flag_groups import Parser

FLAGS = "--sample --model tiny --max_seq_length 128 --global_batch_size 32 --learning_rate 1e-3 --max_eval_examples 32"

made: dict = {}  # the script's own model and optimizer
BARE = ("whose batch lies ready", "of a loop that reads its batches")
seconds: list[list[float]] = []  # of each step: the script's, the bare ones'


def bare_step(task, share) -> None:
    model, optimizer = made["model"], made["optimizer"]
    model.train()
    for micro_batch in share.micro_batches:
        loss = task.loss(task.logits(model, micro_batch.inputs), micro_batch.labels).mean()
        (loss / len(share.micro_batches)).backward()
    torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
    optimizer.step()
    optimizer.zero_grad()


class AlternatingRun(Run):
    """After each step of the script's the bare ones, before the next batch is asked for: a thread makes that ready."""

    began = 0.0

    def training_steps(self, batches, training):
        self.bare_shares = batches.shares(batches.training(self.arguments.seed, self.job.steps))
        for step, self.share in super().training_steps(batches, training):
            yield step, self.share

    def record_step(self, loss, update) -> None:
        super().record_step(loss, update)
        moments = [self.began, self._now()]
        bare_step(self.job.task, self.share)
        moments.append(self._now())
        _, share = next(self.bare_shares)
        bare_step(self.job.task, share)
        moments.append(self._now())
        if self.began:
            seconds.append(np.diff(moments).tolist())
        self.began = time.perf_counter()

    def _now(self) -> float:
        synchronize(self.device)
        return time.perf_counter()


def keep(name: str, function):
    def kept(*arguments, **options):
        made[name] = function(*arguments, **options)
        return made[name]
    return kept


def main() -> None:
    parser = Parser()
    parser.add_argument("--stretches", type=int, default=40)
    parser.add_argument("--flags", default=FLAGS, help="of the run; one process")
    options = parser.parse_args()
    steps = STRETCH * (options.stretches + 1) + 1  # the first stretch warms up
    with tempfile.TemporaryDirectory() as folder:
        sys.argv = ["bert_baseline.py", *shlex.split(options.flags), "--num_gpus", "1", "--max_steps", str(steps),
                    "--noise_scale_steps", str(STRETCH),
                    "--eval_steps", str(steps), "--precision", "fp32", "--output_dir", folder]
        bert_baseline.Run, bert_baseline.leave = AlternatingRun, lambda: None
        optimization.build_optimizer = keep("optimizer", optimization.build_optimizer)
        from workload.tasks.squad_v2 import SquadV2
        SquadV2.build_model = keep("model", SquadV2.build_model)
        with contextlib.redirect_stdout(io.StringIO()):
            bert_baseline.main()
    timed = np.array(seconds[-options.stretches * STRETCH:]).reshape(options.stretches, STRETCH, 3).sum(axis=1)
    script, *bare = (1000 * timed.mean(axis=0) / STRETCH).tolist()
    print(f"a step of the script: {script:.1f} ms; over {options.stretches} stretches:")
    for which, milliseconds, ratios in zip(BARE, bare, (timed[:, :1] / timed[:, 1:]).T, strict=True):
        low, high = median_interval(ratios)
        quarter, three_quarters = np.quantile(ratios, [0.25, 0.75])
        print(f"a bare one {which}: {milliseconds:.1f} ms, ratio: median {np.median(ratios):.3f}, 95 % interval "
              f"{low:.3f} to {high:.3f}, middle half {quarter:.3f} to {three_quarters:.3f}")


if __name__ == "__main__":
    main()
