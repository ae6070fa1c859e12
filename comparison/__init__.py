"""Turns run folders into the tables and figures that the `Study` in plots.py asks for; needs no torch."""
