"""Models: configurations, tokenizers, weights, layers and FLOPs."""
