"""Hugging Face models as ordered lists of layers, for pipelines to cut: their own modules, with their own weights.

Between two layers pass at most one floating tensor and the attention mask, in a tuple. Every floating tensor that
crosses a stage boundary must get a gradient, so the mask crosses as integers and is made additive inside each layer.
"""

from collections.abc import Callable

import torch
from torch import Tensor
from torch.nn import Module

Activation = tuple[Tensor, ...]  # the model's inputs; then hidden (batch, length, hidden), and the mask if it is padded


class Layer(Module):
    """One module of a model, called with what the layer before it gives.

    Args:
        module: whose weights these are.
        run: calls the module with the activation.
        dropout: that `run` applies beside the module, if any; here so that it is switched on and off with the layer.
    """

    def __init__(self, module: Module, run: Callable[["Layer", Activation], Activation | Tensor],
                 dropout: Module | None = None) -> None:
        super().__init__()
        self.module, self.run, self.dropout = module, run, dropout

    def forward(self, activation: Activation) -> Activation | Tensor:
        return self.run(self, activation)


def visible_keys(mask: Tensor) -> Tensor:
    """A mask over real tokens as attention takes it: (batch, length) -> bool (batch, 1 head, 1 query, length keys)"""
    return mask[:, None, None, :].bool()


def bert_layers(model: Module) -> dict[str, Layer]:
    """Of a `BertForQuestionAnswering` or a `BertForSequenceClassification`."""
    def embed(layer: Layer, inputs: Activation) -> Activation:
        input_ids, token_type_ids, *mask = inputs  # each (batch, length)
        return layer.module(input_ids=input_ids, token_type_ids=token_type_ids), *mask

    def encode(layer: Layer, activation: Activation) -> Activation:
        hidden, *mask = activation
        return layer.module(hidden, *map(visible_keys, mask)), *mask

    def answer(layer: Layer, activation: Activation) -> Tensor:  # (batch, length, 2)
        return layer.module(activation[0])

    def pool(layer: Layer, activation: Activation) -> Activation:  # (batch, hidden)
        return (layer.module(activation[0]),)

    def classify(layer: Layer, activation: Activation) -> Tensor:  # (batch, classes)
        return layer.module(layer.dropout(activation[0]))

    layers = {"bert.embeddings": Layer(model.bert.embeddings, embed)}
    for index, module in enumerate(model.bert.encoder.layer):
        layers[f"bert.encoder.layer.{index}"] = Layer(module, encode)
    if hasattr(model, "qa_outputs"):
        return layers | {"qa_outputs": Layer(model.qa_outputs, answer)}
    return layers | {"bert.pooler": Layer(model.bert.pooler, pool),
                     "classifier": Layer(model.classifier, classify, model.dropout)}


def encoder_classifier_layers(model: Module) -> dict[str, Layer]:
    """Of our own `EncoderClassifier`."""
    def embed(layer: Layer, inputs: Activation) -> Activation:
        input_ids, *mask = inputs
        return layer.module(input_ids), *mask

    def encode(layer: Layer, activation: Activation) -> Activation:
        return layer.module(*activation), *activation[1:]

    def classify(layer: Layer, activation: Activation) -> Tensor:  # (batch, classes)
        return layer.module(*activation)

    layers = {f"layers.{index}": Layer(module, encode) for index, module in enumerate(model.layers)}
    return {"embeddings": Layer(model.embeddings, embed), **layers, "classifier": Layer(model.classifier, classify)}


def gpt2_layers(model: Module) -> dict[str, Layer]:
    """Of a `GPT2LMHeadModel`, whose first and last layer share their weight. Its texts fill their blocks: no mask."""
    gpt2 = model.transformer

    def embed(layer: Layer, inputs: Activation) -> Activation:
        return (layer.module(inputs[0]),)

    def add_positions(layer: Layer, activation: Activation) -> Activation:
        hidden = activation[0]
        positions = torch.arange(hidden.shape[1], device=hidden.device)
        return (layer.dropout(hidden + layer.module(positions)),)

    def decode(layer: Layer, activation: Activation) -> Activation:
        return (layer.module(activation[0]),)

    def predict(layer: Layer, activation: Activation) -> Tensor:  # (batch, length, vocabulary)
        return layer.module(activation[0])

    layers = {f"transformer.h.{index}": Layer(module, decode) for index, module in enumerate(gpt2.h)}
    return {"transformer.wte": Layer(gpt2.wte, embed), "transformer.wpe": Layer(gpt2.wpe, add_positions, gpt2.drop),
            **layers, "transformer.ln_f": Layer(gpt2.ln_f, decode), "lm_head": Layer(model.lm_head, predict)}


ORDERED_LAYERS = {"bert": bert_layers, "encoder_classifier": encoder_classifier_layers, "gpt2": gpt2_layers}


def ordered_layers(model: Module) -> dict[str, Layer]:
    """The layers of a model in order, each under its module's name there; of a kind in `ORDERED_LAYERS`."""
    return ORDERED_LAYERS[model.config.model_type](model)


def transformer_modules(model: Module) -> dict[str, Module]:
    """The equal modules that make up a model's depth, under their names there; of any Hugging Face model."""
    name, stack = max(((name, module) for name, module in model.named_modules()
                       if isinstance(module, torch.nn.ModuleList)), key=lambda found: len(found[1]))
    return {f"{name}.{index}": module for index, module in enumerate(stack)}


def layer_names(model: Module) -> list[str]:
    """What a rank that holds the whole model holds, for its record; of a kind that is not known, its depth only."""
    is_known = model.config.model_type in ORDERED_LAYERS
    return list(ordered_layers(model) if is_known else transformer_modules(model))


def shared_weight(layers: dict[str, Layer]) -> torch.nn.Parameter | None:
    """The weight that the first and the last of `ordered_layers` have in common (GPT-2's token embedding), if any."""
    first, last = list(layers.values())[:: max(len(layers) - 1, 1)]
    weight = getattr(first.module, "weight", None)
    return weight if weight is not None and weight is getattr(last.module, "weight", None) else None
