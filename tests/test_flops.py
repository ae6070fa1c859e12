"""FLOPs of every family in the table against PyTorch's own counter."""

import numpy as np
import pytest
import torch
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode
from transformers import AutoConfig, AutoModelForSequenceClassification, BertForQuestionAnswering, GPT2LMHeadModel

import workload.models.encoder_classifier  # noqa: F401  registers it with AutoModel...
from workload.models.families import FAMILIES, shape_of
from workload.models.flops import TransformerShape

SIZES = {"hidden_size": 32, "num_hidden_layers": 3, "num_attention_heads": 2, "intermediate_size": 96,
         "max_position_embeddings": 140}
DISTILBERT = {"dim": 32, "n_layers": 3, "n_heads": 2, "hidden_dim": 96}
GPT2 = {"n_embd": 32, "n_layer": 3, "n_head": 2}
CLASSES = 3


def small_config(model_type, **settings):
    sizes = {"distilbert": DISTILBERT, "gpt2": GPT2}.get(model_type, SIZES)
    return AutoConfig.for_model(model_type, vocab_size=60, pad_token_id=0, bos_token_id=1, eos_token_id=2,
                                **sizes | settings)


def counted_flops(model, length):
    """PyTorch's count for one sample, forward and backward; its unfused attention makes each product once."""
    torch.set_num_threads(1)  # several take ten times as long for such small products
    with FlopCounterMode(display=False) as counter, sdpa_kernel(SDPBackend.MATH):
        output = model.eval()(input_ids=torch.ones(1, length, dtype=torch.long))
        sum(tensor.sum() for name, tensor in output.items() if "logits" in name).backward()
    return counter.get_total_flops()


@pytest.mark.parametrize("model_type, settings", [
    *((model_type, {}) for model_type in FAMILIES), ("albert", {"inner_group_num": 2}), ("gpt2", {"n_inner": 40}),
    ("electra", {"embedding_size": 32})])
def test_classifiers_of_every_family_make_the_products_that_are_counted(model_type, settings):
    config = small_config(model_type, num_labels=CLASSES, **settings)
    model = AutoModelForSequenceClassification.from_config(config)
    # The formula leaves out the head, which sees one vector: a product with a (classes, hidden) matrix, in most models
    # after one with a (hidden, hidden) matrix. GPT-2's has an output for every token.
    outputs, head = (CLASSES, 0) if model_type == "gpt2" else (0, 6 * 32 * CLASSES)
    lengths = [16, 64]
    flops = shape_of(config, outputs).training_flops(np.array(lengths)).tolist()
    left_out = {counted_flops(model, length) - counted for length, counted in zip(lengths, flops, strict=True)}
    assert left_out in ({head}, {head + 6 * 32 * 32})


@pytest.mark.parametrize("kind, model_type, outputs", [
    (BertForQuestionAnswering, "bert", 2), (GPT2LMHeadModel, "gpt2", 60)])
def test_heads_with_outputs_for_each_token_are_counted(kind, model_type, outputs):
    config = small_config(model_type)
    flops = shape_of(config, outputs).training_flops(np.array([128])).item()
    assert flops == counted_flops(kind._from_config(config), 128)


@pytest.mark.parametrize("model_type", ["fnet", "modernbert", "squeezebert", "deberta-v2"])
def test_families_with_other_layers_have_no_formula(model_type):
    assert shape_of(AutoConfig.for_model(model_type), outputs=0) is None


def test_bert_base_by_hand():
    # 85.05 M parameters in its encoder's matrices: 6 FLOPs each for every token, and 12 n^2 h a layer for attention.
    bert_base = TransformerShape(layers=12, hidden=768, intermediate=3072, outputs=2)
    encoder = 12 * (4 * 768**2 + 2 * 768 * 3072)
    expected = 6 * 384 * (encoder + 2 * 768) + 12 * 12 * 384**2 * 768
    assert bert_base.training_flops(np.array([384, 384])).tolist() == pytest.approx([expected, expected])
