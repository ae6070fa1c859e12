"""A model as a list of layers: all of them in order, for pipelines to cut, or the repeated ones that give its depth."""

from typing import TYPE_CHECKING

import torch
from torch.nn import Module

from workload.models.families import FAMILIES, Activation, Layer, TransformerLayer, visible_keys
from workload.models.tensor_plans import TensorPlan

if TYPE_CHECKING:
    from transformers import PreTrainedModel  # takes seconds

__all__ = ["ORDERED_LAYERS", "TENSOR_PLANS", "Activation", "Layer", "TransformerLayer", "layer_names",
           "ordered_layers", "shared_weight", "tensor_plan", "transformer_modules", "visible_keys"]

TENSOR_PLANS = {model_type: family.tensor_plan for model_type, family in FAMILIES.items() if family.tensor_plan}
ORDERED_LAYERS = {model_type: family.layers for model_type, family in FAMILIES.items() if family.layers}


def ordered_layers(model: "PreTrainedModel") -> dict[str, Layer]:
    """The layers of a model in order, each under its module's name. Its `model_type` must be in `ORDERED_LAYERS`."""
    return ORDERED_LAYERS[model.config.model_type](model)


def transformer_modules(model: Module) -> dict[str, Module]:
    """The repeated modules that make up the depth of any Hugging Face model, under their names there."""
    name, stack = max(((name, module) for name, module in model.named_modules()
                       if isinstance(module, torch.nn.ModuleList)), key=lambda found: len(found[1]))
    return {f"{name}.{index}": module for index, module in enumerate(stack)}


def tensor_plan(model: "PreTrainedModel") -> TensorPlan:
    """How tensor parallelism splits the layers of a model; `prepare` has refused those without a plan."""
    return TENSOR_PLANS[model.config.model_type]


def layer_names(model: "PreTrainedModel") -> list[str]:
    """The layers of a rank that holds the whole model, for its record; only the repeated ones if others are unknown."""
    is_known = model.config.model_type in ORDERED_LAYERS
    return list(ordered_layers(model) if is_known else transformer_modules(model))


def shared_weight(layers: dict[str, Layer]) -> torch.nn.Parameter | None:
    """The weight that the first and the last of `ordered_layers` share (GPT-2's token embedding), if any."""
    first, last = list(layers.values())[:: max(len(layers) - 1, 1)]
    weight = getattr(first.module, "weight", None)
    return weight if weight is not None and weight is getattr(last.module, "weight", None) else None
