"""Everything that depends on how the models of one family are built, in one table entry per family.

A new family is an entry in `FAMILIES` under its `config.model_type`. Any encoder can be trained without one; `shape`
adds its FLOPs and so its MFU, `layers` lets pipelines cut it into stages, and `tensor_plan` lets tensor parallelism
split its layers.

Between two layers of a pipeline pass one floating-point tensor and, if the batch is padded, the attention mask. Every
floating-point tensor that crosses a stage boundary must get a gradient, so the mask is sent as integers and each layer
converts it.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor
from torch.nn import Module
from transformers import PretrainedConfig

from workload.models.flops import TransformerShape
from workload.models.tensor_plans import BERT, ENCODER_CLASSIFIER, GPT2, TensorPlan

if TYPE_CHECKING:  # they take seconds
    from transformers import BertForQuestionAnswering, BertForSequenceClassification, GPT2LMHeadModel

    from workload.models.encoder_classifier import EncoderClassifier  # which imports this module

# The model's inputs at first; then hidden states (batch, length, hidden) and, if the batch is padded, the mask.
Activation = tuple[Tensor, ...]


class Layer(Module):
    """One module of a model, called with the output of the layer before it.

    Args:
        module: holds the layer's weights.
        run: calls the module with the activation.
        dropout: applied by `run` outside the module, if any. Registered here so that train() and eval() reach it.
    """

    def __init__(self, module: Module, run: Callable[["Layer", Activation], Activation | Tensor],
                 dropout: Module | None = None) -> None:
        super().__init__()
        self.module, self.run, self.dropout = module, run, dropout or torch.nn.Identity()

    def forward(self, activation: Activation | Tensor) -> Activation | Tensor:
        # DeepSpeed hands a lone tensor over as such to layers that it may have to compute again.
        return self.run(self, (activation,) if torch.is_tensor(activation) else activation)


class TransformerLayer(Layer):
    """One of the repeated layers that make up the model's depth."""


@dataclass(frozen=True)
class Family:
    """Facts about the models of one `config.model_type`.

    Args:
        shape: the dimensions that FLOPs depend on, from a configuration and the head's outputs per token. The model
            must make exactly the matrix products that `TransformerShape` counts.
        layers: the layers of a model of the family's own class, in order, each under its module's name; None if
            pipelines cannot cut the model.
        tensor_plan: how tensor parallelism splits each transformer layer; None if it cannot.
    """

    shape: Callable[[PretrainedConfig, int], TransformerShape]
    layers: Callable[[Any], dict[str, Layer]] | None = None
    tensor_plan: TensorPlan | None = None


def visible_keys(mask: Tensor) -> Tensor:
    """The mask over real tokens in attention's form: (batch, length) -> bool (batch, 1 head, 1 query, length keys)"""
    return mask[:, None, None, :].bool()


# ---------------------------------------------------------------------- layers

def bert_layers(model: "BertForQuestionAnswering | BertForSequenceClassification") -> dict[str, Layer]:
    """Ordered layers of a `BertForQuestionAnswering` or a `BertForSequenceClassification`."""
    from transformers import BertForQuestionAnswering

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

    bert = model.bert
    layers = {"bert.embeddings": Layer(bert.embeddings, embed)}
    for index, module in enumerate(bert.encoder.layer):
        layers[f"bert.encoder.layer.{index}"] = TransformerLayer(module, encode)
    if isinstance(model, BertForQuestionAnswering):
        return layers | {"qa_outputs": Layer(model.qa_outputs, answer)}
    assert bert.pooler is not None  # the classes without one are those for other tasks
    return layers | {"bert.pooler": Layer(bert.pooler, pool),
                     "classifier": Layer(model.classifier, classify, model.dropout)}


