"""Pipelines: cutting a model into pieces, and the schedules in which devices work through them."""
