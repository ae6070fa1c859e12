"""A small, plain Transformer encoder for text classification, trained from scratch."""

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers import AutoModelForSequenceClassification, PreTrainedModel
from transformers.modeling_layers import GradientCheckpointingLayer
from transformers.modeling_outputs import SequenceClassifierOutput

from workload.models.encoder_config import EncoderClassifierConfig
from workload.models.layers import visible_keys
from workload.models.loading import output_names


class Embeddings(nn.Module):
    """Token and position embeddings: (batch, length) -> (batch, length, hidden)"""

    def __init__(self, config: EncoderClassifierConfig) -> None:
        super().__init__()
        self.token = nn.Embedding(config.vocab_size, config.hidden_size, padding_idx=config.pad_token_id)
        self.position = nn.Embedding(config.max_position_embeddings, config.hidden_size)
        self.dropout = nn.Dropout(config.hidden_dropout_prob)

    def forward(self, input_ids: Tensor) -> Tensor:
        positions = torch.arange(input_ids.shape[1], device=input_ids.device)
        return self.dropout(self.token(input_ids) + self.position(positions))


class EncoderLayer(GradientCheckpointingLayer):
    """Self-attention, then a feed-forward network, both pre-norm with residual connections."""

    def __init__(self, config: EncoderClassifierConfig) -> None:
        super().__init__()
        hidden = config.hidden_size
        self.heads = config.num_attention_heads
        self.attention_norm = nn.LayerNorm(hidden, eps=config.layer_norm_eps)
        self.query_key_value = nn.Linear(hidden, 3 * hidden)
        self.attention_output = nn.Linear(hidden, hidden)
        self.feed_forward_norm = nn.LayerNorm(hidden, eps=config.layer_norm_eps)
        self.feed_forward = nn.Sequential(nn.Linear(hidden, config.intermediate_size), nn.GELU(),
                                          nn.Linear(config.intermediate_size, hidden))
        self.dropout = nn.Dropout(config.hidden_dropout_prob)

    def forward(self, hidden: Tensor, attention_mask: Tensor | None = None) -> Tensor:
        """(batch, length, hidden), (batch, length) -> (batch, length, hidden)"""
        hidden = hidden + self.dropout(self.attend(self.attention_norm(hidden), attention_mask))
        return hidden + self.dropout(self.feed_forward(self.feed_forward_norm(hidden)))

    def attend(self, hidden: Tensor, attention_mask: Tensor | None) -> Tensor:
        query_key_value = self.query_key_value(hidden).unflatten(-1, (3, self.heads, -1))
        query, key, value = query_key_value.permute(2, 0, 3, 1, 4)  # each (batch, heads, length, hidden / heads)
        may_attend = None if attention_mask is None else visible_keys(attention_mask)
        attended = F.scaled_dot_product_attention(query, key, value, attn_mask=may_attend)
        return self.attention_output(attended.transpose(1, 2).flatten(2))


class Classifier(nn.Module):
    """The mean over real tokens, then one score per class: (batch, length, hidden) -> (batch, classes)"""

    def __init__(self, config: EncoderClassifierConfig) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(config.hidden_size, eps=config.layer_norm_eps)
        self.dropout = nn.Dropout(config.hidden_dropout_prob)
        self.output = nn.Linear(config.hidden_size, len(output_names(config)))

    def forward(self, hidden: Tensor, attention_mask: Tensor | None = None) -> Tensor:
        tokens = self.norm(hidden)
        if attention_mask is None:
            return self.output(self.dropout(tokens.mean(1)))
        real = attention_mask[:, :, None].to(hidden.dtype)
        return self.output(self.dropout((tokens * real).sum(1) / real.sum(1)))


class EncoderClassifier(PreTrainedModel):
    """The whole model. A `PreTrainedModel`, so that `save_pretrained` and `from_pretrained` work."""

    config_class = EncoderClassifierConfig
    base_model_prefix = "encoder"
    _supports_sdpa = True
    supports_gradient_checkpointing = True

    def __init__(self, config: EncoderClassifierConfig) -> None:
        super().__init__(config)
        self.embeddings = Embeddings(config)
        self.layers = nn.ModuleList(EncoderLayer(config) for _ in range(config.num_hidden_layers))
        self.classifier = Classifier(config)
        self.post_init()

    def forward(self, input_ids: Tensor, attention_mask: Tensor | None = None) -> SequenceClassifierOutput:
        """(batch, length), (batch, length) or None if nothing is padded -> logits (batch, classes)"""
        hidden = self.embeddings(input_ids)
        for layer in self.layers:
            hidden = layer(hidden, attention_mask)
        return SequenceClassifierOutput(logits=self.classifier(hidden, attention_mask))


AutoModelForSequenceClassification.register(EncoderClassifierConfig, EncoderClassifier)
