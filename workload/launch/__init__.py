"""Starts the processes of a run, or takes them from the launcher that started us, and connects them."""
