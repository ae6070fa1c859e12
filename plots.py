"""Compare finished training runs: tables and figures.

    python plots.py                                  # every run below results/
    python plots.py results/reference                # only the runs below this folder
    python plots.py results --output_dir report      # write somewhere else

Prints the tables and writes comparison.md, comparison.csv and figures/*.png. Runs that differ only in their
seed share a row; rows that are not comparable (another task, batch, ...) share neither table nor figure. Of
results/ itself, reference/ is left out (give that folder to see it) and published/ holds no runs.
"""

import argparse
import json
import math
import os
import re
import sys
import textwrap
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure  # without pyplot it draws with Agg and never needs a display


class Metric(NamedTuple):
    column: str
    label: str
    unit: str = ""


METRICS = [
    Metric("runtime_s", "runtime", "s"),
    Metric("throughput_samples_per_s", "throughput", "samples/s"),
    Metric("validation_loss", "validation loss"),
    Metric("gpu_utilization_pct", "GPU utilization", "%"),
    Metric("statistical_efficiency", "statistical efficiency"),
    Metric("goodput_samples_per_s", "goodput", "samples/s"),
    Metric("exact_match", "exact match", "%"),
    Metric("f1", "F1", "%"),
    Metric("accuracy", "accuracy"),
    Metric("cpu_utilization_pct", "CPU utilization", "%"),
    Metric("peak_memory_gib", "peak memory", "GiB"),
    Metric("throughput_tokens_per_s", "token rate", "tokens/s"),
    Metric("speedup", "speedup", "x 1 device"),  # the one computed here
    Metric("noise_scale_samples", "noise scale", "samples"),
]
MEASURED = [metric.column for metric in METRICS if metric.column != "speedup"]
# The study: a table is a choice of metrics (the first keeps those that no run could measure), a figure of
# lines a column of a file against an axis.
TABLES = [[*METRICS[:6], Metric("runs", "runs")], METRICS[6:]]
LINES = [("steps.csv", "train_loss"), ("evaluations.csv", "validation_loss")]
AXES = {"samples": "samples", "elapsed_s": "time (s)"}

# Name and colour (from Okabe and Ito's palette for colour-blind readers), in the order of the rows.
STRATEGIES = {
    "ddp": ("DDP", "#0072B2"),
    "pipeline": ("pipeline", "#D55E00"),
    "zero": ("ZeRO", "#009E73"),
    "fsdp": ("FSDP", "#CC79A7"),
    "data_parallel": ("DataParallel", "#E69F00"),
    "torch_pipeline": ("torch pipeline", "#56B4E9"),
    "hf_trainer": ("HF Trainer", "#000000"),
}
# Line, marker and hatch tell rows of one strategy apart: for 1, 2, 4, 8, ... devices, or the next one free.
STYLES = [("-", "o", ""), ("--", "s", "//"), (":", "^", "xx"), ("-.", "D", "..")]
STYLES += [((0, (6, 1, 1, 1, 1, 1)), "v", "\\\\"), ((0, (1, 3)), "P", "++")]

# What the rows of one table have in common, as its heading says it.
GROUP = {
    "task": "{}",
    "model": "{}",
    "global_batch_size": "global batch {}",
    "precision": "{}",
    "max_seq_length": "length {}",
    "cpu_threads": "{} CPU thread(s) a process",
    "hardware": "{}",
    "workload": "workload {}",
}
# What else makes a setting: added to a row's name only where rows would share the name without it.
DETAILS = {
    "micro_batches": "{} micro-batch(es)",
    "micro_batch_size": "micro-batch size {}",
    "devices": "{} device(s)",
    "pipeline_stages": "{} stage(s)",
    "replicas": "{} replica(s)",
}
SETTINGS = ["strategy", *GROUP, *DETAILS]
WHOLE_NUMBERS = ["global_batch_size", "max_seq_length", "cpu_threads", *DETAILS]
NEEDED = ["strategy", "task", "model", "devices", "global_batch_size", "runtime_s"]

