"""Write comparison.md, comparison.csv, report.html and the figures of every group of comparable rows."""

from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any

import pandas as pd

from comparison import captions
from comparison.autotuning import end_to_end, tuner_parts
from comparison.changes import MOST_DRIFT
from comparison.figures import Members, bar_chart, line_chart, quality_chart
from comparison.noise_figure import noise_chart
from comparison.page import Section, write_page
from comparison.predicted import PREDICTED, predicted_chart, predicted_table
from comparison.rows import ENDS, FLOOR, MEAN, RERUNS, WEAK
from comparison.saving import Drawing, save_figures
from comparison.scaling import scaling_charts, scaling_tables, weak_charts, weak_groups
from comparison.settings import RATE, describe, mixed_versions, name_start, tell_workloads_apart
from comparison.study import SPEEDUPS, VERSIONS, Study
from comparison.tables import Part, metrics_table, without_empty
from comparison.targets import TO_TARGET, aim_of
from comparison.verdict import verdict
from comparison.verified import verified
from measurement.columns import HIGH, INTERVALS, LOW


def write_csv(rows: pd.DataFrame, path: Path, study: Study) -> None:
    """Write all columns of all rows, at full precision."""
    metrics = [metric.column for metric in (*study.metrics, *study.published_metrics)]
    metrics += [*SPEEDUPS, *(WEAK + column for column in SPEEDUPS)]
    ends = [metric + end for metric in metrics for end in (*ENDS, LOW, HIGH) if metric + end in rows]
    columns = ["setting", "baseline", "runs", *study.settings, "source_digest", "commit", "dirty", "epoch_workload",
               "moved", *ends, *(column for column in PREDICTED.values() if column in rows)]
    columns = list(dict.fromkeys(columns))
    counts = {column: "Int64" for column in columns if column.endswith("_n")}
    rows[columns].astype(counts).to_csv(path, index=False)


def noise(group: pd.DataFrame) -> list[str]:
    """What keeps changes of a group from being marked: the noise of reruns, and runs whose machine's speed drifted."""
    found, (deviation, reruns) = [], (RATE + end for end in RERUNS)
    if deviation in group and group[deviation].notna().any():
        spread, count = group[deviation].iloc[0], int(group[reruns].iloc[0])
        floors = [f"{floor:.2g}" for floor in sorted(group[RATE + FLOOR].dropna())] if RATE + FLOOR in group else []
        found.append(f"Reruns of one seed vary by {spread:.2g} % (standard deviation of throughput, {count} rerun"
                     f"{'s' * (count > 1)})" + (f"; changes of throughput within "
                     f"{' to '.join(dict.fromkeys([floors[0], floors[-1]]))} % are not marked." if floors else "."))
    if moved := ", ".join(group["moved"].dropna()):
        found.append(f"During these runs the machine's speed changed by more than {MOST_DRIFT:g} %, or other programs "
                     f"took more than that of its processor: {moved}. No change that rests on them is marked.")
    return found


def tables(group: pd.DataFrame, study: Study) -> list[Part]:
    """The tables of a group: the first with all its columns, the others without empty rows and columns."""
    parts: list[Part] = []
    for place, (title, metrics) in enumerate(study.tables.items()):
        if place:
            filled, metrics = without_empty(group, metrics)
            parts += [f"### {title}", metrics_table(filled, metrics)] if metrics else []
        else:
            parts.append(metrics_table(group, metrics))
    return parts + predicted_table(group) + scaling_tables(group, study, "strong")


