"""What pipelines share: pieces of a model, and the orders in which devices work through them."""
