"""Bar charts of metrics, line charts of curves, and quality over time against a target."""

import textwrap
from collections.abc import Sequence
from itertools import accumulate

import matplotlib
import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.collections import LineCollection
from matplotlib.figure import Figure  # without pyplot it draws with Agg and never needs a display
from matplotlib.lines import Line2D
from matplotlib.ticker import MaxNLocator

from comparison.rows import MEAN
from comparison.runs import Run
from comparison.settings import shown_names
from comparison.study import Curve, Metric, Study
from comparison.tables import value_text
from comparison.targets import Aim, aim_of
from measurement.columns import HIGH, LOW

matplotlib.rcParams["text.parse_math"] = False  # dollar signs in a name do not start a formula

# Line, marker and hatch of a row: the first is for 1 device, the next for 2, 4, 8, ...; if taken, the next free one.
STYLES = [("-", "o", ""), ("--", "s", "//"), (":", "^", "xx"), ("-.", "D", ".."),
          ((0, (6, 1, 1, 1, 1, 1)), "v", "\\\\"), ((0, (1, 3)), "P", "++")]
UNKNOWN = "#999999"  # the colour of strategies that are

Members = dict[int, list[Run]]  # the runs behind each row


def new_chart(title: str, heading: str, label: str, width: float) -> tuple[Figure, Axes]:
    figure = Figure(figsize=(width, 4.4), dpi=150, layout="constrained")
    axes = figure.add_subplot()
    heading = "\n".join(textwrap.fill(line, 76) for line in heading.splitlines())
    axes.annotate(heading, (0, 1), (0, 6), "axes fraction", "offset points", fontsize=8, color="0.35")
    pad = 12 + 10 * len(heading.splitlines())
    axes.set_title(title[0].upper() + title[1:], loc="left", weight="bold", pad=pad, y=1.0)  # given: no search for it
    axes.set_ylabel(label)
    axes.ticklabel_format(axis="y", style="plain", useOffset=False)  # a power of ten would stand in the heading
    axes.grid(axis="y", color="0.9")
    axes.set_axisbelow(True)
    axes.spines[["top", "right"]].set_visible(False)
    return figure, axes


def legend(figure: Figure, lines: dict[str, Line2D]) -> None:
    place = {"loc": "outside right upper", "frameon": False, "fontsize": 9, "handlelength": 3.5}
    names = [textwrap.fill(name, 28, break_on_hyphens=False) for name in lines]
    figure.legend(lines.values(), names, **place)


def starts(tables: Sequence[np.ndarray]) -> list[int]:
    """Where each table begins in the line that `joined` makes of them."""
    return [0, *accumulate(len(table) + 1 for table in tables[:-1])]


def joined(tables: Sequence[np.ndarray]) -> np.ndarray:
    """Curves, each of (points, columns), as one line with gaps: an artist for each of hundreds of runs takes long."""
    parts = [part for table in tables for part in (table, np.full_like(table[:1], np.nan, shape=(1, table.shape[1])))]
    return np.concatenate(parts[:-1]).T  # (columns, points)


def looks(rows: pd.DataFrame, study: Study) -> list[tuple]:
    """Colour, line, marker and hatch of each row; rows of one colour differ as long as there are styles left."""
    chosen = []
    for strategy, devices in zip(rows["strategy"], rows["devices"], strict=True):
        known = study.look(strategy)
        colour, first = known.colour if known else UNKNOWN, int(devices).bit_length() - 1
        order = [(colour, (first + step) % len(STYLES)) for step in range(len(STYLES))]
        chosen.append(next((look for look in order if look not in chosen), order[0]))
    return [(colour, *STYLES[style]) for colour, style in chosen]


def bar_chart(rows: pd.DataFrame, metric: Metric, heading: str, study: Study) -> Figure:
    """A bar per row, with its interval over seeds, or a single seed's over sampled steps."""
    column = metric.column
    if rows[column + MEAN[1]].notna().any():
        heading += "\nmean and 95 % confidence interval over seeds"
    if column + LOW in rows and rows[column + LOW].notna().any():
        heading += "\nof a single seed: 95 % interval over sampled steps"
    label = f"{metric.label} ({metric.unit})" if metric.unit else metric.label
    figure, axes = new_chart(metric.label, heading, label, max(6, 1.15 * len(rows) + 1))
    each = [row for _, row in rows.iterrows()]
    values, half_widths = rows[column].to_numpy(float), rows[column + MEAN[1]].to_numpy(float)
    low, high = (rows[column + end].to_numpy(float) if column + end in rows else np.full(len(rows), np.nan)
                 for end in (LOW, HIGH))
    errors = np.nan_to_num(np.where(np.isnan(low), half_widths, [values - low, high - values]))  # (below, above; bars)
    colours, _, _, hatches = zip(*looks(rows, study), strict=True)
    axes.bar(range(len(rows)), values, 0.65, color=colours, edgecolor="white", hatch=hatches)
    if (known := errors.any(axis=0)).any():
        axes.errorbar(np.flatnonzero(known), values[known], errors[:, known], fmt="none", ecolor="black", capsize=4)
    for place, (row, value) in enumerate(zip(each, values, strict=True)):
        text, top = "—", 0.0
        if not np.isnan(value):
            text = value_text(row, column).replace(" ± ", "\n± ").replace(" (", "\n(")
            top = max(value, 0) + errors[1, place]
        note = axes.annotate(text, (place, top), (0, 3), textcoords="offset points", horizontalalignment="center",
                             fontsize=9)
        note.set_in_layout(False)  # it is within the axes' margins
    names = [textwrap.fill(name, 16, break_on_hyphens=False) for name in shown_names(rows)]
    axes.set_xticks(range(len(rows)), names, fontsize=9)
    axes.set_xlim(-0.6, max(len(rows), 4) - 0.4)  # a lone bar stays a bar
    axes.margins(y=0.15)
    return figure


