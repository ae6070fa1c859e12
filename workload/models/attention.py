"""One attention kernel for the same batch in every strategy: whether it gets a mask is decided by the host.

The host knows the lengths of a global batch: where nothing is padded there is no mask (`Share.is_padded`), and
attention takes its fastest kernel; else the mask over real tokens is used as it is. Left alone, `transformers` looks
into the mask of every forward pass: the host waits for the device, and each micro-batch may take another kernel.
"""

from torch import Tensor
from transformers import AttentionMaskInterface, masking_utils

from workload.models.layers import visible_keys


def mask_as_given(*, mask_function, attention_mask: Tensor | None = None, **options) -> Tensor | None:
    """What `transformers` calls for a mask where attention is SDPA.

    Args:
        mask_function: what attention may look at besides padding; both directions, causal, a sliding window.
        attention_mask: over real tokens, boolean; None where nothing is padded. (batch, length)

    Returns:
        (batch, 1, 1 or length queries, length keys), boolean; None where `mask_function` alone needs no mask.
    """
    if attention_mask is not None:
        if mask_function is masking_utils.bidirectional_mask_function:
            return visible_keys(attention_mask)
        options |= {"allow_is_causal_skip": False, "allow_is_bidirectional_skip": False}
    return masking_utils.sdpa_mask(mask_function=mask_function, attention_mask=attention_mask, **options)


def use_masks_as_given() -> None:
    """Let the models of `transformers` in this process look into no mask."""
    AttentionMaskInterface.register("sdpa", mask_as_given)
    # Without a mask GPT-2 would look whether positions begin anew within a sample. They never do here.
    masking_utils.find_packed_sequence_indices = lambda position_ids: None