def encoder_classifier_layers(model: "EncoderClassifier") -> dict[str, Layer]:
    """Ordered layers of this project's `EncoderClassifier`."""
    def embed(layer: Layer, inputs: Activation) -> Activation:
        input_ids, *mask = inputs
        return layer.module(input_ids), *mask

    def encode(layer: Layer, activation: Activation) -> Activation:
        return layer.module(*activation), *activation[1:]

    def classify(layer: Layer, activation: Activation) -> Tensor:  # (batch, classes)
        return layer.module(*activation)

    layers = {f"layers.{index}": TransformerLayer(module, encode) for index, module in enumerate(model.layers)}
    return {"embeddings": Layer(model.embeddings, embed), **layers, "classifier": Layer(model.classifier, classify)}


def gpt2_layers(model: "GPT2LMHeadModel") -> dict[str, Layer]:
    """Ordered layers of a `GPT2LMHeadModel`; the first and the last share one weight.

    There is no mask: every sample is a full block of tokens.
    """
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

    layers = {f"transformer.h.{index}": TransformerLayer(module, decode) for index, module in enumerate(gpt2.h)}
    return {"transformer.wte": Layer(gpt2.wte, embed), "transformer.wpe": Layer(gpt2.wpe, add_positions, gpt2.drop),
            **layers, "transformer.ln_f": Layer(gpt2.ln_f, decode), "lm_head": Layer(model.lm_head, predict)}


# ---------------------------------------------------------------------- shapes

def bert_shape(config: PretrainedConfig, outputs: int) -> TransformerShape:
    """BERT, and every encoder whose layers make the same matrix products."""
    return TransformerShape(config.num_hidden_layers, config.hidden_size, config.intermediate_size, outputs)


def albert_shape(config: PretrainedConfig, outputs: int) -> TransformerShape:
    """ALBERT applies one group of layers, with shared weights, `num_hidden_layers` times. It projects embeddings."""
    return TransformerShape(config.num_hidden_layers * config.inner_group_num, config.hidden_size,
                            config.intermediate_size, outputs, config.embedding_size)


def distilbert_shape(config: PretrainedConfig, outputs: int) -> TransformerShape:
    """DistilBERT has a name of its own for the width of its feed-forward network."""
    return TransformerShape(config.num_hidden_layers, config.hidden_size, config.hidden_dim, outputs)


def electra_shape(config: PretrainedConfig, outputs: int) -> TransformerShape:
    """ELECTRA projects embeddings only where they are narrower than the layers."""
    is_projected = config.embedding_size != config.hidden_size
    return TransformerShape(config.num_hidden_layers, config.hidden_size, config.intermediate_size, outputs,
                            config.embedding_size if is_projected else 0)


def gpt2_shape(config: PretrainedConfig, outputs: int) -> TransformerShape:
    """GPT-2. Attention scores that the causal mask hides count as well, as in the papers that define MFU."""
    return TransformerShape(config.num_hidden_layers, config.hidden_size, config.n_inner or 4 * config.hidden_size,
                            outputs)


FAMILIES = {
    "albert": Family(albert_shape),
    "bert": Family(bert_shape, bert_layers, BERT),
    "camembert": Family(bert_shape),
    "data2vec-text": Family(bert_shape),
    "distilbert": Family(distilbert_shape),
    "electra": Family(electra_shape),
    "encoder_classifier": Family(bert_shape, encoder_classifier_layers, ENCODER_CLASSIFIER),
    "ernie": Family(bert_shape),
    "gpt2": Family(gpt2_shape, gpt2_layers, GPT2),
    "megatron-bert": Family(bert_shape),
    "mpnet": Family(bert_shape),
    "roberta": Family(bert_shape),
    "roberta-prelayernorm": Family(bert_shape),
    "xlm-roberta": Family(bert_shape),
    "xlm-roberta-xl": Family(bert_shape),
}


def shape_of(config: PretrainedConfig, outputs: int) -> TransformerShape | None:
    """The dimensions that a model's FLOPs depend on; None for a family without an entry, whose FLOPs are unknown.

    Args:
        outputs: of the head for each token; 0 for a head that sees one vector per sample.
    """
    family = FAMILIES.get(config.model_type)
    return family.shape(config, outputs) if family else None
