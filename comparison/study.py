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
    """A column of a run's file that has a row per step, evaluation or epoch."""

    file: str
    column: str
    label: str
    axes: tuple[str, ...] = ("samples", "elapsed_s")  # columns of the same file


class Target(NamedTuple):
    """A quality that runs are timed to: the curve that has to reach it, and how it is said."""

    curve: str
    pattern: str


# Of the details; the others are whole numbers.
WORDS = {"schedule", "tuned_by", "measure", "peak_tflops", "deepspeed_settings"}
SPEEDUPS = ["speedup", "own_speedup", "epoch_speedup", "parallel_efficiency_pct"]
COMPUTED = {"runs", "target", "reached", *SPEEDUPS}  # by `comparison.rows`, the others are read


@dataclass(frozen=True)
class Study:
    tables: dict[str, list[Metric]]  # title -> metrics; the first is printed without title and whole
    scaling: list[Metric]  # of the table of strong and that of weak scaling
    pivots: dict[str, str]  # title -> column; a row per number of devices, a column per strategy
    published_metrics: list[Metric]  # for the tables of published figures only
    published_beside: dict[str, list[Metric]]  # published column -> more of ours to stand beside it
    published_tasks: dict[str, str]  # file in results/published -> task of our runs that stand beside it
    curves: list[Curve]
    axes: dict[str, str]  # column to draw curves over -> label
    targets: dict[str, Target]  # column of summary.csv -> what it asks for
    strategies: dict[str, tuple[str, str]]  # name and colour, in the order of the rows
    group: dict[str, str]  # what comparable rows have in common -> how a heading says it
    details: dict[str, str]  # what else makes a setting -> how a row's name says it
    autotuning: list[Metric]  # of an autotuned row and those beside it: throughput, and the settings that reached it

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
