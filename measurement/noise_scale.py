"""The gradient noise scale's raw material: squared gradient norms of micro-batches, and of the whole batch.

One estimator for every engine. Hooks on the parameters see each micro-batch's own gradient before it is accumulated
or reduced; their squared norms add up over parameters, micro-batches and ranks. The gradient that the optimizer gets
is the batch's.
"""

import functools
from collections.abc import Callable, Iterable, Sequence

import torch
import torch.distributed as dist

from workload.batches import BatchSplit, MicroBatch, to_device
from workload.pipelines.pieces import SharedWeight


class GradientNoise:
    """Samples a step's squared gradient norms.

    Args:
        parameters: this rank's, as the forward pass uses them.
        split: how a step's batch is cut. Each micro-batch's loss counts 1 / (micro-batches of a replica).
        every: steps from one sample to the next; 0 samples none.
        shared: tied weight split over two stages, if the pipeline has one.
        counted: given a parameter and its gradient, the elements that this rank counts. Default: all.
    """

    def __init__(self, parameters: Iterable[torch.nn.Parameter], split: BatchSplit, every: int,
                 shared: SharedWeight | None = None,
                 counted: Callable[[torch.nn.Parameter, torch.Tensor], torch.Tensor] | None = None) -> None:
        self.parameters = [p for p in parameters if p.requires_grad]
        self.micro_batches, self.gradient_scale = split.replicas * split.micro_batches, 1 / split.micro_batches
        self.every = every
        self.shared = _SharedGradients(shared) if shared else None
        self.counted = counted or (lambda parameter, gradient: gradient)
        self.hooks: list[torch.utils.hooks.RemovableHandle] = []
        self.norms: list[torch.Tensor] = []  # of each parameter's gradient in each micro-batch

    def begin_step(self, step: int, micro_batches: Sequence[MicroBatch] = ()) -> None:
        """Watch the gradients of `step` (counted from 1) if it is sampled.

        Args:
            micro_batches: of this replica in the order of their backward passes; needed for a shared weight only.
        """
        if self.every and step % self.every == 0:
            self.hooks = [p.register_hook(functools.partial(self._add, p)) for p in self.parameters]
            if self.shared:
                self.hooks += self.shared.watch(micro_batches)

    def end_step(self, batch_norm: torch.Tensor, loss_scale: torch.Tensor) -> torch.Tensor | None:
        """Squared norms of this step: (2,), the mean over micro-batches and the whole batch's; None if not sampled.

        Args:
            batch_norm: of the accumulated, reduced, unscaled gradient before clipping, over the whole model. ()
            loss_scale: by which the loss was multiplied (fp16), else 1. (1,)
        """
        if not self.hooks:
            return None
        for hook in self.hooks:
            hook.remove()
        self.hooks = []
        total = torch.stack(self.norms).square().sum() if self.norms else torch.zeros((), device=batch_norm.device)
        self.norms = []
        if self.shared:
            total = total + 2 * self.shared.product()
        dist.all_reduce(total)
        mean = total / self.micro_batches / (self.gradient_scale * loss_scale) ** 2
        return torch.cat([mean.reshape(1), batch_norm.float().square().reshape(1)])

    def _add(self, parameter: torch.nn.Parameter, gradient: torch.Tensor) -> None:
        self.norms.append(torch.linalg.vector_norm(self.counted(parameter, gradient), dtype=torch.float32))


class _SharedGradients:
    """Computes a.b, summed over micro-batches, for a weight that two pieces of a pipeline share.

    The weight's gradient is a + b, one part from each piece; its squared norm is |a|^2 + |b|^2 + 2 a.b. The embedding's
    part, a, is zero except in the rows of the tokens in the micro-batch. So only these rows of b are kept, and they are
    sent once per sampled step.
    """

    def __init__(self, shared: SharedWeight) -> None:
        self.copies, self.group = shared.copies, shared.group

    def watch(self, micro_batches: Sequence[MicroBatch]) -> list[torch.utils.hooks.RemovableHandle]:
        """Keep the rows of every micro-batch's gradients until `product`; returns the hooks to remove then."""
        self.kept: list[list[torch.Tensor]] = [[] for _ in self.copies]
        if not self.copies:
            return []
        # `unique` runs on the host: its result's size would make the host wait for the device.
        tokens = [to_device(micro_batch.host_tokens.unique(), self.copies[0].device) for micro_batch in micro_batches]
        return [copy.register_hook(lambda gradient, kept=kept: kept.append(gradient[tokens[len(kept)]].float()))
                for copy, kept in zip(self.copies, self.kept, strict=True)]

    def product(self) -> torch.Tensor | float:
        """The sum of a.b on the rank that holds the first layer; 0 elsewhere."""
        kept = [torch.cat(rows) for rows in self.kept]  # (tokens of all micro-batches, hidden)
        if not kept:
            return 0.0
        if self.group is None:
            return (kept[0] * kept[1]).sum()
        other = kept[0].clone()
        dist.broadcast(other, dist.get_global_rank(self.group, 1), group=self.group)
        return (kept[0] * other).sum() if dist.get_rank(self.group) == 0 else 0.0
