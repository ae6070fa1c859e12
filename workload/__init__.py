"""What is trained: the same job for every strategy."""
