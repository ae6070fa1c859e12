"""The tasks: their data, their losses and their scores."""
