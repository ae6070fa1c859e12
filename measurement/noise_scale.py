"""The gradient noise scale's raw material: squared gradient norms of micro-batches, and of the whole batch.

One estimator for every engine. Hooks on the parameters see each micro-batch's own gradient before it is accumulated
or reduced; their squared norms add up over parameters, micro-batches and ranks. The gradient that the optimizer gets
is the batch's.
"""

from collections.abc import Iterable

import torch
import torch.distributed as dist


class GradientNoise:
    """Samples a step's squared gradient norms.

    Args:
        parameters: those of this rank, each copy of a tied one on one rank only.
        micro_batches: in a step, over all replicas.
        gradient_scale: what the strategy multiplies a micro-batch's loss with before `backward`, such as
            1 / (micro-batches of a replica).
        every: sample one step in so many; 0: none.
    """

    def __init__(self, parameters: Iterable[torch.nn.Parameter], micro_batches: int, gradient_scale: float,
                 every: int) -> None:
        self.parameters = [p for p in parameters if p.requires_grad]
        self.micro_batches, self.gradient_scale, self.every = micro_batches, gradient_scale, every
        self.hooks: list[torch.utils.hooks.RemovableHandle] = []
        self.squares: list[torch.Tensor] = []

    def begin_step(self, step: int) -> None:
        """Watch the gradients of `step` (counted from 1), if it is one to sample."""
        if self.every and step % self.every == 0:
            self.hooks = [p.register_hook(self._add) for p in self.parameters]

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
        total = torch.stack(self.squares).sum() if self.squares else torch.zeros((), device=batch_norm.device)
        self.squares = []
        dist.all_reduce(total)
        mean = total / self.micro_batches / (self.gradient_scale * loss_scale) ** 2
        return torch.cat([mean.reshape(1), batch_norm.float().square().reshape(1)])

    def _add(self, gradient: torch.Tensor) -> None:
        self.squares.append(torch.linalg.vector_norm(gradient.detach(), dtype=torch.float32).square())
