"""The step after forward and backward, the same for every strategy: unscale, clip, update, set the learning rate."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Protocol

import torch
import torch.distributed as dist
from torch import Tensor
from torch.nn import Parameter

from workload.batches import MicroBatch
from workload.job import Job
from workload.optimizer import (
    build_lr_schedule,
    build_optimizer,
    clip_by_global_norm,
    norm_on_device,
    skip_if_nonfinite,
)
from workload.precision import build_scaler, loss_scale, replace_zero_loss_scaler
from workload.training_state import TrainingState, ZeroTrainingState

if TYPE_CHECKING:
    from workload.shards import LocalShards  # brings in FSDP, which most runs need not wait for


@dataclass(frozen=True)
class Update:
    """One optimizer step, the same on every rank."""

    grad_norm: Tensor  # of the whole model's gradient, before clipping. ()
    learning_rate: float  # of this step
    noise: Tensor | None  # from `Noise.end_step`. (2,)


class Noise(Protocol):
    """Samples gradient norms for the noise scale; see `measurement.noise_scale.GradientNoise`."""

    def begin_step(self, step: int, micro_batches: Sequence[MicroBatch]) -> None: ...

    def end_step(self, batch_norm: Tensor, loss_scale: Tensor) -> Tensor | None: ...


class Optimization:
    """AdamW with its learning rate, clipping by the norm of the whole model, and fp16's loss scaling.

    A strategy's loop calls `begin_step`, `backward` for each micro-batch, and `step`. An engine that makes the update
    itself gets `optimizer`, has `clip` called just before its update, and is followed by `end_step`.

    Args:
        named_parameters: this rank's, under their names in the Hugging Face model.
        noise: samples the gradients' norms.
        group: the ranks that hold the model's other parts; None where this rank holds all of it.
        shards: plain tensors in the place of sharded parameters, see `workload.shards`.
        scaler: an engine's own, for fp16.
    """

    def __init__(self, job: Job, named_parameters: Iterable[tuple[str, Parameter]], noise: Noise,
                 group: dist.ProcessGroup | None = None, shards: "LocalShards | None" = None,
                 scaler: torch.amp.GradScaler | None = None) -> None:
        self.job, self.noise, self.group, self.shards = job, noise, group, shards
        self.device, self.micro_batches = job.processes.device, job.batch_split.micro_batches
        self.named_parameters = list(named_parameters)
        distinct = dict.fromkeys(p for _, p in self.named_parameters)  # one stage has a shared weight in two layers
        self.parameters = list(distinct if shards is None else shards.values())
        self.optimizer = build_optimizer(self.parameters, job.arguments)
        self.lr_schedule = build_lr_schedule(self.optimizer, job.arguments, job.steps)
        self.scaler = scaler or build_scaler(job.precision, self.device, group)
        training_state = TrainingState if shards is None else shards.training_state
        self.state = training_state(self.named_parameters, self.optimizer, self.lr_schedule, self.scaler,
                                    job.processes.devices)
        self.zero: Any = None  # DeepSpeed's optimizer around ours, under ZeRO 1 to 3
        self.overflowed = torch.full((), float("inf"), device=self.device)  # the norm of a step that an engine skips

    def under_zero(self, zero_optimizer: Any) -> None:
        """Leave loss scaling, clipping and skipped steps to DeepSpeed's ZeRO 1 to 3, which has wrapped `optimizer`."""
        if self.job.precision == "fp16":
            replace_zero_loss_scaler(zero_optimizer)
        self.zero = zero_optimizer
        self.state = ZeroTrainingState(self.named_parameters, self.optimizer, self.lr_schedule, zero_optimizer,
                                       self.job.processes.devices)

    def begin_step(self, step: int, micro_batches: Sequence[MicroBatch] = ()) -> None:
        """Prepare `step`, counted from 1; a weight that two stages share needs `micro_batches`, see `GradientNoise`."""
        self.noise.begin_step(step, micro_batches)
        self.grad_norm = self.overflowed
        self.learning_rate = float(self.lr_schedule.get_last_lr()[0])
        self.scale = (loss_scale(self.scaler, self.device) if self.zero is None
                      else torch.full((1,), self.zero.loss_scale, device=self.device))

    def backward(self, loss: Tensor) -> Tensor:
        """Add a micro-batch's gradients, given its mean loss; returns its part of the replica's mean loss. () -> ()"""
        loss = loss / self.micro_batches
        self.scaler.scale(loss).backward()
        return loss.detach()

    def clip(self, *_: Any) -> None:
        """Clip the complete, unscaled gradients. Can be registered as the optimizer's pre-step hook."""
        self.grad_norm = clip_by_global_norm(self.parameters, self.job.arguments.max_grad_norm, self.group)
        skip_if_nonfinite(self.optimizer, self.grad_norm, self.job.arguments)

    def step(self) -> Update:
        """Update the parameters from the complete gradients."""
        if self.shards is not None:
            self.shards.take_gradients()
        self.scaler.unscale_(self.optimizer)
        self.clip()
        self.scaler.step(self.optimizer)
        self.scaler.update()
        self.optimizer.zero_grad()
        self.lr_schedule.step()
        return self.end_step()

    def end_step(self, grad_norm: Tensor | float | None = None) -> Update:
        """End a step after its update; `grad_norm` comes from an engine that clips by itself. ()"""
        if grad_norm is not None:
            self.grad_norm = norm_on_device(grad_norm, self.device)
        return Update(self.grad_norm, self.learning_rate, self.noise.end_step(self.grad_norm, self.scale))
