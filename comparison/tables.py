"""Tables with a line per row of the comparison and a column per metric."""

from dataclasses import dataclass

import pandas as pd

from comparison.digits import change_text, interval_text, mean_text
from comparison.rows import CHANGE, DIFFERS, MEAN
from comparison.settings import shown_names
from comparison.study import Metric
from measurement.columns import FROM_NOISE, HIGH, LOW

EMPTY = "—"
FEW_STEPS_MARK = "‡"


def value_text(row: pd.Series, column: str) -> str:
    """A mean with its interval over seeds, or a single seed's value with its interval over sampled steps, if any."""
    low, high = (row.get(column + end, float("nan")) for end in (LOW, HIGH))
    text = (mean_text(row[column], row[column + MEAN[1]]) if pd.isna(low) else
            interval_text(row[column], low, high))
    return text + FEW_STEPS_MARK * (column in FROM_NOISE and row["few_steps"])


def cell(row: pd.Series, column: str) -> str:
    """A mean and its change, each with its interval; a column that is not a mean over seeds is shown unchanged."""
    if pd.isna(row[column]):
        return EMPTY
    if column + MEAN[1] not in row:
        return str(row[column])
    text = value_text(row, column)
    change, half_width = (row.get(column + end, float("nan")) for end in CHANGE[:2])
    return text if pd.isna(change) else f"{text} {change_text(change, half_width, row[column + DIFFERS])}"


@dataclass(frozen=True)
class Table:
    """Columns of text, each a title and its cells; `str` gives Markdown, with the first column aligned left.

    Args:
        metrics: of each column the name in summary.csv or comparison.csv; "" if it has none. (default: none has)
    """

    columns: list[list[str]]
    metrics: tuple[str, ...] = ()

    def __str__(self) -> str:
        (title, *names), *others = [[text.replace("|", "\\|") for text in column] for column in self.columns]
        width = max(map(len, [title, *names]))
        aligned = [[text.ljust(width) for text in (title, "-" * width, *names)]]
        for title, *cells in others:
            width = max(map(len, [title, *cells]))
            aligned.append([text.rjust(width) for text in (title, "-" * (width - 1) + ":", *cells)])
        return "\n".join(f"| {' | '.join(line)} |" for line in zip(*aligned, strict=True))


Part = str | Table  # of a report: a heading, a paragraph or a list in Markdown, or a table


def without_empty(rows: pd.DataFrame, metrics: list[Metric]) -> tuple[pd.DataFrame, list[Metric]]:
    """The metrics that at least one row has, and the rows that have at least one of them."""
    metrics = [metric for metric in metrics if rows[metric.column].notna().any()]
    return rows.dropna(how="all", subset=[metric.column for metric in metrics]), metrics


def metrics_table(rows: pd.DataFrame, metrics: list[Metric]) -> Table:
    names = shown_names(rows) + rows["is_baseline"].map({True: " (baseline)", False: ""})
    each = [row for _, row in rows.iterrows()]
    return Table([["setting", *names],
                  *([metric.title, *(cell(row, metric.column) for row in each)] for metric in metrics)],
                 ("", *(metric.column for metric in metrics)))
