"""Measures one run: every rank holds a `Run`, which tells its instruments and its record what the training does.

Use it as a context manager around the training. A run that fails keeps what it recorded, and run.json says how it
ended.
"""

import dataclasses
import itertools
import os
import time
from collections.abc import Iterator
from typing import TYPE_CHECKING

import torch
import torch.distributed as dist
from tqdm import tqdm

from measurement.clock import Work, synchronize, work_of_step
from measurement.ending import end_badly, fail, finish, stop
from measurement.environment import devices_of_rank
from measurement.instruments import Instruments
from measurement.machine_state import product_seconds
from measurement.pipelines.idle_replay import Actions
from measurement.pipelines.timeline import StepTimeline
from measurement.recorder import Recorder
from measurement.resume import checkpoint_state, join_earlier_attempts, keeps_measurements, restore
from measurement.run_folder import claim_folder
from measurement.run_json import RunJson, describe_run
from measurement.run_result import Progress
from measurement.signals import NONFINITE, StopListener, agreed_reason
from measurement.trackers import Tracking
from workload.batches import Batches, OrderHash, Share
from workload.checkpoints import write_checkpoint
from workload.digests import content_of
from workload.evaluation import Forward, evaluate
from workload.job import Job
from workload.models.layers import layer_names
from workload.optimization import Update
from workload.training_state import TrainingState

if TYPE_CHECKING:
    from transformers import PreTrainedModel


