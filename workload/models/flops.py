"""FLOPs of training a transformer, from its dimensions and the lengths of its inputs."""

from dataclasses import dataclass

import numpy as np

FORWARD_AND_BACKWARD = 3  # the backward pass makes two matrix products for each one of the forward pass
RECOMPUTATION = 1  # and the forward pass's once more


@dataclass(frozen=True)
class TransformerShape:
    """The dimensions of a transformer that its FLOPs depend on."""

    layers: int
    hidden: int
    intermediate: int  # width of the feed-forward network
    outputs: int  # of the head for each token; 0 for a head that sees one vector per sample, whose cost is ignored
    embedding: int = 0  # width of token embeddings that a matrix projects to `hidden`; 0 where there is no such matrix

    def training_flops(self, lengths: np.ndarray, recomputed: bool = False) -> np.ndarray:
        """FLOPs of one forward and backward pass over sequences of `lengths` tokens. (sequences,) -> (sequences,)

        Counts matrix products only, with a multiplication and an addition as two FLOPs, like Narayanan et al. 2021
        (appendix) and Chowdhery et al. 2022 (PaLM, appendix B). For n tokens, hidden width h, feed-forward width i and
        embedding width e: in each layer 8 n h^2 for the four projections of attention, 4 n^2 h for its scores and
        weighted sums, 4 n h i for the feed-forward network; 2 n e h for projected embeddings; 2 n h per output of the
        head. Embedding lookups, LayerNorms, activation functions and the optimizer are not counted.

        Args:
            recomputed: with --activation_checkpointing; then each layer's products of the forward pass are made twice.
                Where autograd can do without a layer's last product (GPT-2 without dropout), PyTorch leaves it out.
        """
        n = lengths.astype(float)
        per_layer = 8 * n * self.hidden**2 + 4 * n**2 * self.hidden + 4 * n * self.hidden * self.intermediate
        at_the_ends = 2 * n * self.hidden * (self.embedding + self.outputs)
        return (FORWARD_AND_BACKWARD * at_the_ends
                + (FORWARD_AND_BACKWARD + RECOMPUTATION * recomputed) * self.layers * per_layer)
