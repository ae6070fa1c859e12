"""A run and its folder: status, steps, evaluations, and the summary that `plots.py` compares.

Every rank holds a `Run`; rank 0 writes. What a run recorded before it failed stays, with a status that says so.
"""

import dataclasses
import shutil
import socket
import sys
import time
from collections import deque
from collections.abc import Iterator

import torch
import torch.distributed as dist

from measurement.clock import StepClock, ThroughputClock, synchronize
from measurement.description import describe
from measurement.environment import GIB, cpu_name, device_of_rank
from measurement.interruption import mark_ended, watch_signals
from measurement.monitor import Monitor
from measurement.results import (
    DEVICE_COLUMNS,
    STEP_COLUMNS,
    SUMMARY_COLUMNS,
    Table,
    evaluation_columns,
    utc_time,
    write_json,
)
from measurement.summary import summarize
from measurement.timeline import StepTimeline, draw, write_trace
from workload.batches import Batches, OrderHash, Share
from workload.errors import InputError
from workload.job import Job

WARMUP_STEPS = 5  # off the throughput clock, or a quarter of a very short run


@dataclasses.dataclass(frozen=True)
class Part:
    """What this rank holds: which replica's data, and which layers of the model."""

    replica: int
    stage: int
    layers: list[str]
    parameters: int  # tied copies counted on one rank only


