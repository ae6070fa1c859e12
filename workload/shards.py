"""This rank's shards of DTensors as plain tensors of the same memory.

PyTorch sends every operation on a DTensor through Python, parameter by parameter. Norm, clipping and update work on a
shard's own elements, but for one sum over the ranks, so they need none of that.
"""

from collections.abc import Iterable

import torch
from torch import Tensor
from torch.distributed.fsdp import FSDPModule
from torch.distributed.tensor import DTensor
from torch.nn import Parameter

from workload.training_state import TrainingState


class LocalShards(dict[Parameter, Parameter]):
    """Sharded parameter -> the plain parameter that the optimizer updates in its place.

    Args:
        parameters: DTensors whose memory stays where it is during training.
    """

    def __init__(self, parameters: Iterable[Parameter]) -> None:
        super().__init__({parameter: Parameter(parameter.to_local()) if isinstance(parameter, DTensor) else parameter
                          for parameter in parameters})

    def take_gradients(self) -> None:
        """Move the gradients of the sharded parameters to the plain ones."""
        for parameter, shard in self.items():
            if parameter.grad is not None and shard is not parameter:
                shard.grad = local_gradient(parameter, parameter.grad)
                parameter.grad = None

    def training_state(self, named_parameters: Iterable[tuple[str, Parameter]], *rest) -> TrainingState:
        """The state of sharded parameters whose optimizer has these shards; see `TrainingState`."""
        return ShardedTrainingState(self, named_parameters, *rest)


class ShardedTrainingState(TrainingState):
    """The state of a strategy whose optimizer updates `LocalShards`; checkpoints still hold whole tensors."""

    def __init__(self, shards: LocalShards, *rest) -> None:
        super().__init__(*rest)
        self.shards = shards

    def _moment(self, parameter: Parameter, name: str) -> Tensor:
        """A moment as a DTensor with the parameter's placement."""
        sharded = _as_dtensor(parameter)
        return DTensor.from_local(self.optimizer.state[self.shards[parameter]][name], sharded.device_mesh,
                                  sharded.placements, run_check=False, shape=sharded.shape, stride=sharded.stride())


def local_gradient(parameter: Parameter, gradient: Tensor) -> Tensor:
    """This rank's part of a sharded parameter's gradient.

    It is summed first where devices hold summands of it: of a LayerNorm, say, that each applies to its own tokens.
    """
    gradient = _as_dtensor(gradient)
    if gradient.placements != _as_dtensor(parameter).placements:
        gradient = gradient.redistribute(placements=_as_dtensor(parameter).placements)
    return gradient.to_local()


def _as_dtensor(tensor: Tensor) -> DTensor:
    assert isinstance(tensor, DTensor)  # as every sharded parameter and its gradient
    return tensor


def whole_parameters(model: torch.nn.Module) -> list[Parameter]:
    """The parameters that forward and backward of an FSDP model use, the only ones on which gradient hooks fire.

    FSDP puts them in the place of the shards while a layer is gathered. They are the same tensors each time; only
    their memory comes and goes. This makes them, one module's at a time.
    """
    sharded, whole = set(model.parameters()), []
    for module in model.modules():
        if isinstance(module, FSDPModule):
            module.unshard()
            whole += [parameter for parameter in module.parameters() if parameter not in sharded]
            module.reshard()
    return whole
