"""Activation checkpointing: a layer keeps its input only, and computes the rest again in the backward pass."""

from collections.abc import Callable
from contextlib import AbstractContextManager
from typing import TYPE_CHECKING

from workload.errors import InputError
from workload.models.layers import transformer_modules

if TYPE_CHECKING:
    from transformers import PreTrainedModel  # takes seconds


Contexts = tuple[AbstractContextManager, AbstractContextManager]


def recompute_layers(model: "PreTrainedModel", name: str, contexts: Callable[[], Contexts] | None = None) -> None:
    """Have each transformer layer of a Hugging Face model computed twice while it trains, with the same dropout.

    Args:
        name: of the model, for the error.
        contexts: makes what a layer's forward pass runs in, and what computing it again runs in. PyTorch restores the
            devices' generators by itself.

    Raises:
        InputError: the layers of this family cannot do it.
    """
    from transformers.modeling_layers import GradientCheckpointingLayer

    if not all(isinstance(layer, GradientCheckpointingLayer) for layer in transformer_modules(model).values()):
        raise InputError(f"--activation_checkpointing: transformers cannot recompute the layers of --model {name}, of "
                         f"the family {model.config.model_type!r}; leave it out")
    # Non-reentrant, so that gradients come as without it, and hooks on them are called once. The layers' own hooks,
    # such as FSDP's, stay outside.
    model.activation_checkpointing_enable({"use_reentrant": False, **({"context_fn": contexts} if contexts else {})})
