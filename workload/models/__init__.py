"""Models: configurations, tokenizers and weights, and the layers that they are made of."""
