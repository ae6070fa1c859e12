"""A Hugging Face BERT as an ordered list of layers, for pipelines to cut: its own modules, with its own weights.

Between two layers pass one floating tensor and the attention mask: (hidden, mask). Every floating tensor that
crosses a stage boundary must get a gradient, so the mask crosses as integers and is made additive inside each layer.
"""

from pathlib import Path

import torch
import torch.distributed as dist

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


class Piece(torch.nn.Sequential):
    """Some layers that follow each other, as PyTorch's pipelines call them: (hidden, mask) as two arguments.

    Args:
        autocast: the precision of the forward pass; the backward pass runs outside of it.
    """

    def __init__(self, layers: dict[str, torch.nn.Module], autocast: torch.autocast) -> None:
        super().__init__(*layers.values())
        self.autocast = autocast

    def forward(self, *activation: torch.Tensor) -> Activation | torch.Tensor:
        with self.autocast:
            return super().forward(activation)


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


def cut(layers: dict[str, torch.nn.Module], pieces: int) -> list[dict[str, torch.nn.Module]]:
    """`ordered_layers` in consecutive pieces, with as many encoder layers each if they can be divided evenly."""
    encoder = [name for name, layer in layers.items() if isinstance(layer, EncoderLayer)]
    made: list[dict[str, torch.nn.Module]] = [{} for _ in range(pieces)]
    piece = 0
    for name, layer in layers.items():
        if name in encoder:
            piece = encoder.index(name) * pieces // len(encoder)
        made[piece][name] = layer
    return made


def save_model(task, layers: dict[str, torch.nn.Module], replica: int, is_main: bool, folder: Path) -> None:
    """Put the layers of all ranks back into one Hugging Face model, on rank 0."""
    states = [None] * dist.get_world_size() if is_main else None
    dist.gather_object(hugging_face_state(layers) if replica == 0 else {}, states)
    if is_main:
        model = task.build_model()
        model.load_state_dict({name: tensor for state in states for name, tensor in state.items()})
        model.save_pretrained(folder)
        task.tokenizer.save_pretrained(folder)
