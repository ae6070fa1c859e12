"""Run folders -> tables and figures, in the way that the `Study` in plots.py asks for; needs no torch."""