CAPTION = """\
In brackets: the change against DDP on as many devices (the row marked baseline); none where there is no such
run. Empty (—): could not be measured, see run.json, or nothing to compare with. At equal global batch,
statistical efficiency is the same for every strategy up to noise: goodput ranks rows as throughput does."""


def read_numbers(path: Path, columns: list[str]) -> pd.DataFrame:
    """A CSV file as text, the given columns as numbers. ValueError says in words what is wrong with it."""
    try:
        table = pd.read_csv(path, dtype=str)  # text first: a workload such as 1e10 is a name, not a number
    except FileNotFoundError:
        raise ValueError(f"{path.name} is missing") from None
    except ValueError as error:
        raise ValueError(f"{path.name} cannot be read: {error}") from None
    if list(table.index) != list(range(len(table))):  # what pandas makes of a row longer than the header
        raise ValueError(f"{path.name} has more values than column names")
    for column in table.columns.intersection(columns):
        numbers = pd.to_numeric(table[column], errors="coerce")
        usable = np.isfinite(numbers)
        if column in WHOLE_NUMBERS:
            usable &= numbers.between(0, 1e9) & (numbers % 1 == 0)
        if len(wrong := table.loc[table[column].notna() & ~usable, column]):
            raise ValueError(f"{path.name}: {column} is {wrong.iloc[0]!r}, not a usable number")
        table[column] = numbers
    return table


def read_run(folder: Path) -> tuple[dict, dict[str, pd.DataFrame]]:
    """The summary of a finished run as a dictionary, and its curves as tables by what they show."""
    try:
        status = json.loads((folder / "run.json").read_text(encoding="utf-8"))["status"]
    except (OSError, KeyError, TypeError, ValueError):
        raise ValueError("run.json is missing or is not JSON with a status") from None
    if status != "finished":
        raise ValueError(f"not finished, its status is {status!r}")
    summary = read_numbers(folder / "summary.csv", MEASURED + WHOLE_NUMBERS)
    if len(summary) != 1:
        raise ValueError(f"summary.csv has {len(summary)} rows, not one")
    if missing := [column for column in NEEDED if column not in summary or summary[column].isna().any()]:
        raise ValueError(f"summary.csv has no {', '.join(missing)}")
    curves = {}
    for name, value in LINES:
        if (folder / name).is_file():  # a run without curves still has its row in the tables
            curves[value] = read_numbers(folder / name, [value, *AXES]).reindex(columns=[value, *AXES])
    return summary.iloc[0].to_dict(), curves


def find_runs(root: Path) -> tuple[pd.DataFrame, list[dict]]:
    """All usable runs at and below root: a table of their summaries, and their curves in the same order."""
    runs = []
    for path, folders, files in os.walk(root):
        top = Path(path) == root and root.resolve().name == "results"
        skipped = {"figures", "reference", "published"} if top else {"figures"}
        folders[:] = sorted(name for name in folders if name not in skipped and not name.startswith("."))
        if {"run.json", "summary.csv"} & set(files):
            try:
                runs.append(read_run(Path(path)))
            except (OSError, ValueError) as error:
                print(f"left out {path}: {' '.join(str(error).split())}", file=sys.stderr)
    return pd.DataFrame([summary for summary, _ in runs]), [curves for _, curves in runs]


def phrase(pattern: str, value: object) -> str:
    """Fill in a number or a name; an ending in brackets is for more than one."""
    return re.sub(r"\((e?s)\)", "" if str(value) == "1" else r"\1", pattern.format(value))


def setting_name(row: pd.Series) -> str:
    strategy, devices, replicas = row["strategy"], row["devices"], row["replicas"]
    label = STRATEGIES.get(strategy, [strategy])[0]
    if "pipeline" in strategy and pd.notna(row["pipeline_stages"]):
        copies = f" x {replicas} replicas" if pd.notna(replicas) and replicas > 1 else ""
        return f"{label} {phrase(DETAILS['pipeline_stages'], row['pipeline_stages'])}{copies}"
    return "1 device" if strategy == "ddp" and devices == 1 else f"{label} x {devices}"


