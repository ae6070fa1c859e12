"""The training job, the same for every strategy."""
