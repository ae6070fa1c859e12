"""One attention kernel for the same batch in every strategy: the host decides whether attention gets a mask.

The host knows the lengths in a global batch. If nothing is padded (`Share.is_padded`), there is no mask and attention
uses its fastest kernel; otherwise it gets the mask over real tokens. By default `transformers` inspects the mask in
every forward pass, so that the host waits for the device and micro-batches may use different kernels.
"""

from torch import Tensor
from transformers import AttentionMaskInterface, masking_utils

from workload.models.layers import visible_keys


def mask_as_given(*, mask_function, attention_mask: Tensor | None = None, **options) -> Tensor | None:
    """The mask for SDPA attention, registered with `transformers` in place of its own function.

    Args:
        mask_function: where attention may look apart from padding: in both directions, causal, a sliding window.
        attention_mask: boolean mask over real tokens, None if nothing is padded. (batch, length)

    Returns:
        Boolean (batch, 1, 1 or length queries, length keys), or None if `mask_function` alone needs no mask.
    """
    if attention_mask is not None:
        if mask_function is masking_utils.bidirectional_mask_function:
            return visible_keys(attention_mask)
        options |= {"allow_is_causal_skip": False, "allow_is_bidirectional_skip": False}
    return masking_utils.sdpa_mask(mask_function=mask_function, attention_mask=attention_mask, **options)


def use_masks_as_given() -> None:
    """Stop the models of `transformers` in this process from inspecting masks."""
    AttentionMaskInterface.register("sdpa", mask_as_given)
    # Without a mask GPT-2 would check whether positions restart within a sample. They never do here.
    masking_utils.find_packed_sequence_indices = lambda position_ids: None
