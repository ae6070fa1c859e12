"""Our dropout for CPUs drops what PyTorch's does: as often, scaled as much, and nothing else is changed."""

import pytest
import torch
from transformers import BertConfig, BertForQuestionAnswering, GPT2Config, GPT2LMHeadModel

from workload.models.dropout import ATTENTION, PackedDropout, attend, pack_dropout


@pytest.mark.parametrize("probability", [0.1, 0.5, 0.99])
def test_values_are_dropped_as_often_as_asked_and_the_others_scaled(probability):
    torch.manual_seed(0)
    values = torch.full((1001, 1001), 2.0, requires_grad=True)  # not a multiple of four
    dropped = PackedDropout(probability)(values)
    kept = dropped != 0
    spread = (probability * (1 - probability) / values.numel()) ** 0.5
    assert kept.float().mean().item() == pytest.approx(1 - probability, abs=5 * spread)
    torch.testing.assert_close(dropped[kept], torch.full_like(dropped[kept], 2 / (1 - probability)), rtol=1e-3, atol=0)
    dropped.sum().backward()
    torch.testing.assert_close(values.grad, dropped / 2)


def test_neighbours_are_dropped_independently():
    torch.manual_seed(0)
    kept = (PackedDropout(0.5)(torch.ones(1_000_000)) != 0).double()
    for distance in (1, 2, 3, 4):  # four values come from one number
        together = torch.corrcoef(torch.stack([kept[:-distance], kept[distance:]]))[0, 1]
        assert abs(together) < 0.005


def test_evaluation_drops_nothing():
    values = torch.randn(10)
    assert PackedDropout(0.5).eval()(values) is values


@pytest.mark.parametrize("model", [
    BertForQuestionAnswering(BertConfig(hidden_size=16, num_hidden_layers=2, num_attention_heads=2,
                                        intermediate_size=32)),
    GPT2LMHeadModel(GPT2Config(n_embd=16, n_layer=2, n_head=2))])
def test_attention_is_that_of_pytorch_but_for_the_dropping(model):
    """With a probability that rounds to nothing all of our arithmetic runs, and must give what SDPA gives."""
    inputs = torch.randint(0, 100, (3, 12))
    mask = torch.ones_like(inputs)
    mask[0, 7:] = mask[2, 3:] = 0
    for masks in ({}, {"attention_mask": mask}):
        results = []
        for packed in (False, True):
            if packed:
                pack_dropout(model)
                assert model.config._attn_implementation == ATTENTION
            for module in model.modules():
                if isinstance(module, torch.nn.Dropout):
                    module.p = 1e-6 if packed else 0.0
            model.double().train().zero_grad()
            given = model(inputs, **masks)
            logits = given.logits if "logits" in given else given.start_logits
            logits[mask.bool()].sum().backward()
            results.append([logits[mask.bool()].detach(), *(p.grad.clone() for p in model.parameters()
                                                            if p.grad is not None)])
        torch.testing.assert_close(*results, rtol=1e-9, atol=1e-9)
        model.set_attn_implementation("sdpa")


@pytest.mark.parametrize("heads", [2, 1])  # of keys and values: 1 as in models with grouped queries
def test_attention_drops_weights_and_keeps_their_mean(heads):
    torch.manual_seed(0)
    query = torch.randn(1, 2, 8, 4)
    key, value = torch.randn(2, 1, heads, 8, 4)
    module = torch.nn.Module()
    module.is_causal = False
    module.num_key_value_groups = 2 // heads
    drawn = torch.stack([attend(module, query, key, value, None, dropout=0.3)[0] for _ in range(4000)])
    expected = attend(module, query, key, value, None)[0]
    assert drawn.std(0).min() > 0.01
    torch.testing.assert_close(drawn.mean(0), expected, atol=6 * drawn.std(0).max().item() / 4000**0.5, rtol=0)
