"""Measuring and recording a run: the same for every strategy."""
