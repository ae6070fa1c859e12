"""What is measured of pipelines: who did what when, and what a schedule leaves idle."""
