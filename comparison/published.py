"""Published figures, shown beside our own but never compared with them, averaged or drawn."""

from pathlib import Path

import pandas as pd

from comparison import captions
from comparison.csv_files import as_numbers, read_table
from comparison.digits import mean_text
from comparison.progress import tell
from comparison.rows import MEAN
from comparison.runs import left_out
from comparison.settings import describe, shown_names
from comparison.study import Metric, Study
from comparison.tables import EMPTY, Part, Table

COLUMNS = ["study", "setting", "devices", "column", "value", "unit", "source", "measures"]


def read_published(folder: Path) -> dict[str, pd.DataFrame]:
    """Published figures by file name, values as their authors wrote them; a broken file is reported and skipped."""
    found = {}
    paths = sorted(folder.glob("*.csv"))
    if not paths:
        tell(f"left out published figures: there are none in {folder}")
    for path in paths:
        try:
            table = read_table(path)
            if list(table.columns) != COLUMNS:
                raise ValueError(f"{path.name} has the columns {', '.join(table.columns)}; "
                                 f"needed are {', '.join(COLUMNS)}")
            for column in ("setting", "column", "value"):
                if table[column].isna().any():
                    raise ValueError(f"{path.name} has no {column} in line {table[column].isna().argmax() + 2}")
            as_numbers(table["value"], path.name)
            table["devices"] = as_numbers(table["devices"], path.name, whole=True).astype("Int64")
            found[path.stem] = table
        except (OSError, ValueError) as error:
            left_out(path, error)
    return found


def as_published(lines: pd.DataFrame, metric: Metric) -> str:
    """The value that a setting's authors give, with their unit if it differs from ours."""
    lines = lines[lines["column"] == metric.column]
    units = ["" if unit == metric.unit or pd.isna(unit) else f" {unit}" for unit in lines["unit"]]
    return " / ".join(value + unit for value, unit in zip(lines["value"], units, strict=True)) or EMPTY


def published_part(name: str, table: pd.DataFrame, rows: pd.DataFrame, study: Study) -> list[Part]:
    """Heading and table of one study: our rows of its task above the published ones, in the columns both have.

    Args:
        rows: the rows of all our groups.
    """
    metrics = [*study.metrics, *study.published_metrics]
    metrics = [metric for metric in metrics if metric.column in set(table["column"])]
    columns = [metric.column for metric in metrics]
    beside = [each for column in columns for each in study.published_beside.get(column, [])]
    if not metrics:
        reason = "Its authors published no figures." if table.empty else "None of its figures is in a column of ours."
        return [f"## Published: {name}", reason]

    needed = [*columns, *(metric.column for metric in beside)]
    ours = rows[rows["task"] == study.published_tasks.get(name)].dropna(how="all", subset=needed)
    differing = [column for column in study.group if ours[column].nunique(dropna=False) > 1]
    names = [", ".join(filter(None, [name, describe(row, differing, study)]))
             for name, (_, row) in zip(shown_names(ours), ours.iterrows(), strict=True)]
    shared = table[table["column"].isin(columns)]
    theirs = [lines for _, lines in shared.groupby(["setting", "devices"], sort=False, dropna=False)]
    for lines in theirs:
        setting, devices = lines["setting"].iloc[0], lines["devices"].iloc[0]
        gpus = "" if pd.isna(devices) else f", {devices} GPU{'s' if devices > 1 else ''}"
        names.append(f"published: {setting}{gpus}")
    cells = [["setting", *names]]
    for metric in metrics + [metric for metric in beside if ours[metric.column].notna().any()]:
        mean, half_width = ours[metric.column], ours[metric.column + MEAN[1]]
        own = [mean_text(*pair) if pd.notna(pair[0]) else EMPTY for pair in zip(mean, half_width, strict=True)]
        cells.append([metric.title, *own, *(as_published(lines, metric) for lines in theirs)])
    notes = [f"- published {metric.label} of {', '.join(lines['setting'].unique())}: {text}"
             for metric in metrics if metric.column in study.published_beside  # ours measures something else
             for text, lines in shared[shared["column"] == metric.column].groupby("measures", sort=False)]
    return [f"## Published: {name}", Table(cells), *(["\n".join(notes)] if notes else [])]


def published_parts(folder: Path, rows: pd.DataFrame, study: Study) -> list[Part]:
    """The part of the report on each published study, after a paragraph that introduces them."""
    found = read_published(folder)
    parts = [part for name, table in found.items() for part in published_part(name, table, rows, study)]
    return [captions.PUBLISHED, *parts] if parts else []
