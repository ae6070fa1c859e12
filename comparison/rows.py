"""Runs -> a row per setting, with means, intervals, changes against the baseline and speedup."""

import numpy as np
import pandas as pd

from comparison.runs import Run
from comparison.settings import add_names, ddp_row, with_settings
from comparison.statistics import Estimate, estimate, excludes_zero, paired_change, paired_ratio
from comparison.study import Study
from comparison.targets import TIMES, add_targets, may_compare_times

# What follows a metric's name in the columns of a row: of its mean, and of its change against the baseline.
MEAN = ("", "_ci95", "_n")
CHANGE = ("_change_pct", "_change_ci95", "_change_n")
DIFFERS = "_differs"
ENDS = (*MEAN, *CHANGE, DIFFERS)

Samples = dict[int, pd.DataFrame]  # row -> its values, a line per seed and a column per metric; -1: none


def in_one_line(found: Estimate, ends: tuple[str, ...]) -> pd.Series:
    return pd.concat([part.add_suffix(end) for part, end in zip(found, ends, strict=True)])


def changes(rows: pd.DataFrame, samples: Samples, baseline: np.ndarray) -> pd.DataFrame:
    """Each row against its baseline, over the seeds that both have."""
    lines = []
    for index, base in zip(rows.index, baseline, strict=True):
        other = samples[base]
        if base >= 0 and not may_compare_times(rows.loc[index], rows.loc[base]):
            other = other.assign(**dict.fromkeys(TIMES, np.nan))
        change = paired_change(samples[index], other)
        lines.append(pd.concat([in_one_line(change, CHANGE), excludes_zero(change).add_suffix(DIFFERS)]))
    return pd.DataFrame(lines, rows.index).infer_objects()


def speedups(rows: pd.DataFrame, samples: Samples, single: np.ndarray) -> pd.DataFrame:
    """Throughput of each row in multiples of one device's, over the seeds that both have."""
    throughput = {index: sample["throughput_samples_per_s"].to_frame("speedup") for index, sample in samples.items()}
    ratios = [paired_ratio(throughput[index], throughput[one]) for index, one in zip(rows.index, single, strict=True)]
    table = pd.DataFrame([in_one_line(ratio, MEAN) for ratio in ratios], rows.index)
    table.loc[rows.index == single, "speedup_ci95"] = np.nan  # 1 by definition
    return table


def compare(runs: list[Run], study: Study) -> tuple[pd.DataFrame, dict[int, list[Run]]]:
    """A row per setting, in the order to be read, and the runs behind each row by its index.

    Beside the settings a row has for each metric its mean over seeds, `_ci95` (half-width of the mean's 95 %
    confidence interval), `_n` (seeds), and against its `baseline`, DDP on as many devices, `_change_pct`,
    `_change_ci95`, `_change_n` (seeds that both have) and `_differs` (the change's interval excludes zero).
    Several runs of one seed count as one: their mean.
    """
    numbers = [*dict.fromkeys([*study.targets, *study.measured, *TIMES])]
    table = pd.DataFrame([run.summary for run in runs]).reindex(columns=["seed", *study.settings, *numbers])
    table = with_settings(table.astype(dict.fromkeys(numbers, float)), study)
    settings = table.groupby(study.settings, dropna=False, sort=False)
    table["row"] = settings.ngroup()
    rows = settings.size().rename("runs").reset_index()
    add_targets(rows, table, study)

    seeds = table.groupby(["row", "seed"])[study.measured].mean()
    samples = {index: seeds.loc[index] for index in rows.index} | {-1: seeds.loc[0].iloc[:0]}
    rows = rows.join(pd.DataFrame([in_one_line(estimate(samples[index]), MEAN) for index in rows.index]))
    add_names(rows, study)
    baseline = np.array([ddp_row(rows, row, row["devices"]) for _, row in rows.iterrows()])
    baseline[baseline == rows.index] = -1  # a baseline is not compared with itself
    single = np.array([ddp_row(rows, row, 1) for _, row in rows.iterrows()])
    rows = rows.join(changes(rows, samples, baseline)).join(speedups(rows, samples, single))
    rows["baseline"] = rows["setting"].reindex(baseline).to_numpy()
    rows["is_baseline"] = rows.index.isin(baseline)
    rows["rank"] = [[*study.strategies, name].index(name) for name in rows["strategy"]]
    members = {index: [runs[place] for place in np.flatnonzero(table["row"] == index)] for index in rows.index}
    return rows.sort_values(["group", "rank", "strategy", "devices", *study.details]), members
