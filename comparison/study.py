"""The types in which plots.py says what to compare."""

from dataclasses import dataclass, replace
from typing import NamedTuple


class Metric(NamedTuple):
    """A column of summary.csv, or one that `comparison.rows` computes, with its label in tables and figures."""

    column: str
    label: str
    unit: str = ""

    @property
    def title(self) -> str:
        return f"{self.label} {self.unit}".strip()


class Curve(NamedTuple):
    """A column to draw as a line, from a file with a row per step, evaluation or epoch."""

    file: str
    column: str
    label: str
    axes: tuple[str, ...] = ("samples", "elapsed_s")  # columns of the same file


class Look(NamedTuple):
    """How a strategy shows."""

    label: str
    colour: str
    place: int  # in the order of the rows


class Target(NamedTuple):
    """A quality that runs are timed to: the curve that has to reach it, and its wording."""

    curve: str
    pattern: str


# Columns that identify a run's code and libraries: part of `Study.group`, or of `Study.details` when they are mixed.
LIBRARIES = ("torch", "transformers", "deepspeed")
VERSIONS = ("code", *LIBRARIES)
# Details that are text; the other details are whole numbers.
WORDS = {"schedule", "tuned_by", "measure", "peak_tflops", "deepspeed_settings", "script_digest", *VERSIONS}
RECOMPUTE = "_recompute"  # ends the name of a strategy that ran with --activation_checkpointing
SPEEDUPS = ["speedup", "own_speedup", "epoch_speedup", "parallel_efficiency_pct"]
DRIFT, OTHERS = "machine_drift_pct", ("other_load_pct", "steal_pct")  # of a run's machine; absent from older runs
COMPUTED = {"runs", "target", "reached", *SPEEDUPS}  # by `comparison.rows`; all others are read from summary.csv


@dataclass(frozen=True)
class Study:
    tables: dict[str, list[Metric]]  # title -> metrics; the first has no title and keeps empty columns
    scaling: list[Metric]  # for the tables of strong and weak scaling
    pivots: dict[str, str]  # title -> column; a row per number of devices, a column per strategy
    published_metrics: list[Metric]  # for the tables of published figures only
    published_beside: dict[str, list[Metric]]  # published column -> further columns of ours shown beside it
    published_tasks: dict[str, str]  # file in results/published -> task of our runs shown beside it
    smallest_changes: dict[str, float]  # column -> smallest change in percent that may be marked; 1 for all others
    curves: list[Curve]
    axes: dict[str, str]  # column on the x axis -> label
    targets: dict[str, Target]  # column of summary.csv -> the target it sets
    strategies: dict[str, tuple[str, str]]  # name and colour, in the order of the rows
    group: dict[str, str]  # column that is equal within a table -> its wording in the heading
    details: dict[str, str]  # further column that makes a row of its own -> its wording in the row's name
    autotuning: list[Metric]  # for autotuned rows and those beside them: throughput and the settings behind it

    def look(self, strategy: str) -> Look | None:
        """How a strategy shows; None for one that is unknown.

        A name may go on with the size of its groups, then with RECOMPUTE: `fsdp_hybrid4_recompute` is one of
        `fsdp_hybrid`, in a lighter colour.
        """
        name = strategy.removesuffix(RECOMPUTE)
        base = name if name in self.strategies else name.rstrip("0123456789")
        if base not in self.strategies:
            return None
        label, colour = self.strategies[base]
        label += f" {name.removeprefix(base)}" * (name != base)
        if name != strategy:
            label += " recompute"
            red, green, blue = (int(colour[place:place + 2], 16) for place in (1, 3, 5))
            colour = "#" + "".join(f"{(part + 255) // 2:02X}" for part in (red, green, blue))
        return Look(label, colour, list(self.strategies).index(base))

    @property
    def metrics(self) -> list[Metric]:
        """The metrics of all tables, each once."""
        return list(dict.fromkeys(metric for table in self.tables.values() for metric in table))

    @property
    def measured(self) -> list[str]:
        """Columns of summary.csv that are averaged over seeds and compared."""
        columns = [metric.column for metric in (*self.metrics, *self.published_metrics)]
        return [column for column in columns if column not in COMPUTED]

    @property
    def families(self) -> list[list[str]]:
        """The measured columns of each table, each column in the first that has it: their changes share the marks."""
        left, found = dict.fromkeys(self.measured), []
        for metrics in [*self.tables.values(), self.published_metrics]:
            found.append([metric.column for metric in metrics if metric.column in left])
            left = {column: None for column in left if column not in found[-1]}
        return [columns for columns in found if columns]

    def smallest_change(self, column: str) -> float:
        """The smallest change of a column, in percent, that may be marked."""
        return self.smallest_changes.get(column, 1.0)

    @property
    def settings(self) -> list[str]:
        """Columns that are equal for all runs of a row."""
        return ["strategy", *self.group, *self.details]

    @property
    def whole_numbers(self) -> list[str]:
        return ["global_batch_size", "max_seq_length", "cpu_threads",
                *(column for column in self.details if column not in WORDS)]

    def mixing_versions(self) -> "Study":
        """The same study with code and library versions telling rows apart instead of tables."""
        versions = {column: self.group[column] for column in VERSIONS}
        group = {column: pattern for column, pattern in self.group.items() if column not in versions}
        return replace(self, group=group, details={**self.details, **versions})
