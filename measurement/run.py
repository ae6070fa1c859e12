"""Measures one run: every rank holds a `Run`, which starts and stops the clocks, the monitor and the recording.

Use it as a context manager around the training. A run that fails keeps what it recorded, and run.json says how it
ended.
"""

import dataclasses
import itertools
import time
from collections.abc import Iterator

import torch
import torch.distributed as dist

from measurement.clock import StepClock, ThroughputClock, synchronize, work_of_step
from measurement.ending import end_badly, fail, finish, stop
from measurement.environment import GIB, devices_of_rank
from measurement.heartbeat import Heartbeat
from measurement.monitor import Monitor, start_monitor
from measurement.pipelines.idle_replay import Actions
from measurement.pipelines.timeline import StepTimeline
from measurement.profiling import StepProfiler
from measurement.recorder import Recorder
from measurement.resume import checkpoint_state, join_earlier_attempts, keeps_measurements, restore
from measurement.run_folder import claim_folder
from measurement.run_json import RunJson, describe_run
from measurement.run_result import Progress, RankReport
from measurement.signals import NONFINITE, StopListener, agreed_reason
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
    """The part of the data (a replica's share) and of the model (its layers) that this rank holds."""

    replica: int
    stage: int
    layers: list[str]
    parameters: int  # tied copies counted on one rank only

    @classmethod
    def whole(cls, model: torch.nn.Module, replica: int) -> "Part":
        """The part of a rank that runs all of the model, whatever it stores."""
        return cls(replica, 0, layer_names(model), sum(parameter.numel() for parameter in model.parameters()))


