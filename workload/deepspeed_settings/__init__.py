"""A DeepSpeed configuration: what a user's file may say, and what our flags make of it."""
