"""Dropout for CPUs, with random numbers drawn four at a time.

On CPUs PyTorch draws one number at a time on one thread and keeps a mask of floats. On the CPU of the reference
results that takes 10 ns per value, a fifth of a training step of BERT on questions of 200 tokens. One 64-bit number of
the same generator decides about four values. On GPUs, where attention kernels include dropout, nothing is changed.
"""

import torch
from torch import Tensor, nn
from transformers import AttentionInterface, AttentionMaskInterface, PreTrainedModel
from transformers.integrations.sdpa_attention import sdpa_attention_forward

from workload.models.attention import mask_as_given

STEPS = 2**16  # a probability is a multiple of 1 / STEPS
ATTENTION = "sdpa_with_packed_dropout"
UNUSUAL = {"position_bias", "softcap", "cache"}  # options of neither BERT nor GPT-2: left to `transformers`


class PackedDropout(nn.Dropout):
    """`torch.nn.Dropout` with random numbers that are drawn four at a time."""

    def forward(self, input: Tensor) -> Tensor:
        """(...) -> (...)"""
        if not self.training or not self.p:
            return input
        kept, scale = draw_kept(input, self.p)
        return input * kept.mul_(scale)


def draw_kept(like: Tensor, probability: float) -> tuple[Tensor, float]:
    """Draw which values are kept.

    Args:
        probability: of being dropped, at least 0 and below 1; rounded to a multiple of 2^-16.

    Returns:
        1 for each value that is kept and 0 for each that is dropped, with the shape and type of `like`; the factor that
        scales the kept values.
    """
    dropped = min(round(probability * STEPS), STEPS - 1)
    packed = torch.empty(-(-like.numel() // 4), dtype=torch.int64).random_(torch.iinfo(torch.int64).min, None)
    numbers = packed.view(torch.int16)[: like.numel()].view(like.shape)  # uniform
    kept = torch.empty(like.shape, dtype=like.dtype)  # written at once: booleans would take a second pass
    return torch.ge(numbers, dropped - STEPS // 2, out=kept), STEPS / (STEPS - dropped)


def attend(module: nn.Module, query: Tensor, key: Tensor, value: Tensor, attention_mask: Tensor | None,
           dropout: float = 0.0, scaling: float | None = None, is_causal: bool | None = None, **options,
           ) -> tuple[Tensor, None]:
    """An attention function for `transformers`.

    Args:
        query, key, value: (batch, heads, length, width) each.
        attention_mask: True where a query may look at a key. (batch or 1, 1, length or 1, length)

    Returns:
        (batch, length, heads, width); None in place of the attention weights.
    """
    if not dropout or key.shape != query.shape or not UNUSUAL.isdisjoint(options):
        return sdpa_attention_forward(module, query, key, value, attention_mask, dropout, scaling, is_causal,
                                      **options)
    length = query.shape[2]
    if attention_mask is None and (module.is_causal if is_causal is None else is_causal):
        attention_mask = torch.ones(length, length, dtype=torch.bool).tril()
    scores = query * (query.shape[-1] ** -0.5 if scaling is None else scaling) @ key.transpose(-1, -2)
    if attention_mask is not None:
        scores += torch.zeros(attention_mask.shape, dtype=scores.dtype).masked_fill_(~attention_mask, float("-inf"))
    weights = scores.softmax(-1)  # (batch, heads, length queries, length keys)
    kept, scale = draw_kept(weights, dropout)
    return (weights * kept @ (value * scale)).transpose(1, 2), None


def pack_dropout(model: PreTrainedModel) -> None:
    """Replace the dropouts of a Hugging Face model, including those in its attention if that is SDPA."""
    for parent in list(model.modules()):
        for name, child in parent.named_children():
            if type(child) is nn.Dropout:
                setattr(parent, name, PackedDropout(child.p).train(child.training))
    if model.config._attn_implementation == "sdpa":
        model.config._attn_implementation = ATTENTION


AttentionInterface.register(ATTENTION, attend)
AttentionMaskInterface.register(ATTENTION, mask_as_given)
