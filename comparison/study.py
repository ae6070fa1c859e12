"""What plots.py chooses and this package carries out."""

from dataclasses import dataclass
from typing import NamedTuple


class Metric(NamedTuple):
    """A column of summary.csv, or of what `comparison.rows` computes, as a table or a figure shows it."""

    column: str
    label: str
    unit: str = ""

    @property
    def title(self) -> str:
        return f"{self.label} {self.unit}".strip()


class Curve(NamedTuple):
    """A column of a run's file that has a row per step or per evaluation."""

    file: str
    column: str
    label: str


class Target(NamedTuple):
    """A quality that runs are timed to: the curve that has to reach it, and how it is said."""

    curve: str
    pattern: str


WORDS = {"schedule", "tuned_by"}  # of the details; the others are whole numbers
COMPUTED = {"runs", "speedup", "target", "reached"}  # by `comparison.rows`, the others are read


@dataclass(frozen=True)
class Study:
    tables: dict[str, list[Metric]]  # title -> metrics; the first is printed without title and whole
    published_metrics: list[Metric]  # for the tables of published figures only
    published_tasks: dict[str, str]  # file in results/published -> task of our runs that stand beside it
    curves: list[Curve]
    axes: dict[str, str]  # column to draw a curve over -> label
    targets: dict[str, Target]  # column of summary.csv -> what it asks for
    strategies: dict[str, tuple[str, str]]  # name and colour, in the order of the rows
    group: dict[str, str]  # what comparable rows have in common -> how a heading says it
    details: dict[str, str]  # what else makes a setting -> how a row's name says it
    caption: str  # how to read the tables
    autotuning: list[Metric]  # of an autotuned row and those beside it: throughput, and the settings that reached it
    tuner_caption: str  # how to read what a tuner measured
    published_caption: str  # and those of published figures

    @property
    def metrics(self) -> list[Metric]:
        """Of all tables, each once."""
        return list(dict.fromkeys(metric for table in self.tables.values() for metric in table))

    @property
    def measured(self) -> list[str]:
        """Columns of summary.csv that are averaged and compared."""
        columns = [metric.column for metric in (*self.metrics, *self.published_metrics)]
        return [column for column in columns if column not in COMPUTED]

    @property
    def settings(self) -> list[str]:
        """Columns of summary.csv in which the runs of one row agree."""
        return ["strategy", *self.group, *self.details]

    @property
    def whole_numbers(self) -> list[str]:
        return ["global_batch_size", "max_seq_length", "cpu_threads",
                *(column for column in self.details if column not in WORDS)]
