"""One evaluation: every evaluation sample once, whatever the number of devices."""

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import torch

from workload.batches import Batches, Share
from workload.job import Job
from workload.launch.groups import gather
from workload.launch.processes import Processes
from workload.precision import autocast

if TYPE_CHECKING:
    from workload.tasks.task import Task

# This replica's share -> each micro-batch's `Task.losses_and_outputs`; None on a rank without the model's head.
Forward = Callable[[Share], Iterable[tuple[torch.Tensor, torch.Tensor]] | None]


@dataclass
class Evaluation:
    """The outcome of an evaluation, on rank 0."""

    validation_loss: float  # mean over samples
    metrics: dict[str, float]
    predictions: dict[str, str] | None


def whole_model(job: Job, model: torch.nn.Module, called: torch.nn.Module | None = None) -> Forward:
    """The forward pass of a rank that runs all of the model.

    Args:
        called: called in its place, such as an engine around it.
    """
    def forward(share: Share) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
        model.eval()
        for micro_batch in share.micro_batches:
            with autocast(job.precision, job.processes.device):
                logits = job.task.logits(called or model, micro_batch.inputs)
            yield job.task.losses_and_outputs(logits, micro_batch.labels)
    return forward


def evaluate(task: "Task", batches: Batches, processes: Processes, forward: Forward) -> Evaluation | None:
    """Run `forward` over the evaluation samples; on rank 0 the scores, elsewhere None."""
    losses: dict[int, float] = {}  # by row of the samples, as are the outputs
    outputs: dict[int, np.ndarray] = {}
    global_batches = list(batches.evaluation())
    bar = processes.progress_bar(batches.shares(global_batches), total=len(global_batches), desc="evaluating",
                                 unit="batch", leave=False)
    with torch.no_grad():
        for _, share in bar:
            results = forward(share)
            if results is None:
                continue
            for micro_batch, (loss, output) in zip(share.micro_batches, results, strict=True):
                # The last batch is filled up with repeated rows, which overwrite themselves.
                losses.update(zip(micro_batch.indices, loss.tolist(), strict=True))
                outputs.update(zip(micro_batch.indices, output.float().cpu().numpy(), strict=True))

    parts = gather((losses, outputs))
    if parts is None:
        return None
    losses = {row: loss for part, _ in parts for row, loss in part.items()}
    outputs = {row: values for _, part in parts for row, values in part.items()}
    assert len(losses) == len(batches.features), "an evaluation sample was left out"
    metrics, predictions = task.score(outputs)
    return Evaluation(sum(losses.values()) / len(losses), metrics, predictions)
