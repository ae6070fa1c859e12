"""The folder of a run, which rank 0 writes: what it recorded before it failed stays."""

import dataclasses
import math
import shutil
import time
from collections import deque

import torch

from measurement.clock import StepClock
from measurement.results import (
    STEP_COLUMNS,
    Table,
    epoch_columns,
    evaluation_columns,
    free_room,
    keep_room,
    utc_time,
    write_json,
)
from measurement.resume import continued, counts_on, cut_back
from measurement.run_json import describe
from measurement.signals import FolderLock
from workload.errors import InputError
from workload.evaluation import Evaluation
from workload.job import Job


@dataclasses.dataclass
class _Epoch:
    seconds: float = 0.0  # of its steps: evaluations do not count
    losses: list[float] = dataclasses.field(default_factory=list)  # of its steps


class Record:
    """run.json, steps.csv, evaluations.csv and epochs.csv, and what the summary needs of their rows.

    Args:
        job: what is trained, and on what.
        ranks: of each rank its device, and the part of the model that it holds.
        deepspeed_config: as given to DeepSpeed, if it takes part.
        content: digests of model, tokenizer and data; see `workload.digests`.
        lock: on the run's folder, held as long as the record.

    Where `job.checkpoint` is set the record goes on behind that step; rows of later steps are dropped.
    """

    def __init__(self, job: Job, ranks: list[dict], deepspeed_config: dict | None, content: dict,
                 lock: FolderLock) -> None:
        self.lock = lock
        self.job, self.folder, self.started_at = job, job.folder, job.started_at
        goes_on = job.checkpoint is not None
        self.description = describe(job, ranks, deepspeed_config, content)
        if goes_on:
            self.description = continued(self.description, self.folder)
        keep_room(self.folder / "run.json", self.description)
        write_json(self.folder / "run.json", self.description)
        tables = {"steps": STEP_COLUMNS, "evaluations": evaluation_columns(job.task.metrics),
                  "epochs": epoch_columns(job.task.metrics)}
        earlier = {name: cut_back(self.folder / f"{name}.csv", job.checkpoint.step) if goes_on else []
                   for name in tables}
        self.steps, self.evaluations, self.epochs = (
            Table(self.folder / f"{name}.csv", columns, goes_on) for name, columns in tables.items())
        self.epoch = _Epoch()  # that is being trained
        self.epoch_row: dict | None = None  # of the one before, until its evaluation, if there is one, is over
        self.epoch_seconds: list[float] = []
        self.pending: deque = deque()  # rows of steps.csv whose values may still be on their way from the GPU
        self.noise_norms: list[tuple[float, float]] = []
        self.losses: list[float] = []
        self.evaluation: Evaluation | None = None
        self.target_reached: dict[str, float] = {}
        self.skipped_steps = 0  # whose gradients were not finite, so that nothing was updated
        self.nonfinite: str | None = None  # where the first loss was that is no number
        if goes_on:
            self._go_on_behind(earlier["steps"], earlier["epochs"])

    def _go_on_behind(self, steps: list[dict[str, str]], epochs: list[dict[str, str]]) -> None:
        """Take in what the files hold up to the checkpoint."""
        self.losses = [float(row["train_loss"]) for row in steps]
        self.skipped_steps = sum(not math.isfinite(float(row["grad_norm"])) for row in steps)
        self.epoch_seconds = [float(row["epoch_s"]) for row in epochs]
        begun = self.job.checkpoint.step % self.job.steps_an_epoch  # steps of the epoch that is not over
        of_epoch = steps[len(steps) - begun:]
        self.epoch = _Epoch(sum(float(row["step_s"]) for row in of_epoch),
                            [float(row["train_loss"]) for row in of_epoch])
        state = self.job.checkpoint.state["record"]
        self.target_reached = state["target_reached"]
        if counts_on(self.job, self.description["deepspeed_config"]):
            self.noise_norms = [tuple(norms) for norms in state["noise_norms"]]

    def state(self) -> dict:
        """What the files do not say, for a checkpoint; all rows are written by then."""
        self._write_epoch()
        return {"noise_norms": self.noise_norms, "target_reached": self.target_reached}

    def begin_stretch(self, moment: float) -> None:
        """Steps follow each other from now on, seconds since the epoch."""
        self.last_step_ended = moment

    def add_step(self, row: dict, values: torch.Tensor, clock: StepClock, is_measured: bool) -> None:
        """A step whose values and end may still lie ahead of the host.

        Args:
            values: loss, gradient norm, and the two squared norms if they were sampled. (2,) or (4,)
            clock: tells when the step has ended.
            is_measured: whether the noise scale takes the norms in.
        """
        if values.device.type == "cuda":
            values = torch.empty(values.shape, pin_memory=True).copy_(values, non_blocking=True)
        # Marked behind the copy: once the mark has passed, the values are here.
        self.pending.append((row, values, clock.mark(), is_measured))
        self.write_steps()

    def write_steps(self) -> None:
        """Write the rows whose step is over."""
        while self.pending and self.pending[0][2].has_passed():
            row, values, mark, is_measured = self.pending.popleft()
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
            self._add_to_epoch(row["step"], row["samples"], ended - self.last_step_ended, loss)
            self.last_step_ended = ended

    def _look_for_nonfinite(self, row: dict, loss: float, grad_norm: float) -> None:
        """With fp16 a step whose gradients overflow is skipped, and the next one scaled less: no failure."""
        self.skipped_steps += not math.isfinite(grad_norm)
        if not math.isfinite(loss) or not math.isfinite(grad_norm) and self.job.precision != "fp16":
            self._note_nonfinite(f"step {row['step']}: loss {loss}, gradient norm {grad_norm}, learning rate "
                                 f"{row['learning_rate']:g}")

    def _note_nonfinite(self, where: str) -> None:
        if not self.nonfinite and not self.job.arguments.skip_nonfinite:
            self.nonfinite = where

    def _add_to_epoch(self, step: int, samples: int, seconds: float, loss: float) -> None:
        self._write_epoch()
        self.epoch.seconds += seconds
        self.epoch.losses.append(loss)
        if step % self.job.steps_an_epoch == 0:
            self.epoch_row = {"epoch": step // self.job.steps_an_epoch, "step": step, "samples": samples,
                              "epoch_s": round(self.epoch.seconds, 6),
                              "train_loss": sum(self.epoch.losses) / len(self.epoch.losses)}
            self.epoch_seconds.append(self.epoch.seconds)
            self.epoch = _Epoch()

    def _write_epoch(self) -> None:
        if self.epoch_row:
            self.epochs.add(**self.epoch_row)
            self.epoch_row = None

    def add_evaluation(self, evaluation: Evaluation, step: int, samples: int) -> None:
        """What was evaluated after `step`."""
        self.evaluation = evaluation
        row = {"step": step, "elapsed_s": self.elapsed(time.time()), "samples": samples}
        judged = {"validation_loss": evaluation.validation_loss, **evaluation.metrics}
        self.evaluations.add(**row, **judged)
        if not math.isfinite(evaluation.validation_loss):  # where steps are not recorded, the first that is seen of it
            self._note_nonfinite(f"step {step}: validation loss {evaluation.validation_loss}")
        if self.epoch_row and self.epoch_row["step"] == step:
            self.epoch_row |= judged
            self._write_epoch()
        if not self.target_reached and self._reaches_target(evaluation):
            self.target_reached = {"time_to_target_s": row["elapsed_s"], "samples_to_target": samples}

    def _reaches_target(self, evaluation: Evaluation) -> bool:
        arguments = self.job.arguments
        if arguments.target_f1 is not None:
            return evaluation.metrics["f1"] >= arguments.target_f1
        return arguments.target_loss is not None and evaluation.validation_loss <= arguments.target_loss

    def loss_jitter(self) -> float | None:
        """Mean absolute difference between the training losses of two steps that follow each other."""
        differences = [abs(after - before) for before, after in zip(self.losses, self.losses[1:], strict=False)]
        differences = [difference for difference in differences if math.isfinite(difference)]
        return sum(differences) / len(differences) if differences else None

    def elapsed(self, moment: float) -> float:
        """Seconds since the user's command began."""
        return round(moment - self.started_at, 3)

    def finish(self, order_hash: str, empty: dict[str, str]) -> None:
        """The run is finished; `empty`: why columns of the summary are."""
        self.steps.close()
        self.evaluations.close()
        self._write_epoch()
        self.epochs.close()
        if self.evaluation.predictions is not None:
            write_json(self.folder / "predictions.json", self.evaluation.predictions)
        self.description |= {"status": "finished", "ended": utc_time(time.time()), "empty": empty,
                             "order_hash": order_hash}
        free_room(self.folder / "run.json")
        write_json(self.folder / "run.json", self.description)


def claim_folder(job: Job) -> FolderLock:
    """Make a run's folder ours alone, and, where the run does not go on, empty.

    Raises:
        InputError: it cannot be, or another process writes a run there.
    """
    folder, output_dir = job.folder, job.arguments.output_dir
    try:
        folder.mkdir(parents=True, exist_ok=True)
        lock = FolderLock(folder)
        if job.checkpoint is None:
            for path in folder.iterdir():
                if path.is_dir() and not path.is_symlink():
                    shutil.rmtree(path)
                elif path.name != FolderLock.NAME:
                    path.unlink()
    except OSError as error:
        raise InputError(f"--output_dir {output_dir}: {error.filename}: {error.strerror}; use another "
                         "folder") from error
    return lock
