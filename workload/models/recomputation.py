"""Activation checkpointing: a layer keeps its input only, and computes the rest again in the backward pass."""

from typing import TYPE_CHECKING

from workload.errors import InputError
from workload.models.layers import transformer_modules

if TYPE_CHECKING:
    from transformers import PreTrainedModel  # takes seconds


def recompute_layers(model: "PreTrainedModel", name: str) -> None:
    """Have each transformer layer of a Hugging Face model computed twice while it trains, with the same dropout.

    Args:
        name: of the model, for the error.

    Raises:
        InputError: the layers of this family cannot do it.
    """
    from transformers.modeling_layers import GradientCheckpointingLayer

    if not all(isinstance(layer, GradientCheckpointingLayer) for layer in transformer_modules(model).values()):
        raise InputError(f"--activation_checkpointing: transformers cannot recompute the layers of --model {name}, of "
                         f"the family {model.config.model_type!r}; leave it out")
    # Non-reentrant, so that gradients come as without it, and hooks on them are called once. The layers' own hooks,
    # such as FSDP's, stay outside.
    model.activation_checkpointing_enable({"use_reentrant": False})
