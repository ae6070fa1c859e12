"""One run under the ruler: every rank holds a `Run`, which starts and stops what measures it.

Use as a context manager around everything that trains. A run that fails keeps what it recorded, with a status that
says so.
"""

import dataclasses
import itertools
import time
from collections.abc import Iterator

import numpy as np
import torch
import torch.distributed as dist

from measurement.clock import StepClock, ThroughputClock, Work, synchronize
from measurement.ending import end_badly, fail, finish, stop
from measurement.environment import devices_of_rank
from measurement.heartbeat import Heartbeat
from measurement.monitor import Monitor
from measurement.pipelines.idle_replay import Actions
from measurement.pipelines.timeline import StepTimeline
from measurement.profiling import StepProfiler
from measurement.recorder import Record, claim_folder
from measurement.results import DEVICE_COLUMNS, Table
from measurement.resume import join_earlier_attempts, put_back, state_of
from measurement.signals import NONFINITE, StopWatch, agreed_reason
from workload.batches import Batches, OrderHash, Share
from workload.checkpoints import write_checkpoint
from workload.digests import content_of
from workload.evaluation import Forward, evaluate
from workload.job import Job
from workload.models.layers import layer_names
from workload.optimization import Update
from workload.training_state import TrainingState


@dataclasses.dataclass(frozen=True)
class Part:
    """What this rank holds: which replica's data, and which layers of the model."""

    replica: int
    stage: int
    layers: list[str]
    parameters: int  # tied copies counted on one rank only

    @classmethod
    def whole(cls, model: torch.nn.Module, replica: int) -> "Part":
        """The part of a rank that runs all of the model, whatever it stores."""
        return cls(replica, 0, layer_names(model), sum(parameter.numel() for parameter in model.parameters()))