@dataclasses.dataclass(frozen=True)
class Part:
    """The part of the data (a replica's share) and of the model (its layers) that this rank holds."""

    replica: int
    stage: int
    layers: list[str]
    parameters: int  # what several ranks hold is counted on one only
    tensor_rank: int = 0  # place in a tensor group, whose ranks all read the same samples

    @classmethod
    def whole(cls, model: "PreTrainedModel", replica: int) -> "Part":
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

    # Set on entry; `work` at each step.
    digests: dict  # of model, tokenizer and data
    ranks: list[dict]  # each rank's devices and part
    instruments: Instruments
    stop_listener: StopListener
    work: Work

    def __init__(self, job: Job, part: Part, deepspeed_config: dict | None = None,
                 actions: Actions | None = None, note: str | None = None) -> None:
        self.job, self.arguments, self.processes, self.part = job, job.arguments, job.processes, part
        self.device, self.is_main = job.processes.device, job.processes.is_main
        self.deepspeed_config, self.actions, self.note, self.folder = deepspeed_config, actions, note, job.folder
        self.measures_all = self.arguments.measure == "all"
        self.order = OrderHash()
        self.step = self.samples = self.real_tokens = self.padded_tokens = 0
        # True during the discarded first step of a resumed run, which makes DDP rebuild its buckets before the
        # checkpoint is restored.
        self.is_discarded_step = False
        self.timelines: dict[int, StepTimeline] = {}  # by step; pipelines only
        self.recorder: Recorder | None = None  # on rank 0
        self.tracking: Tracking | None = None  # on rank 0, with --report_to
        self.bar = tqdm(disable=True)  # a visible one takes its place when training begins
        # Whether rank 0 holds the folder's lock. Until then an error must not mark another process's run as failed.
        self.holds_folder = False

    # ------------------------------------------------------------------ begin and end

    def __enter__(self) -> "Run":
        try:
            self._begin()
        except BaseException as error:
            if self.holds_folder:
                end_badly(self.job, error, None)
            raise
        return self

    def _begin(self) -> None:
        digests = [content_of(self.job.task) if self.is_main else {}]
        dist.broadcast_object_list(digests)
        [self.digests] = digests
        if checkpoint := self.job.checkpoint:
            join_earlier_attempts(self.job, checkpoint, self.digests)
        rank = {"rank": self.processes.rank, **devices_of_rank(self.processes.devices),
                **dataclasses.asdict(self.part)}
        if self.measures_all:
            rank["matrix_product_s"] = product_seconds(self.processes.devices)
        self.ranks = [rank] * self.processes.count
        dist.all_gather_object(self.ranks, rank)
        if self.is_main:
            lock = claim_folder(self.job)
            self.holds_folder = True
            content = describe_run(self.job, self.ranks, self.deepspeed_config, self.digests, self.note)
            keeps = checkpoint is not None and keeps_measurements(self.job, checkpoint, self.deepspeed_config)
            self.recorder = Recorder(self.job, RunJson(self.folder / "run.json", content), keeps, lock)
            if self.arguments.report_to:
                self.tracking = Tracking(self.arguments.report_to, self.folder, content["flags"],
                                         checkpoint.step if checkpoint else 0)
        dist.barrier()
        self.holds_folder = True
        self.instruments = Instruments(self.job, self.ranks, self.recorder)
        self.stop_listener = StopListener(self.folder / "run.json")

    def __exit__(self, kind, error, traceback) -> None:
        if error is None:
            return
        self.bar.close()  # messages then begin on a line of their own
        self.stop_listener.has_failed = True
        end_badly(self.job, error, self.stop_listener.reason)

    # ------------------------------------------------------------------ training

    def training_steps(self, batches: Batches, training: TrainingState) -> Iterator[tuple[int, Share]]:
        """Yield each step's number (from 1) and this replica's share of its batch, under a progress bar.

        Checkpoints are written between steps. A resumed run first yields a step whose outcome is discarded, see
        `training_state.py`.
        """
        instruments = self.instruments
        if checkpoint := self.job.checkpoint:
            self.is_discarded_step = True
            yield checkpoint.step, batches.share(next(batches.training(self.arguments.seed, 1)))
            self.is_discarded_step = False
            self._continue_from(restore(self.job, checkpoint, self.deepspeed_config, training))
        elif self.is_main and (new := self.job.task.new_layers):
            print(f"{self.job.task.model_name} has no weights for {', '.join(new)}; initialized at random", flush=True)
        of_several = os.environ.get("EXPERIMENT_PROGRESS")  # by experiments/runs.sh: which run of how many
        self.bar = self.processes.progress_bar(total=self.job.steps, initial=self.step, unit="step",
                                               desc=", ".join(filter(None, [of_several, self.folder.name])))
        instruments.resume()
        order = batches.training(self.arguments.seed, self.job.steps)
        shares = batches.shares(itertools.islice(order, self.step, None))
        while self.step < self.job.steps:
            self.step += 1
            instruments.begin_step(self.step)
            began = time.perf_counter()
            batch, share = next(shares)
            data_s = time.perf_counter() - began
            if self.part.stage == self.part.tensor_rank == 0:
                for micro_batch in share.micro_batches:
                    self.order.add(self.step, micro_batch.sample_ids)
            self.work = work_of_step(batches.lengths[batch].numpy(), share.length, self.job.task.shape, data_s,
                                     self.job.arguments.activation_checkpointing)
            is_untimed = instruments.pause_if_slow(share.length)
            instruments.heartbeat.expect(self.step)
            yield self.step, share
            self.stop_listener.step_s = max(self.stop_listener.step_s, time.perf_counter() - began)
            if is_untimed and self.step < self.job.steps:
                instruments.pause()
                instruments.resume()
            self._end_step(training)
        instruments.pause()
        self.bar.close()

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
            self.recorder.add_step(row, torch.cat(values).detach().float(), self.instruments.clock,
                                   is_measured=self.step > self.instruments.steps_to_skip,
                                   is_timed=self.instruments.throughput.is_open)
        self.bar.update()
        self.instruments.end_step(self.step, self.work)

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
        self.instruments.pause()
        evaluation = evaluate(self.job.task, batches, self.processes, forward)
        if self.recorder and evaluation:
            self.recorder.add_evaluation(evaluation, self.step, self.samples)
            self.bar.set_postfix_str(f"validation loss {evaluation.validation_loss:.4f}")
            if self.tracking:
                self.tracking.send()
        if self.arguments.report_to:
            self.processes.wait()  # no rank's clock runs while rank 0 sends
        if not is_last:
            self.instruments.resume()

    # ------------------------------------------------------------------ checkpoints, and the end

    def _end_step(self, training: TrainingState) -> None:
        """Write a checkpoint if one is due, or if any rank was told to stop: then the run ends here."""
        every = self.arguments.checkpoint_steps
        is_last, is_due = self.step == self.job.steps, every is not None and self.step % every == 0
        if is_due:
            self.instruments.pause()  # this also brings all losses to the host
        nonfinite = self.recorder and self.recorder.nonfinite
        reason = agreed_reason(NONFINITE if nonfinite else None, self.stop_listener.reason)
        if reason == NONFINITE:
            self.bar.close()
            fail(self.folder, nonfinite, self.is_main)
        if not is_last and (is_due or reason):
            self.instruments.pause()
            state = checkpoint_state(self.job, self.deepspeed_config, self.digests, self._progress())
            if self.recorder:
                state["record"] = self.recorder.state()
            write_checkpoint(self.folder, self.step, training, state, self.is_main)
            if reason:
                self.bar.close()
                self._finish_tracking()
                stop(self.folder, self.step, reason, self.is_main)
            self.instruments.resume()

    def _progress(self) -> Progress:
        throughput = self.instruments.throughput
        return Progress(self.step, self.samples, self.real_tokens, self.padded_tokens, self.order.total,
                        throughput.seconds, throughput.work)

    def _continue_from(self, progress: Progress) -> None:
        self.step, self.samples = progress.step, progress.samples
        self.real_tokens, self.padded_tokens = progress.real_tokens, progress.padded_tokens
        self.order.total = progress.order_total
        throughput = self.instruments.throughput
        throughput.seconds, throughput.work = progress.throughput_s, progress.work

    def finish(self) -> None:
        """Write the summary and mark the run finished; call on every rank, after the last evaluation."""
        spans = {step: timeline.spans() for step, timeline in self.timelines.items()}
        report = self.instruments.stop(self._progress(), spans)
        reports = [report] * self.processes.count
        dist.all_gather_object(reports, report)
        if self.recorder:
            profiler = self.instruments.profiler
            finish(self.job, self.recorder, reports, self.actions, profiler and profiler.sees_device)
        self._finish_tracking()

    def _finish_tracking(self) -> None:
        if self.tracking:
            self.tracking.finish()