def ddp_row(rows: pd.DataFrame, row: pd.Series, devices: int) -> int:
    """Index of the DDP row on so many devices that a row is measured against; -1 where there is none."""
    same = rows[(rows["group"] == row["group"]) & (rows["strategy"] == "ddp") & (rows["devices"] == devices)]
    same_size = same[same["micro_batch_size"] == row["micro_batch_size"]]
    choices = same if same_size.empty else same_size
    return -1 if choices.empty else choices["throughput_samples_per_s"].fillna(0).idxmax()


def compare(runs: pd.DataFrame) -> tuple[pd.DataFrame, pd.Series]:
    """A row per setting with the mean and spread of its runs, its changes and speedup; and each run's row."""
    runs = runs.reindex(columns=SETTINGS + MEASURED)
    runs = runs.astype(dict.fromkeys(WHOLE_NUMBERS, "Int64") | dict.fromkeys(MEASURED, float))
    # On GPUs the host's threads do little, and their default number falls as the number of processes grows.
    runs.loc[runs["hardware"].notna() & ~runs["hardware"].astype(str).str.startswith("CPU"), "cpu_threads"] = pd.NA
    # A run that does not record its workload counts as equal, unless there are several it could be equal to.
    for _, alike in runs.groupby([column for column in GROUP if column != "workload"], dropna=False):
        if alike["workload"].nunique() == 1:
            runs.loc[alike.index, "workload"] = alike["workload"].dropna().iloc[0]

    settings = runs.groupby(SETTINGS, dropna=False, sort=False)
    spread = settings[MEASURED].std().add_suffix("_sd")  # n - 1; empty for a single run
    rows = settings[MEASURED].mean().join(spread).assign(runs=settings.size()).reset_index()
    rows["group"] = rows.groupby(list(GROUP), dropna=False).ngroup()
    rows["setting"] = rows.apply(setting_name, axis=1)
    for column, pattern in DETAILS.items():
        for _, alike in rows.groupby(["group", "setting"]):
            if alike[column].nunique(dropna=False) > 1:
                rows.loc[alike.index, "setting"] += [", " + phrase(pattern, value) for value in alike[column]]

    baseline = pd.Series([ddp_row(rows, row, row["devices"]) for _, row in rows.iterrows()])
    baseline = baseline.where(baseline != rows.index, -1)  # a baseline is not compared with itself
    single = [ddp_row(rows, row, 1) for _, row in rows.iterrows()]
    throughput = rows["throughput_samples_per_s"]
    base = rows[MEASURED].reindex(baseline).set_axis(rows.index)
    changes = (rows[MEASURED] / base - 1) * 100
    rows = rows.join(changes.where(base > 0).add_suffix("_change_pct"))  # none in % of nothing
    rows["speedup"] = throughput / throughput.reindex(single).to_numpy()
    rows["baseline"] = rows["setting"].reindex(baseline).to_numpy()
    rows["is_baseline"] = rows.index.isin(baseline)
    rows["rank"] = [[*STRATEGIES, name].index(name) for name in rows["strategy"]]
    return rows.sort_values(["group", "rank", "strategy", "devices", *DETAILS]), settings.ngroup()


def describe(row: pd.Series, columns: list[str]) -> str:
    known = {column: phrase(GROUP[column], row[column]) for column in columns if pd.notna(row[column])}
    return ", ".join(known.get(column, f"unrecorded {column}") for column in columns)


def number(value: float, like: float | None = None) -> str:
    """Four significant digits (three below 1), or with as many decimals as another number has then."""
    size = abs(value if like is None else like)
    decimals = 3 - math.floor(math.log10(size)) - (size < 1) if size else 0
    return f"{value:.{min(max(decimals, 0), 6)}f}"


def cell(row: pd.Series, column: str) -> str:
    if column == "runs" or pd.isna(row[column]):
        return str(row["runs"]) if column == "runs" else "—"
    spread, change = row.get(f"{column}_sd"), row.get(f"{column}_change_pct")
    spread = f" ± {number(spread, like=row[column])}" if pd.notna(spread) else ""
    return number(row[column]) + spread + (f" ({change:+z.1f}%)" if pd.notna(change) else "")