class Run:
    """The measuring of one run.

    Args:
        job: what is trained, and on what.
        part: what this rank holds.
        deepspeed_config: as given to DeepSpeed, if it takes part.
        actions: what each device of a pipeline does in which order, unless its schedule idles as 1F1B does.
    """

    def __init__(self, job: Job, part: Part, deepspeed_config: dict | None = None,
                 actions: Actions | None = None) -> None:
        self.job, self.arguments, self.processes, self.part = job, job.arguments, job.processes, part
        self.device, self.is_main = job.processes.device, job.processes.is_main
        self.deepspeed_config, self.actions, self.folder = deepspeed_config, actions, job.folder
        self.measures_all = self.arguments.measure == "all"
        self.shape = job.task.shape
        profiled = self.arguments.profile_steps
        first = job.untimed_steps + 2  # the step before it warms the profiler up
        last = first + profiled - 1
        self.profiler = StepProfiler(first, last, self.processes, self.folder / "profile") if profiled else None
        self.steps_to_skip = last if profiled else job.untimed_steps
        self.throughput = ThroughputClock(self.device, self.steps_to_skip)
        self.order = OrderHash()
        self.step = self.samples = self.real_tokens = self.padded_tokens = 0
        self.is_rehearsing = False  # a step that is thrown away
        # GPUs choose kernels, and the compiler compiles, when a length is seen first: such a step is not timed.
        self.new_lengths_are_slow = self.device.type == "cuda" or self.arguments.compile
        self.lengths_seen: set[int] = set()
        self.timelines: dict[int, StepTimeline] = {}  # of pipelines, in the warm-up
        self.monitor = self.record = self.bar = self.stop_watch = None
        self.is_ours = False  # the run's folder

    # ------------------------------------------------------------------ begin and end

    def __enter__(self) -> "Run":
        try:
            self._begin()
        except BaseException as error:
            if self.is_ours:
                self.__exit__(type(error), error, error.__traceback__)
            raise
        return self

    def _begin(self) -> None:
        content = [content_of(self.job.task) if self.is_main else None]
        dist.broadcast_object_list(content)
        [self.content] = content
        if self.job.checkpoint:
            join_earlier_attempts(self.job, self.content)
        self.ranks = [None] * self.processes.count
        dist.all_gather_object(self.ranks, {"rank": self.processes.rank, **devices_of_rank(self.processes.devices),
                                            **dataclasses.asdict(self.part)})
        if self.is_main:
            lock = claim_folder(self.job)
            self.is_ours = True  # before, whoever else writes there must not hear of our errors
            self.record = Record(self.job, self.ranks, self.deepspeed_config, self.content, lock)
        dist.barrier()
        self.is_ours = True
        if self.processes.local_rank == 0 and self.measures_all:
            node = self.ranks[self.processes.rank]["node"]
            self.folder.mkdir(parents=True, exist_ok=True)  # another machine may not share rank 0's
            path = self.folder / ("devices.csv" if node == 0 else f"devices-node{node}.csv")
            table = Table(path, DEVICE_COLUMNS, goes_on=bool(self.job.checkpoint) and path.exists())
            self.monitor = Monitor(table, self.job.started_at, [rank for rank in self.ranks if rank["node"] == node])
        self.stop_watch = StopWatch(self.folder / "run.json")
        self.heartbeat = Heartbeat(self.folder / "run.json", self.processes.rank, self.ranks,
                                   self.arguments.hang_timeout_s)
        if self.device.type == "cuda":
            for device in self.processes.devices:
                torch.cuda.reset_peak_memory_stats(device)

    def __exit__(self, kind, error, traceback) -> None:
        if error is None:
            return
        if self.bar is not None:
            self.bar.close()  # what is said now has a line of its own
        if self.stop_watch:
            self.stop_watch.has_failed = True
        end_badly(self, error)

    # ------------------------------------------------------------------ training

    def training_steps(self, batches: Batches, training: TrainingState) -> Iterator[tuple[int, Share]]:
        """Number (from 1) and this replica's share of every step's batch, under a progress bar.

        Between two steps checkpoints are written. A run that goes on first gets a step to throw away, see
        `training_state.py`.
        """
        if self.job.checkpoint:
            self.is_rehearsing = True
            yield self.job.checkpoint.step, batches.share(next(batches.training(self.arguments.seed, 1)))
            self.is_rehearsing = False
            put_back(self, training)
            synchronize(self.device)
        self.bar = self.processes.progress_bar(total=self.job.steps, initial=self.step, desc=self.folder.name,
                                               unit="step")
        self._go_on()
        order = batches.training(self.arguments.seed, self.job.steps)
        shares = batches.shares(itertools.islice(order, self.step, None))
        while self.step < self.job.steps:
            self.step += 1
            if self.profiler:
                self.profiler.begin_step(self.step)
            began = time.perf_counter()
            batch, share = next(shares)
            data_s = time.perf_counter() - began
            if self.part.stage == 0:
                for micro_batch in share.micro_batches:
                    self.order.add(self.step, micro_batch.sample_ids)
            self.work = self._work_of(batches.lengths[batch].numpy(), share.length, data_s)
            is_off_the_clock = self._is_slow_at(share.length) and self.throughput.is_open
            if is_off_the_clock:
                self._pause()
            self.heartbeat.expect(self.step)
            yield self.step, share
            self.stop_watch.step_s = max(self.stop_watch.step_s, time.perf_counter() - began)
            if is_off_the_clock and self.step < self.job.steps:
                self._pause()
                self._go_on()
            self._end_step(training)
        self._pause()
        self.bar.close()

    def _is_slow_at(self, length: int) -> bool:
        """Whether this step is the first of a padded length, where that matters; the same on every rank."""
        is_new = length not in self.lengths_seen
        self.lengths_seen.add(length)
        return is_new and self.new_lengths_are_slow

    def _work_of(self, lengths: np.ndarray, padded_length: int, data_s: float) -> Work:
        samples = len(lengths)
        padded = np.append(lengths, padded_length)  # (samples + 1,)
        flops = self.shape.training_flops(padded) if self.shape else np.zeros(len(padded))
        return Work(steps=1, samples=samples, tokens=lengths.sum().item(), padded_tokens=samples * padded_length,
                    model_flops=flops[:-1].sum().item(), hardware_flops=samples * flops[-1].item(), data_s=data_s)

    def record_step(self, loss: torch.Tensor, update: Update) -> None:
        """Record a step that the host has issued; nothing here waits for a device.

        Args:
            loss: mean over the global batch. ()
        """
        if self.is_rehearsing:
            return
        self.samples += self.work.samples
        self.real_tokens += self.work.tokens
        self.padded_tokens += self.work.padded_tokens
        if self.record and self.measures_all:
            values = [loss.reshape(1), update.grad_norm.reshape(1), *([] if update.noise is None else [update.noise])]
            row = {"step": self.step, "data_s": round(self.work.data_s, 6), "samples": self.samples,
                   "real_tokens": self.real_tokens, "padded_tokens": self.padded_tokens,
                   "learning_rate": update.learning_rate}
            self.record.add_step(row, torch.cat(values).detach().float(), self.clock,
                                 is_measured=self.step > self.steps_to_skip)
        self.bar.update()
        if self.profiler and self.profiler.end_step(self.step):
            self._pause()
            self.profiler.save()
            self._go_on()
        was_open = self.throughput.is_open
        self.throughput.count(self.work)
        if self.monitor and self.throughput.is_open and not was_open:
            self.monitor.open_window()
        if self.monitor:
            self.monitor.check()

    def timeline(self) -> StepTimeline | None:
        """Where to put what the coming step does, if it is one to watch: those that are not timed, but the first."""
        begun = self.job.checkpoint.step if self.job.checkpoint else 0
        is_watched = min(2, self.job.steps - begun) <= self.step - begun <= max(self.job.untimed_steps, 2)
        if not self.measures_all or self.is_rehearsing or not is_watched:
            return None
        synchronize(self.device)
        self.timelines[self.step] = StepTimeline(self.part.replica, self.part.stage, self.device)
        return self.timelines[self.step]

    def evaluate_if_due(self, batches: Batches, forward: Forward) -> None:
        """Evaluate every `--eval_steps` and at the end, off the throughput clock."""
        is_last = self.step == self.job.steps
        if self.is_rehearsing or not is_last and self.step % self.job.eval_steps:
            return
        self._pause()
        evaluation = evaluate(self.job.task, batches, self.processes, forward)
        if self.record:
            self.record.add_evaluation(evaluation, self.step, self.samples)
            self.bar.set_postfix_str(f"validation loss {evaluation.validation_loss:.4f}")
        if not is_last:
            self._go_on()

    def _go_on(self) -> None:
        if self.profiler:
            self.profiler.resume()
        self.throughput.open()
        self.clock = StepClock(self.device)
        if self.record:
            self.record.begin_stretch(self.clock.began)
        if self.monitor and self.throughput.is_open:
            self.monitor.open_window()

    def _pause(self) -> None:
        self.heartbeat.pause()
        if self.profiler:
            self.profiler.pause()
        self.throughput.close()
        if self.monitor:
            self.monitor.close_window()
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)
        if self.record:
            self.record.write_steps()

    # ------------------------------------------------------------------ checkpoints, and an early end

    def _end_step(self, training: TrainingState) -> None:
        """Write a checkpoint if one is due, or if a rank was told to stop: then the run ends here."""
        every = self.arguments.checkpoint_steps
        is_last, is_due = self.step == self.job.steps, every is not None and self.step % every == 0
        if is_due:
            self._pause()  # which also brings all losses to the host
        reason = agreed_reason(self.record.nonfinite and NONFINITE if self.record else None, self.stop_watch.reason)
        if reason == NONFINITE:
            fail(self)
        if not is_last and (is_due or reason):
            self._pause()
            write_checkpoint(self.folder, self.step, training, state_of(self), self.is_main)
            if reason:
                stop(self, reason)
            self._go_on()

    def finish(self) -> None:
        """Write the summary and call the run finished; on every rank, after the last evaluation."""
        finish(self)