def line_chart(rows: pd.DataFrame, members: Members, curve: Curve, axis: str, heading: str,
               study: Study) -> Figure | None:
    """A line per run, in the same style for runs of one setting; None if no run has the curve."""
    found = {index: [table for run in members[index] if curve.column in run.curves
                     if len(table := run.curves[curve.column][[axis, curve.column]].dropna())] for index in rows.index}
    if not any(found.values()):
        return None
    figure, axes = new_chart(f"{curve.label} over {study.axes[axis].split()[0]}", heading, curve.label, 9)
    drawn, names = {}, shown_names(rows)
    for place, (index, (colour, line, marker, _)) in enumerate(zip(rows.index, looks(rows, study), strict=True)):
        if not (tables := [table.to_numpy() for table in found[index]]):
            continue
        if curve.file == "steps.csv":  # a step's value is noisy: a faint line behind its rolling mean
            axes.add_collection(LineCollection(tables, colors=colour, linewidths=0.5, alpha=0.2 / len(tables),
                                               zorder=1))
            tables = [np.column_stack([table[axis], table[curve.column].rolling(10, min_periods=1).mean()])
                      for table in found[index]]
        # Markers are hollow and staggered, so that lines that coincide can be told apart.
        gaps = [max(1, len(table) // 8) for table in tables]
        marks = [np.arange(place * gap // len(rows), len(table), gap) for gap, table in zip(gaps, tables, strict=True)]
        width, size = (1.8, 5.5) if len(tables) == 1 else (0.9, 3.5)
        drawn[names[index]] = axes.plot(
            *joined(tables), color=colour, linestyle=line, linewidth=width, marker=marker, markersize=size,
            markerfacecolor="none", markevery=np.concatenate([
                mark + start for mark, start in zip(marks, starts(tables), strict=True)]).tolist())[0]
    axes.set_xlabel(study.axes[axis])
    if axis == "epoch":
        axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    legend(figure, drawn)
    return figure


def devices_chart(rows: pd.DataFrame, metric: Metric, ideal: tuple, title: str, heading: str, study: Study) -> Figure:
    """A line per strategy over the number of devices, with the ideal line.

    Args:
        rows: with the `line` that each belongs to.
        ideal: ideal values on one device and on the largest number.
    """
    figure, axes = new_chart(title, heading, f"{metric.label} ({metric.unit})", 9)
    ends = [1, rows["devices"].max()]
    drawn = {"ideal": axes.plot(ends, ideal, color="0.35", linewidth=1, zorder=1)[0]}
    firsts = rows.drop_duplicates("line")
    for name, (colour, line, marker, _) in zip(firsts["line"], looks(firsts, study), strict=True):
        points = rows[rows["line"] == name].sort_values("devices")
        look = {"color": colour, "linestyle": line, "marker": marker, "markerfacecolor": "none", "capsize": 4}
        values, errors = points[metric.column], points[metric.column + MEAN[1]]
        drawn[name] = axes.errorbar(points["devices"].astype(int), values, errors, **look).lines[0]
    axes.set_xticks(sorted({1, *rows["devices"]}))
    axes.set_xlabel("devices")
    axes.set_ylim(bottom=0)
    legend(figure, drawn)
    return figure


def quality_chart(rows: pd.DataFrame, members: Members, aim: Aim, heading: str, study: Study) -> Figure:
    """Quality over time (s) for the runs with one target, with a filled marker where a run reached it."""
    curve = next(curve for curve in study.curves if curve.column == aim.curve)
    heading += "\na line per run; filled marker: the first evaluation that reached the target"
    figure, axes = new_chart(f"time to {aim.text}", heading, curve.label, 9)
    drawn, names = {"target": axes.axhline(aim.value, color="0.35", linewidth=1, zorder=1)}, shown_names(rows)
    for index, (colour, line, marker, _) in zip(rows.index, looks(rows, study), strict=True):
        runs = [run for run in members[index] if aim_of(run.summary, study) == aim]
        look = {"color": colour, "linestyle": line, "linewidth": 1.8 if len(runs) == 1 else 0.9}
        curves = [run.curves.get(aim.curve, pd.DataFrame(columns=["elapsed_s", aim.curve])) for run in runs]
        tables = [table[["elapsed_s", aim.curve]].dropna().to_numpy(float) for table in curves]
        if tables:
            axes.plot(*joined(tables), marker=".", markersize=4, **look)
        times = [(run.summary.get("time_to_target_s", np.nan), table) for run, table in zip(runs, tables, strict=True)]
        reached = [(seconds, np.interp(seconds, table[:, 0], table[:, 1]) if len(table) else aim.value)
                   for seconds, table in times if pd.notna(seconds)]
        if reached:
            axes.plot(*zip(*reached, strict=True), marker, color=colour, markersize=8, markeredgecolor="black",
                      zorder=3)
        done = len(reached)
        if runs:
            share = {0: ": never reached", len(runs): ""}.get(done, f": reached by {done} of {len(runs)} runs")
            sample = Line2D([], [], **look, marker=marker if done else None, markersize=8, markeredgecolor="black")
            drawn[names[index] + share] = sample
    axes.set_xlabel(study.axes["elapsed_s"])
    legend(figure, drawn)
    return figure