def charts(group: pd.DataFrame, members: Members, heading: str, study: Study) -> dict[str, Drawing]:
    """The figures of a group by name, each to be drawn when it is called."""
    found: dict[str, Drawing] = {}
    for metric in study.metrics:
        is_mean = metric.column + MEAN[1] in group and metric.column not in TO_TARGET  # bars would mix targets
        if is_mean and group[metric.column].notna().any():
            found[metric.column] = partial(bar_chart, group, metric, heading, study)
    for curve in study.curves:
        for axis in curve.axes:
            name = f"{curve.column}_over_{study.axes[axis].split()[0]}"
            found[name] = partial(line_chart, group, members, curve, axis, heading, study)
    found["predicted_over_measured"] = partial(predicted_chart, group, heading, study)
    found["noise_scale_over_samples"] = partial(noise_chart, group, members, heading, study)
    aims = {aim_of(run.summary, study) for index in group.index for run in members[index]}
    for aim in sorted(aim for aim in aims if aim is not None):
        found[f"time_to_{aim.curve}_{aim.value:g}"] = partial(quality_chart, group, members, aim, heading, study)
    return found | scaling_charts(group, heading, study, "strong")


def write_comparison(rows: pd.DataFrame, members: Members, output: Path, study: Study, tuners: pd.DataFrame,
                     published: list[Part], verifications: Sequence[dict[str, Any]] = ()) -> tuple[str, int]:
    """Write tables and figures of every group and of weak scaling. Returns the tables as text, and the figure count.

    Args:
        tuners: a line per tuning space of each autotuner.
        published: parts of the text that follow the tables of our own runs.
        verifications: entries of verification.json.
    """
    figures = output / "figures"
    figures.mkdir(parents=True, exist_ok=True)
    write_csv(rows, output / "comparison.csv", study)
    if len(tuners):
        tuners.to_csv(output / "autotuning.csv", index=False)
    differing = [column for column in study.group if rows[column].nunique(dropna=False) > 1]
    workloads = tell_workloads_apart(rows, members, study)
    sections: list[Section] = []
    others: list[Part] = []  # what follows the groups
    drawings = dict[Path, Drawing]()
    for number, (_, group) in enumerate(rows.groupby("group")):
        row = group.iloc[0]  # all rows of a group are equal in these columns
        known = {column for column in study.group if pd.notna(row[column])} - {"workload", *VERSIONS}
        named = [column for column in study.group if column in known.union(differing) - {"workload"}]
        heading = describe(row, named, study) + workloads.get(row["group"], "") + mixed_versions(group, study)
        slug = name_start(describe(row, differing, study), number) if differing else ""
        by_hand = group[group["tuned_by"] != "autotuner"]  # autotuned rows have a table of their own
        sentences, parts, found = [], [], dict[str, Drawing]()
        if len(by_hand):
            proven = verified(by_hand, verifications)
            sentences = [*verdict(by_hand, members, study), proven]
            parts = [proven, *noise(by_hand), *tables(by_hand, study)]
            found = charts(by_hand, members, heading, study)
        sections.append(Section(heading, by_hand, sentences, [*parts, *end_to_end(group, study)]))
        drawings |= {figures / f"{slug}{name}.png": drawing for name, drawing in found.items()}
    for heading, slug, group in weak_groups(rows, study):
        others += [f"## {heading}", *scaling_tables(group, study, "weak")]
        found = weak_charts(group, members, heading, study)
        drawings |= {figures / f"{slug}{name}.png": drawing for name, drawing in found.items()}
    shown = [part for each in sections for part in (f"## {each.heading}", *each.parts)] + others
    notes = {captions.COMPARISON: True, captions.UNRECORDED_CODE: rows["source_digest"].isna().any(),
             captions.INTERVAL: rows[INTERVALS].notna().any(axis=None), captions.FEW_STEPS: rows["few_steps"].any(),
             captions.DIRTY: rows["is_dirty"].any(), captions.SCALING: any(" scaling: " in str(part) for part in shown)}
    reading = [note for note, is_needed in notes.items() if is_needed]
    last = [*tuner_parts(tuners), "## How to read the tables", "\n".join(reading), *published]
    write_page(output / "report.html", sections, [*others, *last], members, study)
    text = "\n\n".join(map(str, ["# Comparison of training runs", *shown, *last])) + "\n"
    (output / "comparison.md").write_text(text, encoding="utf-8")
    return text, save_figures(drawings)
