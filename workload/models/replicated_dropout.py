"""Dropout under tensor parallelism: two streams of random numbers on each device.

What every device of a tensor group holds whole must lose the same values on each of them. What is split, such as
the attention weights of a device's own heads, must lose other values on each: with one seed for all devices the first
head of each would get the same mask. So PyTorch's own generator is a device's own, and dropouts of whole activations
draw from a second one, which has the same state on every device of the group.
"""

import contextlib
from collections.abc import Iterable, Iterator

import torch
from torch import Tensor, nn

from workload.models.recomputation import Contexts


class ReplicatedDropout:
    """Random numbers that are the same on every device of a tensor group.

    While an attached dropout runs, the device's generator has this one's state, as kernels of GPUs take no other.

    Args:
        device: whose generator dropout uses.
        seed: the same for a group, and no device's own.
    """

    def __init__(self, device: torch.device, seed: int) -> None:
        is_gpu = device.type == "cuda"
        self.generator = torch.cuda.default_generators[device.index] if is_gpu else torch.default_generator
        self.own = self.generator.get_state()
        self.state = self.generator.manual_seed(seed).get_state()
        self.generator.set_state(self.own)

    def attach(self, dropouts: Iterable[nn.Module]) -> None:
        """Let these modules draw from this generator."""
        for dropout in dropouts:
            dropout.register_forward_pre_hook(self._begin)
            dropout.register_forward_hook(self._end)

    def contexts(self) -> Contexts:
        """For `recompute_layers`: a layer that is computed again draws what it drew in its forward pass."""
        drawn_from = self.state

        @contextlib.contextmanager
        def first() -> Iterator[None]:
            nonlocal drawn_from
            drawn_from = self.state
            yield

        @contextlib.contextmanager
        def again() -> Iterator[None]:
            now, self.state = self.state, drawn_from
            try:
                yield
            finally:
                self.state = now

        return first(), again()

    def _begin(self, module: nn.Module, _inputs: tuple) -> None:
        if _draws(module):
            self.own = self.generator.get_state()
            self.generator.set_state(self.state)

    def _end(self, module: nn.Module, _inputs: tuple, _output: Tensor) -> None:
        if _draws(module):
            self.state = self.generator.get_state()
            self.generator.set_state(self.own)


def _draws(dropout: nn.Module) -> bool:
    return dropout.training and bool(dropout.p)