class Run:
    """Measures one run.

    Args:
        job: what is trained, and on what.
        part: the part of the model and the data that this rank holds.
        deepspeed_config: as given to DeepSpeed, if it is used.
        actions: what each device of a pipeline does in order; None for GPipe and 1F1B, whose idle share has a formula.
        note: a remark about this run for run.json.
    """

    def __init__(self, job: Job, part: Part, deepspeed_config: dict | None = None,
                 actions: Actions | None = None, note: str | None = None) -> None:
        self.job, self.arguments, self.processes, self.part = job, job.arguments, job.processes, part
        self.device, self.is_main = job.processes.device, job.processes.is_main
        self.deepspeed_config, self.actions, self.note, self.folder = deepspeed_config, actions, note, job.folder
        self.measures_all = self.arguments.measure == "all"
        self.profiler: StepProfiler | None = None
        self.steps_to_skip = job.untimed_steps
        if profiled := self.arguments.profile_steps:
            first = job.untimed_steps + 2  # the profiler warms up on the step before
            self.steps_to_skip = first + profiled - 1
            self.profiler = StepProfiler(first, self.steps_to_skip, self.processes, self.folder / "profile")
        self.throughput = ThroughputClock(self.device, self.steps_to_skip)
        self.order = OrderHash()
        self.step = self.samples = self.real_tokens = self.padded_tokens = 0
        # True during the discarded first step of a resumed run, which makes DDP rebuild its buckets before the
        # checkpoint is restored.
        self.is_discarded_step = False
        # A new padded length makes GPUs choose kernels and the compiler compile: such a step is not timed.
        self.new_lengths_are_slow = self.device.type == "cuda" or self.arguments.compile
        self.lengths_seen: set[int] = set()
        self.timelines: dict[int, StepTimeline] = {}  # by step; pipelines only
        self.monitor: Monitor | None = None  # on the first rank of each node
        self.recorder: Recorder | None = None  # on rank 0
        self.stop_listener: StopListener | None = None
        self.bar = None
        # Whether rank 0 holds the folder's lock. Until then an error must not mark another process's run as failed.
        self.holds_folder = False

    # ------------------------------------------------------------------ begin and end

    def __enter__(self) -> "Run":
        try:
            self._begin()
        except BaseException as error:
            if self.holds_folder:
                self.__exit__(type(error), error, error.__traceback__)
            raise
        return self

    def _begin(self) -> None:
        digests = [content_of(self.job.task) if self.is_main else None]
        dist.broadcast_object_list(digests)
        [self.digests] = digests
        if self.job.checkpoint:
            join_earlier_attempts(self.job, self.digests)
        self.ranks = [None] * self.processes.count
        dist.all_gather_object(self.ranks, {"rank": self.processes.rank, **devices_of_rank(self.processes.devices),
                                            **dataclasses.asdict(self.part)})
        if self.is_main:
            lock = claim_folder(self.job)
            self.holds_folder = True
            content = describe_run(self.job, self.ranks, self.deepspeed_config, self.digests, self.note)
            keeps_noise = bool(self.job.checkpoint) and keeps_measurements(self.job, self.deepspeed_config)
            self.recorder = Recorder(self.job, RunJson(self.folder / "run.json", content), keeps_noise, lock)
        dist.barrier()
        self.holds_folder = True
        if self.processes.local_rank == 0 and self.measures_all:
            self.monitor = start_monitor(self.job, self.ranks, self.ranks[self.processes.rank]["node"])
        self.stop_listener = StopListener(self.folder / "run.json")
        self.heartbeat = Heartbeat(self.folder / "run.json", self.processes.rank, self.ranks,
                                   self.arguments.hang_timeout_s)
        if self.device.type == "cuda":
            for device in self.processes.devices:
                torch.cuda.reset_peak_memory_stats(device)

    def __exit__(self, kind, error, traceback) -> None:
        if error is None:
            return
        if self.bar is not None:
            self.bar.close()  # messages then begin on a line of their own
        if self.stop_listener:
            self.stop_listener.has_failed = True
        end_badly(self.job, error, self.stop_listener and self.stop_listener.reason)

    # ------------------------------------------------------------------ training

    def training_steps(self, batches: Batches, training: TrainingState) -> Iterator[tuple[int, Share]]:
        """Yield each step's number (from 1) and this replica's share of its batch, under a progress bar.

        Checkpoints are written between steps. A resumed run first yields a step whose outcome is discarded, see
        `training_state.py`.
        """
        if self.job.checkpoint:
            self.is_discarded_step = True
            yield self.job.checkpoint.step, batches.share(next(batches.training(self.arguments.seed, 1)))
            self.is_discarded_step = False
            self._continue_from(restore(self.job, self.deepspeed_config, training))
            synchronize(self.device)
        self.bar = self.processes.progress_bar(total=self.job.steps, initial=self.step, desc=self.folder.name,
                                               unit="step")
        self._resume()
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
            self.work = work_of_step(batches.lengths[batch].numpy(), share.length, self.job.task.shape, data_s)
            is_untimed = self._is_slow_at(share.length) and self.throughput.is_open
            if is_untimed:
                self._pause()
            self.heartbeat.expect(self.step)
            yield self.step, share
            self.stop_listener.step_s = max(self.stop_listener.step_s, time.perf_counter() - began)
            if is_untimed and self.step < self.job.steps:
                self._pause()
                self._resume()
            self._end_step(training)
        self._pause()
        self.bar.close()

    def _is_slow_at(self, length: int) -> bool:
        """Whether this is the first step of this padded length, where that matters; the same on every rank."""
        is_new = length not in self.lengths_seen
        self.lengths_seen.add(length)
        return is_new and self.new_lengths_are_slow

    def record_step(self, loss: torch.Tensor, update: Update) -> None:
        """Record a step that the host has issued; nothing here waits for a device.

        Args:
            loss: mean over the global batch. ()
        """
        if self.is_discarded_step:
            return
        self.samples += self.work.samples
        self.real_tokens += self.work.tokens
        self.padded_tokens += self.work.padded_tokens
        if self.recorder and self.measures_all:
            values = [loss.reshape(1), update.grad_norm.reshape(1), *([] if update.noise is None else [update.noise])]
            row = {"step": self.step, "data_s": round(self.work.data_s, 6), "samples": self.samples,
                   "real_tokens": self.real_tokens, "padded_tokens": self.padded_tokens,
                   "learning_rate": update.learning_rate}
            self.recorder.add_step(row, torch.cat(values).detach().float(), self.clock,
                                 is_measured=self.step > self.steps_to_skip)
        self.bar.update()
        if self.profiler and self.profiler.end_step(self.step):
            self._pause()
            self.profiler.save()
            self._resume()
        was_open = self.throughput.is_open
        self.throughput.count(self.work)
        if self.monitor and self.throughput.is_open and not was_open:
            self.monitor.open_window()
        if self.monitor:
            self.monitor.check()

    def timeline(self) -> StepTimeline | None:
        """A timeline to record this step on, or None. Only untimed steps are recorded, never the first.

        Synchronizes the devices.
        """
        begun = self.job.checkpoint.step if self.job.checkpoint else 0
        is_recorded = min(2, self.job.steps - begun) <= self.step - begun <= max(self.job.untimed_steps, 2)
        if not self.measures_all or self.is_discarded_step or not is_recorded:
            return None
        synchronize(self.device)
        self.timelines[self.step] = StepTimeline(self.part.replica, self.part.stage, self.device)
        return self.timelines[self.step]

    def evaluate_if_due(self, batches: Batches, forward: Forward) -> None:
        """Evaluate every `--eval_steps` and at the end, off the throughput clock."""
        is_last = self.step == self.job.steps
        if self.is_discarded_step or not is_last and self.step % self.job.eval_steps:
            return
        self._pause()
        evaluation = evaluate(self.job.task, batches, self.processes, forward)
        if self.recorder:
            self.recorder.add_evaluation(evaluation, self.step, self.samples)
            self.bar.set_postfix_str(f"validation loss {evaluation.validation_loss:.4f}")
        if not is_last:
            self._resume()

    def _resume(self) -> None:
        if self.profiler:
            self.profiler.resume()
        self.throughput.open()
        self.clock = StepClock(self.device)
        if self.recorder:
            self.recorder.begin_stretch(self.clock.began)
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
        if self.recorder:
            self.recorder.write_steps()

    # ------------------------------------------------------------------ checkpoints, and the end

    def _end_step(self, training: TrainingState) -> None:
        """Write a checkpoint if one is due, or if any rank was told to stop: then the run ends here."""
        every = self.arguments.checkpoint_steps
        is_last, is_due = self.step == self.job.steps, every is not None and self.step % every == 0
        if is_due:
            self._pause()  # this also brings all losses to the host
        nonfinite = self.recorder and self.recorder.nonfinite
        reason = agreed_reason(NONFINITE if nonfinite else None, self.stop_listener.reason)
        if reason == NONFINITE:
            self.bar.close()
            fail(self.folder, nonfinite, self.is_main)
        if not is_last and (is_due or reason):
            self._pause()
            state = checkpoint_state(self.job, self.deepspeed_config, self.digests, self._progress())
            if self.recorder:
                state["record"] = self.recorder.state()
            write_checkpoint(self.folder, self.step, training, state, self.is_main)
            if reason:
                self.bar.close()
                stop(self.folder, self.step, reason, self.is_main)
            self._resume()

    def _progress(self) -> Progress:
        return Progress(self.step, self.samples, self.real_tokens, self.padded_tokens, self.order.total,
                        self.throughput.seconds, self.throughput.work)

    def _continue_from(self, progress: Progress) -> None:
        self.step, self.samples = progress.step, progress.samples
        self.real_tokens, self.padded_tokens = progress.real_tokens, progress.padded_tokens
        self.order.total = progress.order_total
        self.throughput.seconds, self.throughput.work = progress.throughput_s, progress.work

    def finish(self) -> None:
        """Write the summary and mark the run finished; call on every rank, after the last evaluation."""
        report = RankReport(
            progress=self._progress(), spans={step: timeline.spans() for step, timeline in self.timelines.items()},
            devices=self.monitor.stop() if self.monitor else {}, missing=self.monitor.missing if self.monitor else {},
            profile=self.profiler.costs if self.profiler else {},
            peak_memory_gib=max(map(torch.cuda.max_memory_allocated, self.processes.devices)) / GIB
            if self.device.type == "cuda" else None)
        reports = [report] * self.processes.count
        dist.all_gather_object(reports, report)
        if self.is_main:
            finish(self.job, self.recorder, reports, self.actions, self.profiler and self.profiler.sees_device)
