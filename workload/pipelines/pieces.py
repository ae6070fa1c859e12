"""Cuts `ordered_layers` into pieces of a pipeline, keeps a shared weight equal, and saves the pieces as one model."""

import contextlib
from pathlib import Path
from typing import TYPE_CHECKING

import torch
import torch.distributed as dist
from torch.nn import Parameter

from workload.launch.groups import gather
from workload.models.layers import Activation, Layer, shared_weight
from workload.models.loading import write_model
from workload.pipelines.dealing import cut_costs

if TYPE_CHECKING:
    from workload.tasks.task import Task


class Piece(torch.nn.Module):
    """Consecutive layers as one module for PyTorch's pipelines, which pass each tensor as an argument.

    Args:
        autocast: sets the precision of the forward pass; the backward pass runs outside it.
    """

    def __init__(self, layers: dict[str, Layer], autocast: contextlib.AbstractContextManager) -> None:
        super().__init__()
        self.layers, self.autocast = torch.nn.Sequential(*layers.values()), autocast

    def forward(self, *activation: torch.Tensor) -> Activation | torch.Tensor:
        with self.autocast:
            return self.layers(activation)


def step_cost(layer: Layer) -> float:
    """The relative time that a layer takes in a step, estimated from its weights.

    Matrices are multiplied with every token. The other weights, above all those of embeddings, are only read, written
    and updated. That they cost a fiftieth as much is an estimate, not a measurement: 6 FLOPs per token and weight
    against some 120 bytes per weight and step, at 12,000 tokens a step and ten FLOPs in the time of a byte. The cut is
    rarely sensitive to it.
    """
    parameters = [(p, isinstance(module, torch.nn.Embedding)) for module in layer.modules()
                  for p in module.parameters(recurse=False)]
    return sum(p.numel() * (1.0 if p.ndim == 2 and not is_embedding else 0.02) for p, is_embedding in parameters)


def cut(layers: dict[str, Layer], pieces: int) -> list[dict[str, Layer]]:
    """Cut `ordered_layers` into consecutive pieces whose costs are as equal as possible."""
    names = list(layers)
    return [{name: layers[name] for name in names[begin:end]}
            for begin, end in cut_costs([step_cost(layer) for layer in layers.values()], pieces)]


class SharedWeight:
    """The weight shared by a model's first and last layer, when a pipeline puts these into different pieces.

    Each piece has a copy. Both start equal and get the same gradient, the sum of both pieces', and so stay equal. The
    second copy has the mark that DeepSpeed uses, so that norms and counts include the weight only once.

    Args:
        copies: on this rank: none, one, or, if it holds both pieces, the first layer's and the last layer's.
        group: the two ranks that hold the pieces, first layer's first; None if one rank holds both.
    """

    def __init__(self, copies: list[Parameter], group: dist.ProcessGroup | None) -> None:
        self.copies, self.group = copies, group

    def add_up_gradients(self) -> None:
        """Give every copy the sum of all copies' gradients."""
        if self.group is not None and self.copies:
            dist.all_reduce(self.copies[0].grad, group=self.group)
        elif self.copies:
            first, last = (copy.grad for copy in self.copies)
            assert first is not None and last is not None  # every backward pass goes through both
            first += last
            last.copy_(first)


def is_counted(parameter: Parameter) -> bool:
    """Whether a parameter is the first copy of its weight, or the only one."""
    return not getattr(parameter, "ds_pipe_replicated", False)


def share_over(pieces: list[dict[str, Layer]], mine: list[int], group: dist.ProcessGroup | None) -> SharedWeight | None:
    """Give the first and the last piece a copy each of the weight that they share; None if they share none.

    Args:
        pieces: the whole model, from `cut`.
        mine: numbers of the pieces on this rank.
        group: the ranks that hold the first and the last piece; None if one rank holds both.
    """
    weight = shared_weight({name: layer for piece in pieces for name, layer in piece.items()})
    if weight is None or len(pieces) == 1:
        return None
    last, copy = list(pieces[-1].values())[-1], Parameter(weight.detach().clone())
    copy.ds_pipe_replicated = True  # pyright: ignore[reportAttributeAccessIssue]  an attribute of DeepSpeed's
    last.module.weight = copy
    return SharedWeight([each for each, piece in ((weight, 0), (copy, len(pieces) - 1)) if piece in mine], group)


def hugging_face_state(layers: dict[str, Layer]) -> dict[str, torch.Tensor]:
    """The weights of some of `ordered_layers`, on the CPU, under the names of the Hugging Face model."""
    return {f"{name}.{key}": tensor.detach().cpu()
            for name, layer in layers.items() for key, tensor in layer.module.state_dict().items()}


def save_model(task: "Task", layers: dict[str, Layer], replica: int, folder: Path) -> None:
    """Gather the layers of all ranks on rank 0 and save them as one Hugging Face model."""
    states = gather(hugging_face_state(layers) if replica == 0 else {})
    if states is not None:
        write_model(task, {name: tensor for state in states for name, tensor in state.items()}, folder)