def markdown_table(rows: pd.DataFrame, metrics: list[Metric]) -> str:
    names = rows["setting"] + rows["is_baseline"].map({True: " (baseline)", False: ""})
    width = max(map(len, names))
    columns = [["setting".ljust(width), "-" * width, *(name.ljust(width) for name in names)]]
    for column, label, unit in metrics:
        cells = [f"{label} {unit}".strip(), *(cell(row, column) for _, row in rows.iterrows())]
        width = max(map(len, cells))
        cells.insert(1, "-" * (width - 1) + ":")
        columns.append([text.rjust(width) for text in cells])
    return "\n".join(f"| {' | '.join(line)} |" for line in zip(*columns, strict=True))


def new_chart(title: str, heading: str, label: str, width: float) -> tuple[Figure, Axes]:
    figure = Figure(figsize=(width, 4.4), dpi=150, layout="constrained")
    axes = figure.add_subplot()
    heading = "\n".join(textwrap.fill(line, 76) for line in heading.splitlines())
    axes.annotate(heading, (0, 1), (0, 6), "axes fraction", "offset points", fontsize=8, color="0.35")
    pad = 12 + 10 * len(heading.splitlines())
    axes.set_title(title[0].upper() + title[1:], loc="left", weight="bold", pad=pad)
    axes.set_ylabel(label)
    axes.grid(axis="y", color="0.9")
    axes.set_axisbelow(True)
    axes.spines[["top", "right"]].set_visible(False)
    return figure, axes


def looks(rows: pd.DataFrame) -> list[tuple]:
    """Colour, line, marker and hatch of each row; rows of a strategy differ while there are styles left."""
    chosen = []
    for strategy, devices in zip(rows["strategy"], rows["devices"], strict=True):
        first = int(devices).bit_length() - 1
        order = [(strategy, (first + step) % len(STYLES)) for step in range(len(STYLES))]
        chosen.append(next((look for look in order if look not in chosen), order[0]))
    return [(STRATEGIES.get(strategy, ("", "#999999"))[1], *STYLES[style]) for strategy, style in chosen]


def bar_chart(rows: pd.DataFrame, metric: Metric, heading: str) -> Figure:
    spreads = rows.get(f"{metric.column}_sd", pd.Series(np.nan, rows.index))
    if spreads.notna().any():
        heading += "\nmean and standard deviation over seeds"
    label = f"{metric.label} ({metric.unit})" if metric.unit else metric.label
    figure, axes = new_chart(metric.label, heading, label, max(6, 1.15 * len(rows) + 1))
    bars = zip(rows[metric.column], spreads, looks(rows), strict=True)
    for place, (value, spread, (colour, _, _, hatch)) in enumerate(bars):
        error = spread if spread > 0 else None
        axes.bar(place, value, 0.65, yerr=error, capsize=4, color=colour, edgecolor="white", hatch=hatch)
        text, top = ("—", 0) if pd.isna(value) else (number(value), max(value, 0) + (error or 0))
        axes.annotate(text, (place, top), (0, 3), textcoords="offset points", horizontalalignment="center")
    names = [textwrap.fill(name, 16, break_on_hyphens=False) for name in rows["setting"]]
    axes.set_xticks(range(len(rows)), names, fontsize=9)
    axes.set_xlim(-0.6, max(len(rows), 4) - 0.4)  # a lone bar stays a bar
    axes.margins(y=0.12)
    return figure


