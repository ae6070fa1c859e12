"""A Hugging Face BERT as an ordered list of layers, for pipelines to cut: its own modules, with its own weights.

Between two layers pass one floating tensor and the attention mask: (hidden, mask). Every floating tensor that
crosses a stage boundary must get a gradient, so the mask crosses as integers and is made additive inside each layer.
"""

import torch

Activation = tuple[torch.Tensor, torch.Tensor]  # hidden: (batch, length, hidden), mask: (batch, length) int64


class EmbeddingLayer(torch.nn.Module):
    """(input_ids, token_type_ids, attention_mask), each (batch, length), -> (hidden, mask)"""

    def __init__(self, embeddings: torch.nn.Module) -> None:
        super().__init__()
        self.module = embeddings

    def forward(self, inputs: tuple[torch.Tensor, torch.Tensor, torch.Tensor]) -> Activation:
        input_ids, token_type_ids, mask = inputs
        return self.module(input_ids=input_ids, token_type_ids=token_type_ids), mask


class EncoderLayer(torch.nn.Module):
    """(hidden, mask) -> (hidden, mask)"""

    def __init__(self, layer: torch.nn.Module) -> None:
        super().__init__()
        self.module = layer

    def forward(self, activation: Activation) -> Activation:
        hidden, mask = activation
        may_attend = mask[:, None, None, :].bool()  # (batch, 1 head, 1 query, length keys)
        return self.module(hidden, may_attend), mask


class HeadLayer(torch.nn.Module):
    """(hidden, mask) -> start and end logits (batch, length, 2)"""

    def __init__(self, head: torch.nn.Module) -> None:
        super().__init__()
        self.module = head

    def forward(self, activation: Activation) -> torch.Tensor:
        return self.module(activation[0])


def ordered_layers(model: torch.nn.Module) -> dict[str, torch.nn.Module]:
    """The layers of a `BertForQuestionAnswering` in order, each under its module's name there."""
    layers = {"bert.embeddings": EmbeddingLayer(model.bert.embeddings)}
    for index, layer in enumerate(model.bert.encoder.layer):
        layers[f"bert.encoder.layer.{index}"] = EncoderLayer(layer)
    layers["qa_outputs"] = HeadLayer(model.qa_outputs)
    return layers


def hugging_face_state(layers: dict[str, torch.nn.Module]) -> dict[str, torch.Tensor]:
    """The weights of some of `ordered_layers`, on the CPU, under the names of the Hugging Face model."""
    return {f"{name}.{key}": tensor.detach().cpu()
            for name, layer in layers.items() for key, tensor in layer.module.state_dict().items()}
