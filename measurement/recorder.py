"""Rank 0 writes a run's tables while it trains: whatever was recorded before a failure stays."""

import dataclasses
import math
import time
from collections import deque
from typing import Any

import torch

from measurement.clock import StepClock
from measurement.columns import STEP_COLUMNS, epoch_columns, evaluation_columns
from measurement.run_folder import FolderLock
from measurement.run_json import RunJson
from measurement.table import Table, truncate_after
from workload.atomic_files import write_json
from workload.checkpoints import Checkpoint
from workload.evaluation import Evaluation
from workload.job import Job


@dataclasses.dataclass
class _TimedSteps:
    seconds: float = 0.0
    steps: int = 0

    def add(self, seconds: float, steps: int = 1) -> None:
        self.seconds += seconds
        self.steps += steps


class Recorder:
    """Writes steps.csv, evaluations.csv and epochs.csv, and keeps what the summary needs of their rows.

    Where `job.checkpoint` is set the tables are continued after its step; rows of later steps are dropped.

    Args:
        job: what is trained, and on what.
        run_json: of this run.
        keeps_measurements: whether seconds and noise norms from before the checkpoint count towards this run's.
        lock: on the run's folder, held as long as this object exists.
    """

    def __init__(self, job: Job, run_json: RunJson, keeps_measurements: bool, lock: FolderLock) -> None:
        self.job, self.folder, self.run_json, self.lock = job, job.folder, run_json, lock
        columns = {"steps": STEP_COLUMNS, "evaluations": evaluation_columns(job.task.metrics),
                   "epochs": epoch_columns(job.task.metrics)}
        earlier = {name: truncate_after(self.folder / f"{name}.csv", job.checkpoint.step) if job.checkpoint else []
                   for name in columns}
        self.steps, self.evaluations, self.epochs = (
            Table(self.folder / f"{name}.csv", columns[name], append=job.checkpoint is not None) for name in columns)
        self.epoch, self.epochs_before = _TimedSteps(), _TimedSteps()  # the current epoch, and all completed ones
        self.epoch_losses: list[float] = []  # of the current one
        self.epoch_row: dict | None = None  # of the last completed epoch, until an evaluation at its end has been added
        self.pending: deque = deque()  # rows of steps.csv whose values may still be on their way from the GPU
        self.noise_norms: list[tuple[float, float]] = []
        self.losses: list[float] = []
        self.evaluation: Evaluation | None = None  # the last one
        self.target_reached: dict[str, float] = {}
        self.skipped_steps = 0  # steps whose gradients were not finite, so that nothing was updated
        self.nonfinite: str | None = None  # describes the first NaN or infinite loss or gradient, if any
        if job.checkpoint:
            self._continue(earlier["steps"], job.checkpoint, keeps_measurements)

    def _continue(self, steps: list[dict[str, str]], checkpoint: Checkpoint, keeps_measurements: bool) -> None:
        """Take over what the tables and the checkpoint hold."""
        self.losses = [float(row["train_loss"]) for row in steps]
        self.skipped_steps = sum(not math.isfinite(float(row["grad_norm"])) for row in steps)
        begun = checkpoint.step % self.job.steps_an_epoch  # steps already done in the current epoch
        self.epoch_losses = self.losses[len(steps) - begun:]
        state = checkpoint.state["record"]
        self.target_reached = state["target_reached"]
        if keeps_measurements:
            for timed, name in ((self.epoch, "epoch"), (self.epochs_before, "epochs_before")):
                timed.add(*state.get(name, (0.0, 0)))  # earlier commits have neither
            self.noise_norms = [tuple(norms) for norms in state["noise_norms"]]

    def state(self) -> dict[str, Any]:
        """What a checkpoint needs besides the tables; all rows have been written by then."""
        self._write_epoch()
        return {"noise_norms": self.noise_norms, "epoch": dataclasses.astuple(self.epoch),
                "epochs_before": dataclasses.astuple(self.epochs_before), "target_reached": self.target_reached}

    def begin_stretch(self, moment: float) -> None:
        """Begin a stretch of steps without a pause, at `moment` in seconds since the epoch."""
        self.last_step_ended = moment

    def add_step(self, row: dict, values: torch.Tensor, clock: StepClock, is_measured: bool,
                 is_timed: bool) -> None:
        """Add a step that the device may not have finished yet.

        Args:
            values: loss, gradient norm, and the two squared norms if they were sampled. (2,) or (4,)
            clock: tells when the step has ended.
            is_measured: whether the step's norms count towards the noise scale.
            is_timed: whether the throughput clock runs, so that the step's seconds count towards its epoch's.
        """
        if values.device.type == "cuda":
            values = torch.empty(values.shape, pin_memory=True).copy_(values, non_blocking=True)
        # The mark comes after the copy: once it has passed, the values have arrived.
        self.pending.append((row, values, clock.mark(), is_measured, is_timed))
        self.write_steps()

    def write_steps(self) -> None:
        """Write the rows of the steps that have ended."""
        while self.pending and self.pending[0][2].has_passed():
            row, values, mark, is_measured, is_timed = self.pending.popleft()
            loss, grad_norm, *norms = values.tolist()
            if norms and is_measured:
                self.noise_norms.append(tuple(norms))
            small, large = norms or (None, None)
            ended = mark.seconds()
            self.steps.add(**row, elapsed_s=self.elapsed(ended), step_s=round(ended - self.last_step_ended, 6),
                           train_loss=loss, grad_norm=grad_norm, micro_batch_squared_norm=small,
                           batch_squared_norm=large)
            self.losses.append(loss)
            self._look_for_nonfinite(row, loss, grad_norm)
            self._add_to_epoch(row["step"], row["samples"], loss, ended - self.last_step_ended if is_timed else None)
            self.last_step_ended = ended

    def _look_for_nonfinite(self, row: dict, loss: float, grad_norm: float) -> None:
        """An infinite gradient is no failure with fp16: the step is skipped, and the loss scale lowered."""
        self.skipped_steps += not math.isfinite(grad_norm)
        if not math.isfinite(loss) or not math.isfinite(grad_norm) and self.job.precision != "fp16":
            self._note_nonfinite(f"step {row['step']}: loss {loss}, gradient norm {grad_norm}, learning rate "
                                 f"{row['learning_rate']:g}")

    def _note_nonfinite(self, where: str) -> None:
        if not self.nonfinite and not self.job.arguments.skip_nonfinite:
            self.nonfinite = where

    def _add_to_epoch(self, step: int, samples: int, loss: float, timed_s: float | None) -> None:
        self._write_epoch()
        if timed_s is not None:
            self.epoch.add(timed_s)
        self.epoch_losses.append(loss)
        if step % self.job.steps_an_epoch == 0:
            self.epoch_row = {"epoch": step // self.job.steps_an_epoch, "step": step, "samples": samples,
                              "epoch_s": self._epoch_s(self.epoch),
                              "train_loss": sum(self.epoch_losses) / len(self.epoch_losses)}
            self.epochs_before.add(*dataclasses.astuple(self.epoch))
            self.epoch, self.epoch_losses = _TimedSteps(), []

    def _epoch_s(self, timed: _TimedSteps) -> float | None:
        """Seconds that all samples of the data take at the seconds per sample of timed steps; None if there are none.

        Epochs that drop an incomplete last batch, or some of whose steps were not timed, can thus be compared.
        """
        samples = timed.steps * self.job.arguments.global_batch_size
        return round(timed.seconds / samples * len(self.job.task.samples("train")), 6) if samples else None

    @property
    def epoch_s(self) -> float | None:
        """Average over the completed epochs, each weighted by its timed steps."""
        return self._epoch_s(self.epochs_before)

    def _write_epoch(self) -> None:
        if self.epoch_row:
            self.epochs.add(**self.epoch_row)
            self.epoch_row = None

    def add_evaluation(self, evaluation: Evaluation, step: int, samples: int) -> None:
        """Add an evaluation that followed `step`, when `samples` had been trained."""
        self.evaluation = evaluation
        row = {"step": step, "elapsed_s": self.elapsed(time.time()), "samples": samples}
        scores = {"validation_loss": evaluation.validation_loss, **evaluation.metrics}
        self.evaluations.add(**row, **scores)
        if not math.isfinite(evaluation.validation_loss):  # the first sign of it where steps are not recorded
            self._note_nonfinite(f"step {step}: validation loss {evaluation.validation_loss}")
        if self.epoch_row and self.epoch_row["step"] == step:
            self.epoch_row |= scores
            self._write_epoch()
        if not self.target_reached and self._reaches_target(evaluation):
            self.target_reached = {"time_to_target_s": row["elapsed_s"], "samples_to_target": samples}

    def _reaches_target(self, evaluation: Evaluation) -> bool:
        arguments = self.job.arguments
        if arguments.target_f1 is not None:
            return evaluation.metrics["f1"] >= arguments.target_f1
        return arguments.target_loss is not None and evaluation.validation_loss <= arguments.target_loss

    def elapsed(self, moment: float) -> float:
        """Seconds from the user's command to `moment`, over all attempts."""
        return round(moment - self.job.started_at, 3)

    def close(self) -> None:
        """Write what is left to write, and close the tables."""
        self.steps.close()
        self.evaluations.close()
        self._write_epoch()
        self.epochs.close()
        if self.evaluation and self.evaluation.predictions is not None:
            write_json(self.folder / "predictions.json", self.evaluation.predictions)