class Run:
    """The record of one run; use as a context manager around everything that trains.

    Args:
        job: what is trained, and on what.
        part: what this rank holds.
        deepspeed_config: as given to DeepSpeed, if it takes part.
    """

    def __init__(self, job: Job, part: Part, deepspeed_config: dict | None = None) -> None:
        self.job, self.arguments, self.processes, self.part = job, job.arguments, job.processes, part
        self.device, self.is_main = job.processes.device, job.processes.is_main
        self.deepspeed_config = deepspeed_config
        self.folder = job.folder
        warmup = min(WARMUP_STEPS, job.steps // 4)
        self.throughput = ThroughputClock(self.device, warmup)
        self.timeline_step, self.step_timeline = max(warmup, 1), None  # the warm-up's last step is off the clock
        self.order = OrderHash()
        self.step = self.samples = self.real_tokens = self.padded_tokens = 0
        self.pending: deque = deque()  # rows of steps.csv whose values may still be on their way from the GPU
        self.noise_norms: list[tuple[float, float]] = []
        self.evaluation = None

    # ------------------------------------------------------------------ begin and end

    def __enter__(self) -> "Run":
        ranks = [None] * self.processes.count
        dist.all_gather_object(ranks, {"rank": self.processes.rank, **device_of_rank(self.device),
                                       **dataclasses.asdict(self.part)})
        if self.is_main:
            self._create_folder()
            self.description = describe(self.job, ranks, self.deepspeed_config)
            self.hardware = " + ".join(sorted({rank["gpu"] or f"CPU {cpu_name()}" for rank in ranks}))
            write_json(self.folder / "run.json", self.description)
            self.steps_table = Table(self.folder / "steps.csv", STEP_COLUMNS)
            self.evaluations_table = Table(self.folder / "evaluations.csv", evaluation_columns(self.job.task.metrics))
            here = [rank for rank in ranks if rank["host"] == socket.gethostname()]
            self.monitor = Monitor(Table(self.folder / "devices.csv", DEVICE_COLUMNS), self.job.started_at,
                                   [rank["pid"] for rank in here],
                                   {rank["device"]: rank["gpu_uuid"] for rank in here if rank["gpu"]})
        dist.barrier()
        watch_signals(self.folder / "run.json")
        if self.device.type == "cuda":
            torch.cuda.reset_peak_memory_stats(self.device)
        return self

    def __exit__(self, kind, error, traceback) -> None:
        if error is None:
            return
        out_of_memory = isinstance(error, (torch.OutOfMemoryError, MemoryError))
        status = "out_of_memory" if out_of_memory else "failed"
        mark_ended(self.folder / "run.json", status, f"rank {self.processes.rank}: {kind.__name__}: {error}")
        if out_of_memory:
            print(f"error: out of memory on {self.device}; lower --micro_batch_size (now "
                  f"{self.job.split.micro_batch_size})", file=sys.stderr, flush=True)

    def _create_folder(self) -> None:
        try:
            if self.folder.exists() and self.arguments.overwrite:
                shutil.rmtree(self.folder)
            self.folder.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise InputError(f"--output_dir {self.arguments.output_dir}: {error.filename}: {error.strerror}") from error

    # ------------------------------------------------------------------ training

    def training_steps(self, batches: Batches) -> Iterator[tuple[int, Share]]:
        """Number (from 1) and this replica's share of every step's batch, under a progress bar."""
        self.bar = self.processes.progress_bar(total=self.job.steps, desc=self.folder.name, unit="step")
        self._go_on()
        for batch in batches.training(self.arguments.seed, self.job.steps):
            self.step += 1
            share = batches.share(batch, self.device)
            if self.part.stage == 0:
                for micro_batch in share.micro_batches:
                    self.order.add(self.step, micro_batch.sample_ids)
            self.step_tokens = int(batches.lengths[batch].sum())
            self.real_tokens += self.step_tokens
            self.padded_tokens += len(batch) * share.length
            yield self.step, share
        self._pause()
        self.bar.close()

    def record_step(self, loss: torch.Tensor, grad_norm: torch.Tensor, learning_rate: float,
                    noise: torch.Tensor | None) -> None:
        """A step is done, as far as the host is concerned; nothing here waits for a device.

        Args:
            loss: mean over the global batch. ()
            grad_norm: of the whole model, before clipping. ()
            noise: what `GradientNoise.end_step` gave. (2,) or None
        """
        self.samples += self.arguments.global_batch_size
        if self.is_main:
            parts = [loss.reshape(1), grad_norm.reshape(1), *([] if noise is None else [noise])]
            values = torch.cat(parts).detach().float()
            if self.device.type == "cuda":
                values = torch.empty(values.shape, pin_memory=True).copy_(values, non_blocking=True)
            row = {"step": self.step, "samples": self.samples, "real_tokens": self.real_tokens,
                   "padded_tokens": self.padded_tokens, "learning_rate": learning_rate}
            self.pending.append((row, values, self.steps.mark(), self.throughput.is_open))
            self._write_steps(wait=False)
            self.bar.update()
        self.throughput.count(self.arguments.global_batch_size, self.step_tokens)
        if self.is_main:
            self.monitor.counts = self.throughput.is_open

    def timeline(self) -> StepTimeline | None:
        """Where to put what the coming step does: one step of a run is watched, for pipelines."""
        if self.step != self.timeline_step:
            return None
        synchronize(self.device)
        self.step_timeline = StepTimeline(self.part.replica, self.part.stage, self.device)
        return self.step_timeline

    def evaluation_is_due(self) -> bool:
        """Whether to evaluate after this step: every `--eval_steps`, and at the end."""
        return self.step == self.job.steps or self.step % self.job.eval_steps == 0

    def record_evaluation(self, evaluate) -> None:
        """Call `evaluate()` off the throughput clock, and record what it gives."""
        self._pause()
        evaluation = evaluate()
        if self.is_main:
            self.evaluation = evaluation
            self.evaluations_table.add(step=self.step, elapsed_s=self.elapsed(time.time()), samples=self.samples,
                                       validation_loss=evaluation.validation_loss, **evaluation.metrics)
            self.bar.set_postfix_str(f"validation loss {evaluation.validation_loss:.4f}")
        if self.step < self.job.steps:
            self._go_on()

    def _go_on(self) -> None:
        self.throughput.open()
        self.steps = StepClock(self.device)
        self.last_mark = self.steps.began
        if self.is_main:
            self.monitor.counts = self.throughput.is_open

    def _pause(self) -> None:
        self.throughput.close()
        if self.is_main:
            self.monitor.counts = False
            self._write_steps(wait=True)

    def _write_steps(self, wait: bool) -> None:
        if wait and self.device.type == "cuda":
            torch.cuda.synchronize(self.device)
        while self.pending and self.pending[0][2].has_passed():
            row, values, mark, measured = self.pending.popleft()
            loss, grad_norm, *norms = values.tolist()
            if norms and measured:
                self.noise_norms.append(tuple(norms))
            small, large = norms or (None, None)
            at = mark.seconds()
            self.steps_table.add(**row, elapsed_s=self.elapsed(at), step_s=round(at - self.last_mark, 6),
                                 train_loss=loss, grad_norm=grad_norm, micro_batch_squared_norm=small,
                                 batch_squared_norm=large)
            self.last_mark = at

    def elapsed(self, moment: float) -> float:
        """Seconds since the user's command began."""
        return round(moment - self.job.started_at, 3)

    # ------------------------------------------------------------------ summary

    def finish(self) -> None:
        """Write the summary and call the run finished; on every rank, after the last evaluation."""
        ranks = [None] * self.processes.count
        dist.all_gather_object(ranks, {
            "order": self.order.total, "spans": self.step_timeline.spans() if self.step_timeline else [],
            "peak_gib": torch.cuda.max_memory_allocated(self.device) / GIB if self.device.type == "cuda" else None})
        if not self.is_main:
            return
        self.monitor.stop()
        spans = [span for rank in ranks for span in rank["spans"]]
        summary, empty = summarize(self, spans, [rank["peak_gib"] for rank in ranks])
        if spans:
            write_trace(spans, self.folder / "timeline.json")
            draw(spans, f"{self.folder.name}: step {self.timeline_step}", self.folder / "timeline.png")
        table = Table(self.folder / "summary.csv", SUMMARY_COLUMNS)
        table.add(**summary)
        for open_table in (table, self.steps_table, self.evaluations_table):
            open_table.close()
        if self.evaluation.predictions is not None:
            write_json(self.folder / "predictions.json", self.evaluation.predictions)
        self.description |= {"status": "finished", "ended": utc_time(time.time()), "empty": empty,
                             "order_hash": self.order.combine([rank["order"] for rank in ranks])}
        write_json(self.folder / "run.json", self.description)
        print(f"{self.folder.name}: {self.samples} samples in {summary['runtime_s']:.0f} s, "
              f"{summary['throughput_samples_per_s'] or float('nan'):.1f} samples/s, "
              f"validation loss {self.evaluation.validation_loss:.4f}, "
              + ", ".join(f"{name} {value:.2f}" for name, value in self.evaluation.metrics.items())
              + f" -> {self.folder}", flush=True)
