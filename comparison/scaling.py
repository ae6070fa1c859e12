"""Scaling: tables and figures of what more devices bring, in seconds of an epoch and in throughput.

Strong scaling holds the global batch equal on every number of devices: its rows are of one group. Weak scaling holds
the batch per device equal: its rows differ in global batch and therefore in workload, and agree in what an epoch
trains on.
"""

from collections.abc import Iterator

import pandas as pd
from matplotlib.figure import Figure

from comparison.figures import Members, bar_chart, devices_chart, line_chart
from comparison.rows import WEAK
from comparison.settings import describe, name_start, strategy_name, tell_apart
from comparison.study import SPEEDUPS, Study
from comparison.tables import EMPTY, cell, markdown, metrics_table, without_empty

TITLES = {
    "strong": "Strong scaling: the same global batch on every number of devices",
    "weak": "Weak scaling: the same batch per device, so a global batch that grows with their number",
}


def scaled(rows: pd.DataFrame, column: str) -> pd.DataFrame:
    """The rows on several devices that a column relates to one device, and those on one device beside them."""
    rows = rows.dropna(subset=column)
    several = rows["devices"] > 1
    beside = rows["strategy"].isin([*rows.loc[several, "strategy"], "ddp"])
    return rows[several | beside] if several.any() else rows.iloc[:0]


def with_lines(rows: pd.DataFrame, study: Study) -> pd.DataFrame:
    """With the name of the `line` that a row is a point of: one per strategy, and at most one row per device count."""
    rows = rows.assign(line=[strategy_name(row, study) for _, row in rows.iterrows()])
    patterns = study.details | study.group
    tell_apart(rows, "line", [], {"schedule": patterns["schedule"]})
    columns = ("nodes", "micro_batches", "measure", "peak_tflops", "deepspeed_settings", "workload")
    tell_apart(rows, "line", ["devices"], {column: patterns[column] for column in columns})
    return rows


def pivot(rows: pd.DataFrame, column: str, study: Study) -> str:
    """A row per number of devices, a column per strategy that ran on several; empty where none did."""
    several = rows.groupby("strategy")["devices"].transform("nunique") > 1
    rows = scaled(rows[several], column)
    if rows.empty:
        return ""
    rows = with_lines(rows, study)
    devices = sorted(rows["devices"].unique())
    columns = [["devices", *map(str, devices)]]
    for line in rows["line"].unique():
        points = rows[rows["line"] == line].set_index("devices")
        columns.append([line, *(cell(points.loc[n], column) if n in points.index else EMPTY for n in devices)])
    return markdown(columns)


def scaling_tables(rows: pd.DataFrame, study: Study, kind: str) -> list[str]:
    """Epoch times and what follows from them, then throughput by devices and strategy; nothing that would be empty."""
    parts = []
    if len(found := scaled(rows, "epoch_speedup")):
        parts += [f"### {TITLES[kind]}", metrics_table(*without_empty(found, study.scaling))]
    for title, column in study.pivots.items():
        if (table := pivot(rows, column, study)) and table not in parts:  # of DDP alone both are the same
            parts += [f"### {kind.capitalize()} scaling: {title}", table]
    return parts


def scaling_charts(rows: pd.DataFrame, heading: str, study: Study, kind: str) -> dict[str, Figure]:
    """Speedup and parallel efficiency over devices, by name."""
    drawn = {}
    found = with_lines(scaled(rows, "epoch_speedup"), study)
    ideals = {"epoch_speedup": (1, found["devices"].max()), "parallel_efficiency_pct": (100, 100)}
    for metric in study.scaling if len(found) else []:
        if metric.column in ideals:
            title = f"{kind} scaling: {metric.label} over devices"
            chart = devices_chart(found, metric, ideals[metric.column], title, heading, study)
            drawn[f"{kind}_scaling_{metric.column}"] = chart
    return drawn


def weak_groups(rows: pd.DataFrame, study: Study) -> Iterator[tuple[str, str, pd.DataFrame]]:
    """What rows of equal epochs and equal batch per device have in common, how their files' names begin, and the rows.

    Their columns relate them to one device as weak scaling does.
    """
    weak = {column.removeprefix(WEAK): rows[column] for column in rows if column.startswith(WEAK)}
    rows = rows[rows["tuned_by"] != "autotuner"].assign(**weak)
    rows["batch_per_device"] = rows["global_batch_size"].astype(float) / rows["devices"].astype(float)
    rows = rows.sort_values(["rank", "strategy", "devices", *study.details])
    groups = [group.copy() for _, group in rows.groupby(["epoch_group", "batch_per_device"])
              if any(len(scaled(group, column)) for column in SPEEDUPS)]
    for number, group in enumerate(groups):
        tell_apart(group, "setting", [], {"workload": study.group["workload"]})
        row = group.iloc[0]
        common = [column for column in study.group if pd.notna(row[column]) and group[column].nunique() == 1]
        heading = f"{describe(row, common, study)}, batch per device {row['batch_per_device']:g}"
        if len(groups) > 1:
            heading += f", epoch workload {row['epoch_workload']}"
        yield heading, name_start(heading, number) if len(groups) > 1 else "", group


def weak_charts(rows: pd.DataFrame, members: Members, heading: str, study: Study) -> dict[str, Figure]:
    """As strong scaling's, with the seconds of epochs that a group's own figures show there."""
    drawn = scaling_charts(rows, heading, study, "weak")
    rows = scaled(rows, "epoch_speedup")
    if drawn:
        epoch_s = next(metric for metric in study.scaling if metric.column == "epoch_s")
        drawn["weak_scaling_epoch_s"] = bar_chart(rows, epoch_s, heading, study)
        for curve in study.curves:
            if curve.axes == ("epoch",) and (chart := line_chart(rows, members, curve, "epoch", heading, study)):
                drawn[f"weak_scaling_{curve.column}_over_epoch"] = chart
    return drawn
