"""What is recorded: the same ruler for every strategy."""
