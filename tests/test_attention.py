"""The same batch uses the same attention kernel in every strategy, with the same mask or with none."""

import pytest
import torch
import torch.nn.functional as F
from datasets import Dataset
from transformers import AutoModelForSequenceClassification, BertConfig, GPT2Config, ModernBertConfig, RobertaConfig

from tests.shared.small_inputs import open_small
from workload.batches import Batches, BatchSplit
from workload.models.attention import mask_as_given, use_masks_as_given
from workload.models.layers import ordered_layers

SMALL = {"vocab_size": 60, "hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 64,
         "max_position_embeddings": 40, "pad_token_id": 0, "num_labels": 2}
OTHERS = {"bert": BertConfig(**SMALL), "roberta": RobertaConfig(**SMALL),
          "sliding window": ModernBertConfig(**SMALL, local_attention=8, global_attn_every_n_layers=2),
          "causal": GPT2Config(vocab_size=60, n_embd=32, n_layer=2, n_head=2, n_positions=40, pad_token_id=0,
                               num_labels=2)}


@pytest.fixture
def masks(monkeypatch) -> list:
    """The mask and `is_causal` of every call of attention."""
    seen, attention = [], F.scaled_dot_product_attention

    def watched(query, key, value, attn_mask=None, dropout_p=0.0, is_causal=False, **options):
        seen.append((None if attn_mask is None else (attn_mask.shape, attn_mask.dtype), is_causal))
        return attention(query, key, value, attn_mask, dropout_p, is_causal, **options)
    monkeypatch.setattr(F, "scaled_dot_product_attention", watched)
    return seen


@pytest.mark.parametrize("is_padded", [True, False])
@pytest.mark.parametrize("name", ["squad_v2", "imdb", "mnli", "oscar"])
def test_whole_models_and_layers_in_a_row_take_the_same_kernel(name, is_padded, masks, cache, tmp_path):
    task = open_small(name, tmp_path, "--max_seq_length", "8" if name == "oscar" else "32")
    task.load()
    rows = task.samples("train").with_format("arrow")[:2]
    model = task.build_model().eval()
    inputs, _ = task.collate(rows, task.max_length, is_padded)
    with torch.no_grad():
        whole = task.logits(model, inputs)
        of_whole, masks[:] = list(masks), []
        activation = tuple(inputs.values())
        for layer in ordered_layers(model).values():
            activation = layer(activation)
    assert torch.equal(whole, activation)
    assert masks == of_whole and len(masks) == task.config.num_hidden_layers
    shape = (torch.Size([2, 1, 1, task.max_length]), torch.bool)
    assert set(masks) == {(None, True) if name == "oscar" else (shape if is_padded else None, False)}


@pytest.mark.parametrize("family", OTHERS)
def test_any_other_model_attends_as_in_transformers(family, monkeypatch):
    """With and without padding: only the inspection of the mask is left out."""
    from transformers import masking_utils

    torch.manual_seed(0)
    model = AutoModelForSequenceClassification.from_config(OTHERS[family], attn_implementation="sdpa").eval()
    tokens = torch.randint(3, 60, (2, 30))
    padded = torch.ones(2, 30, dtype=torch.int64)
    padded[0, 20:] = 0
    for mask in (padded, torch.ones_like(padded), None):
        ids = tokens if mask is None else tokens * mask
        with torch.no_grad():
            with monkeypatch.context() as patch:
                patch.setitem(masking_utils.AttentionMaskInterface._global_mapping, "sdpa", masking_utils.sdpa_mask)
                expected = model(input_ids=ids, attention_mask=mask).logits
            use_masks_as_given()
            assert masking_utils.AttentionMaskInterface()["sdpa"] is mask_as_given
            torch.testing.assert_close(model(input_ids=ids, attention_mask=mask).logits, expected)


def test_the_host_decides_for_the_whole_global_batch():
    """If each replica decided for its slice, the kernel would depend on the number of replicas."""
    lengths = [16] * 8 + [16] * 7 + [9] + [9] * 8

    def collate(rows, length, is_padded):
        return {"input_ids": torch.zeros(len(rows), length)}, {"is_padded": torch.full((len(rows),), is_padded)}

    features = Dataset.from_dict({"feature_id": [str(row) for row in range(24)], "length": lengths})
    for replica, needed in ((0, True), (1, True), (1, False)):
        part = Batches(features, collate, BatchSplit(2, 2, 2), replica, torch.device("cpu"), 16, False, needed)
        shares = [part.share(torch.arange(begin, begin + 8)) for begin in (0, 8, 16)]
        assert [(share.length, share.is_padded) for share in shares] == [(16, False), (16, True), (16, True)]
        assert all(bool(micro_batch.labels["is_padded"].all()) == share.is_padded
                   for share in shares for micro_batch in share.micro_batches)