def line_chart(rows: pd.DataFrame, curves: dict, value: str, axis: str, heading: str) -> Figure | None:
    """A line per run, those of one setting alike; None where no run has any."""
    label = value.replace("_", " ").replace("train ", "training ")
    figure, axes = new_chart(f"{label} over {AXES[axis].split()[0]}", heading, label, 9)
    legend = {}
    for place, (index, (colour, line, marker, _)) in enumerate(zip(rows.index, looks(rows), strict=True)):
        tables = [run[value][[axis, value]].dropna() for run in curves[index] if value in run]
        width, size = (1.8, 5.5) if len(tables) == 1 else (0.9, 3.5)
        for table in filter(len, tables):
            points = table[value]
            if value == "train_loss":  # that of a step is noisy: a faint line behind its rolling mean
                axes.plot(table[axis], points, color=colour, linewidth=0.5, alpha=0.2 / len(tables), zorder=1)
                points = points.rolling(10, min_periods=1).mean()
            # Markers are hollow and staggered, so that lines that coincide can be told apart.
            gap = max(1, len(table) // 8)
            marks = {
                "marker": marker,
                "markerfacecolor": "none",
                "markevery": (place * gap // len(rows), gap),
            }
            look = {"color": colour, "linestyle": line, "linewidth": width, "markersize": size}
            drawn = axes.plot(table[axis], points, **look, **marks)
            legend.setdefault(rows.loc[index, "setting"], *drawn)
    axes.set_xlabel(AXES[axis])
    place = {"loc": "outside right upper", "frameon": False, "fontsize": 9, "handlelength": 3.5}
    figure.legend(legend.values(), legend.keys(), **place)
    return figure if legend else None


def write_comparison(rows: pd.DataFrame, curves: dict, output: Path) -> tuple[str, int]:
    """Write the tables and the figures of every group; returns the tables as text, and how many figures."""
    figures = output / "figures"
    figures.mkdir(parents=True, exist_ok=True)
    columns = [metric.column + end for metric in METRICS for end in ("", "_sd", "_change_pct")]
    columns = ["setting", "baseline", "runs", *SETTINGS, *(column for column in columns if column in rows)]
    rows[columns].to_csv(output / "comparison.csv", index=False, float_format="%.6g")
    differing = [column for column in GROUP if rows[column].nunique(dropna=False) > 1]
    parts, charts = ["# Comparison of training runs"], {}
    for _, group in rows.groupby("group"):
        row = group.iloc[0]  # any: they are the same in what a heading says
        known = {column for column in GROUP if pd.notna(row[column])} - {"workload"}
        heading = describe(row, [column for column in GROUP if column in known.union(differing)])
        slug = re.sub(r"\W+", "_", describe(row, differing) + "_" if differing else "").lower()
        empty = {metric for metric in METRICS if group[metric.column].isna().all()}
        tables = [TABLES[0], *([metric for metric in table if metric not in empty] for table in TABLES[1:])]
        parts += [f"## {heading}", *(markdown_table(group, table) for table in tables if table), CAPTION]
        for metric in METRICS:
            if metric not in empty:
                charts[slug + metric.column] = bar_chart(group, metric, heading)
        for _, value in LINES:
            for axis, name in AXES.items():
                chart = line_chart(group, curves, value, axis, heading)
                charts[f"{slug}{value}_over_{name.split()[0]}"] = chart
    text = "\n\n".join(parts) + "\n"
    (output / "comparison.md").write_text(text, encoding="utf-8")
    drawn = [chart.savefig(figures / f"{name}.png") for name, chart in charts.items() if chart]
    return text, len(drawn)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0], allow_abbrev=False)
    parser.add_argument("results", nargs="?", type=Path, default=Path("results"), help="folder with runs")
    parser.add_argument("--output_dir", type=Path, help="where to write (default: the results folder)")
    parser.error = lambda message: parser.exit(2, f"plots.py: {message}\n")
    options = parser.parse_args()
    if not options.results.is_dir():
        parser.error(f"there is no folder {options.results}")
    runs, curves = find_runs(options.results)
    if runs.empty:
        parser.error(f"no finished run to compare in {options.results}")
    rows, row_of_run = compare(runs)
    curves = {index: [curves[run] for run in runs.index[row_of_run == index]] for index in rows.index}
    output = options.output_dir or options.results
    try:
        text, figures = write_comparison(rows, curves, output)
    except OSError as error:
        parser.error(f"cannot write to {output}: {error}")
    print(text)
    print(f"Wrote comparison.md, comparison.csv and {figures} figures (figures/*.png) to {output}")


if __name__ == "__main__":
    main()
