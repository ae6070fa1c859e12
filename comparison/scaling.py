"""Tables and figures of strong and weak scaling, in seconds of an epoch and in throughput.

Strong scaling keeps the global batch equal on every number of devices: its rows are of one group. Weak scaling keeps
the batch per device equal: its rows differ in global batch and therefore in workload, and train on the same samples
in an epoch.
"""

from collections.abc import Iterator
from functools import partial

import pandas as pd

from comparison.figures import Members, bar_chart, devices_chart, line_chart
from comparison.rows import WEAK
from comparison.saving import Drawing
from comparison.settings import DIRTY_MARK, describe, mixed_versions, name_start, strategy_name, tell_apart
from comparison.study import SPEEDUPS, VERSIONS, Study
from comparison.tables import EMPTY, Part, Table, cell, metrics_table, without_empty

TITLES = {
    "strong": "Strong scaling: the same global batch on every number of devices",
    "weak": "Weak scaling: the same batch per device, so a global batch that grows with their number",
}


def scaled(rows: pd.DataFrame, column: str) -> pd.DataFrame:
    """The rows on several devices for which a column is known, and the rows on one device that it relates them to."""
    rows = rows.dropna(subset=column)
    several = rows["devices"] > 1
    beside = rows["strategy"].isin([*rows.loc[several, "strategy"], "ddp"])
    return rows[several | beside] if several.any() else rows.iloc[:0]


def with_lines(rows: pd.DataFrame, study: Study) -> pd.DataFrame:
    """Add to each row the name of its `line`, in figures and pivots: one strategy, at most one row per device count."""
    rows = rows.assign(line=[strategy_name(row, study) for _, row in rows.iterrows()])
    patterns = study.details | study.group
    tell_apart(rows, "line", ["line"], {column: patterns[column] for column in ("schedule", *VERSIONS)})
    columns = ("nodes", "micro_batches", "measure", "peak_tflops", "deepspeed_settings", "script_digest", "workload")
    tell_apart(rows, "line", ["line", "devices"], {column: patterns[column] for column in columns})
    dirty = set(rows.loc[rows["is_dirty"], "line"])
    return rows.assign(line=[line + DIRTY_MARK if line in dirty else line for line in rows["line"]])


def pivot(rows: pd.DataFrame, column: str, study: Study) -> Table | None:
    """A table with a row per number of devices and a column per strategy that ran on several; None if none did."""
    several = rows.groupby("strategy")["devices"].transform("nunique") > 1
    rows = scaled(rows[several], column)
    if rows.empty:
        return None
    rows = with_lines(rows, study)
    devices = sorted(rows["devices"].unique())
    columns = [["devices", *map(str, devices)]]
    for line in rows["line"].unique():
        points = rows[rows["line"] == line].set_index("devices")
        columns.append([line, *(cell(points.loc[n], column) if n in points.index else EMPTY for n in devices)])
    return Table(columns, ("", *[column] * (len(columns) - 1)))


def scaling_tables(rows: pd.DataFrame, study: Study, kind: str) -> list[Part]:
    """Tables of epoch times and what follows from them, then of throughput by devices and strategy; none is empty."""
    parts: list[Part] = []
    if len(found := scaled(rows, "epoch_speedup")):
        parts += [f"### {TITLES[kind]}", metrics_table(*without_empty(found, study.scaling))]
    for title, column in study.pivots.items():
        if (table := pivot(rows, column, study)) and table not in parts:  # with DDP alone both are the same
            parts += [f"### {kind.capitalize()} scaling: {title}", table]
    return parts


def scaling_charts(rows: pd.DataFrame, heading: str, study: Study, kind: str) -> dict[str, Drawing]:
    """Figures of speedup and parallel efficiency over devices, by name, each to be drawn when it is called."""
    drawn: dict[str, Drawing] = {}
    found = with_lines(scaled(rows, "epoch_speedup"), study)
    ideals = {"epoch_speedup": (1, found["devices"].max()), "parallel_efficiency_pct": (100, 100)}
    for metric in study.scaling if len(found) else []:
        if metric.column in ideals:
            title = f"{kind} scaling: {metric.label} over devices"
            drawn[f"{kind}_scaling_{metric.column}"] = partial(
                devices_chart, found, metric, ideals[metric.column], title, heading, study)
    return drawn


def weak_groups(rows: pd.DataFrame, study: Study) -> Iterator[tuple[str, str, pd.DataFrame]]:
    """Yield heading, beginning of figure names and rows for each group of equal epochs and equal batch per device.

    The columns relative to one device are those of weak scaling.
    """
    weak = {column.removeprefix(WEAK): rows[column] for column in map(str, rows.columns) if column.startswith(WEAK)}
    rows = rows[rows["tuned_by"] != "autotuner"].assign(**weak)
    rows["batch_per_device"] = rows["global_batch_size"].astype(float) / rows["devices"].astype(float)
    rows = rows.sort_values(["rank", "strategy", "devices", *study.details])
    groups = [group.copy() for _, group in rows.groupby(["epoch_group", "batch_per_device"])
              if any(len(scaled(group, column)) for column in SPEEDUPS)]
    for number, group in enumerate(groups):
        tell_apart(group, "setting", ["setting"], {"workload": study.group["workload"]})
        row = group.iloc[0]
        common = [column for column in study.group
                  if (rows[column].nunique(dropna=False) > 1 if column in VERSIONS
                      else pd.notna(row[column]) and group[column].nunique() == 1)]
        heading = f"{describe(row, common, study)}, batch per device {row['batch_per_device']:g}"
        heading += mixed_versions(group, study)
        if len(groups) > 1:
            heading += f", epoch workload {row['epoch_workload']}"
        yield heading, name_start(heading, number) if len(groups) > 1 else "", group


def weak_charts(rows: pd.DataFrame, members: Members, heading: str, study: Study) -> dict[str, Drawing]:
    """The figures of `scaling_charts` for weak scaling, and the seconds of epochs as bars and lines."""
    drawn = scaling_charts(rows, heading, study, "weak")
    rows = scaled(rows, "epoch_speedup")
    if drawn:
        epoch_s = next(metric for metric in study.scaling if metric.column == "epoch_s")
        drawn["weak_scaling_epoch_s"] = partial(bar_chart, rows, epoch_s, heading, study)
        for curve in study.curves:
            if curve.axes == ("epoch",):
                drawn[f"weak_scaling_{curve.column}_over_epoch"] = partial(
                    line_chart, rows, members, curve, "epoch", heading, study)
    return drawn
