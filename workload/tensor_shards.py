"""This rank's part of a model under tensor parallelism: what the optimizer updates, what counts, and what is saved."""

from collections.abc import Iterable, Mapping

import torch
from torch import Tensor
from torch.distributed.device_mesh import DeviceMesh
from torch.distributed.tensor import DTensor, Shard
from torch.nn import Module, Parameter

from workload.models.replicated_dropout import ReplicatedDropout
from workload.models.tensor_plans import Arrangement
from workload.shards import LocalShards, local_gradient
from workload.training_state import MOMENTS, TrainingState

DATA, TENSOR = "data", "tensor"  # names of the mesh's dimensions: replicas, and the devices of one tensor group


class TensorShards(LocalShards):
    """Parameter of the model -> the plain parameter that the optimizer updates in its place: itself if it is plain.

    Args:
        model: after its parameters have been sharded.
        arrangements: of the parameters that differ from the Hugging Face model's, by name.
        tensor_rank: this rank's place in its tensor group. What all of the group hold counts on the first only.
        dropout: whose random numbers checkpoints keep.
    """

    def __init__(self, model: Module, arrangements: Mapping[str, Arrangement], tensor_rank: int,
                 dropout: ReplicatedDropout) -> None:
        super().__init__(model.parameters())
        self.arrangements, self.tensor_rank, self.dropout = arrangements, tensor_rank, dropout
        # Under each of its names, and now: while FSDP has gathered a parameter, another stands in its place.
        self.named_parameters = list(model.named_parameters(remove_duplicate=False))
        for parameter, shard in self.items():
            if not is_counted(parameter, tensor_rank):
                shard.ds_pipe_replicated = True  # pyright: ignore[reportAttributeAccessIssue]  see `pieces.is_counted`

    def counted_gradient(self, parameter: Parameter, gradient: Tensor) -> Tensor:
        """The elements of a micro-batch's gradient that this rank adds to the norm. To be called on the whole group."""
        if isinstance(parameter, DTensor):
            gradient = local_gradient(parameter, gradient)
        return gradient if is_counted(parameter, self.tensor_rank) else gradient.new_zeros(0)

    def whole(self, name: str, parameter: Parameter, value: Tensor) -> Tensor:
        """A value with the parameter's placement, as in the Hugging Face model, on the CPU. To be called on every rank.

        Args:
            value: this rank's part of the parameter or of a moment.
        """
        data, tensor = _dimension(parameter, DATA), _dimension(parameter, TENSOR)
        if data is not None:  # FSDP has sharded what tensor parallelism had left
            shape = list(parameter.shape)
            if tensor is not None:
                shape[tensor] //= _mesh(parameter, TENSOR).size()
            value = _gather(value, _mesh(parameter, DATA), data, torch.Size(shape))
        if tensor is not None:
            value = _gather(value, _mesh(parameter, TENSOR), tensor, parameter.shape)
        return self.arrangements.get(name, Arrangement()).put_back(value.detach().cpu())

    def part(self, name: str, parameter: Parameter, whole: Tensor) -> Tensor:
        """This rank's part of a whole tensor: the reverse of `whole`."""
        part = self.arrangements.get(name, Arrangement()).arrange(whole)
        for mesh_dimension in (TENSOR, DATA):
            dimension = _dimension(parameter, mesh_dimension)
            if dimension is not None:
                mesh = _mesh(parameter, mesh_dimension)
                parts, rank = part.chunk(mesh.size(), dimension), mesh.get_local_rank()
                part = parts[rank] if rank < len(parts) else part.narrow(dimension, 0, 0)
        return part

    def whole_weights(self) -> dict[str, Tensor]:
        """All weights as in the Hugging Face model, on the CPU of every rank."""
        return {name: self.whole(name, parameter, self[parameter]) for name, parameter in self.named_parameters}

    def training_state(self, named_parameters: Iterable[tuple[str, Parameter]], *rest) -> TrainingState:
        """The state of parameters whose optimizer has these shards; see `TrainingState`."""
        return TensorTrainingState(self, named_parameters, *rest)


class TensorTrainingState(TrainingState):
    """The state under tensor parallelism.

    While a checkpoint is written or read, every process holds all of it in the CPU's memory: three times the parameters
    in fp32.
    """

    def __init__(self, shards: TensorShards, *rest) -> None:
        super().__init__(*rest)
        self.shards = shards

    def _tensors(self) -> dict[str, Tensor]:
        tensors = {}
        for name, parameter in self.parameters:
            shard = self.shards[parameter]
            tensors[name] = self.shards.whole(name, parameter, shard)
            tensors |= {f"{name}/{moment}": self.shards.whole(name, parameter, self.optimizer.state[shard][moment])
                        for moment in MOMENTS}
        return tensors

    def _put(self, tensors: dict[str, Tensor]) -> None:
        for name, parameter in self.parameters:
            shard = self.shards[parameter]
            state = self.optimizer.state[shard]
            shard.copy_(self.shards.part(name, parameter, tensors[name]))
            for moment in MOMENTS:
                state[moment].copy_(self.shards.part(name, parameter, tensors[f"{name}/{moment}"]))

    def _random_states(self) -> dict[str, Tensor]:
        states = super()._random_states()
        return states | {f"random/{torch.distributed.get_rank()}/replicated": self.shards.dropout.state}

    def _put_random_states(self, states: list[Tensor]) -> None:
        *own, self.shards.dropout.state = states
        super()._put_random_states(own)


def is_counted(parameter: Parameter, tensor_rank: int) -> bool:
    """Whether norms and sizes include a parameter's elements on the rank with this place in its tensor group."""
    return tensor_rank == 0 or _dimension(parameter, TENSOR) is not None


def counted_elements(model: Module, tensor_rank: int) -> int:
    """Elements of the parameters that count on this rank; over a tensor group they add up to the whole model."""
    return sum((p.to_local() if isinstance(p, DTensor) else p).numel() for p in model.parameters()
               if is_counted(p, tensor_rank))


def _dimension(parameter: Parameter, mesh_dimension: str) -> int | None:
    """The dimension of a parameter that is sharded over a mesh's dimension, if one is."""
    if not isinstance(parameter, DTensor) or mesh_dimension not in (parameter.device_mesh.mesh_dim_names or ()):
        return None
    place = (parameter.device_mesh.mesh_dim_names or ()).index(mesh_dimension)
    return getattr(parameter.placements[place], "dim", None)  # of a `Shard`; a `Replicate` has none


def _mesh(parameter: Parameter, mesh_dimension: str) -> DeviceMesh:
    """One dimension of the mesh of a parameter that is sharded over it."""
    assert isinstance(parameter, DTensor)  # as is every sharded one
    return parameter.device_mesh[mesh_dimension]


def _gather(part: Tensor, mesh: DeviceMesh, dimension: int, shape: torch.Size) -> Tensor:
    """The whole of a tensor that is sharded over a mesh in one dimension."""
    stride = torch.empty(shape, device="meta").stride()
    return DTensor.from_local(part, mesh, [Shard(dimension)], run_check=False, shape=shape, stride=stride).full_tensor()
