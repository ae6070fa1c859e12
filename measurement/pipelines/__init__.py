"""Measuring pipelines: what each stage did when, and how long a schedule leaves it idle."""
