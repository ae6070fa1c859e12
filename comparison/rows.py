"""Turn runs into a row per setting, with means, intervals, changes against the baseline and speedups."""

import numpy as np
import pandas as pd
from pandas.api.typing import DataFrameGroupBy

from comparison.runs import Run
from comparison.settings import add_names, ddp_row, one_device_row, with_settings
from comparison.statistics import Estimate, estimate, excludes_zero, paired_change, paired_ratio
from comparison.study import Study
from comparison.targets import TIMES, add_targets, may_compare_times
from measurement.columns import FROM_NOISE, HIGH, INTERVALS, LOW, YES
from measurement.metrics import FEWEST_STEPS

# Endings of a metric's name in the columns of a row: for its mean, and for its change against the baseline.
MEAN = ("", "_ci95", "_n")
CHANGE = ("_change_pct", "_change_ci95", "_change_n")
DIFFERS = "_differs"
ENDS = (*MEAN, *CHANGE, DIFFERS)
WEAK = "weak_"  # prefix of columns relative to one device in weak scaling

Samples = dict[int, pd.DataFrame]  # row -> its values, a line per seed and a column per metric; empty for row -1


def in_one_line(found: Estimate, ends: tuple[str, ...]) -> pd.Series:
    """The fields of an estimate in one Series, each metric's name followed by the field's ending."""
    return pd.concat([part.add_suffix(end) for part, end in zip(found, ends, strict=True)])


def changes(rows: pd.DataFrame, samples: Samples, baseline: np.ndarray) -> pd.DataFrame:
    """Changes of each row against its baseline, over the seeds that both have; `baseline` is -1 for none."""
    lines = []
    for index, base in zip(rows.index, baseline, strict=True):
        other = samples[base]
        if base >= 0 and not may_compare_times(rows.loc[index], rows.loc[base]):
            other = other.assign(**dict.fromkeys(TIMES, np.nan))
        change = paired_change(samples[index], other)
        lines.append(pd.concat([in_one_line(change, CHANGE), excludes_zero(change).add_suffix(DIFFERS)]))
    return pd.DataFrame(lines, rows.index).infer_objects()


def ratios(samples: Samples, column: str, above: np.ndarray, below: np.ndarray, name: str) -> pd.DataFrame:
    """The ratio of a column between the rows `above` and the rows `below`, over the seeds that both have."""
    values = pd.DataFrame({index: sample[column] for index, sample in samples.items()})  # (seeds, rows)
    top, base = (values[side].set_axis(range(len(side)), axis=1) for side in (above, below))
    table = pd.concat(paired_ratio(top, base), axis=1).set_axis([name + end for end in MEAN], axis=1)
    table.loc[above == below, name + MEAN[1]] = np.nan  # 1 by definition
    return table


def speedups(rows: pd.DataFrame, samples: Samples, kind: str) -> pd.DataFrame:
    """Each row relative to one device, in strong or in weak scaling.

    `speedup` and `own_speedup` are the row's throughput over that of DDP and of the same strategy on one device.
    `epoch_speedup` is the seconds of an epoch on one device (of the same strategy if it has such a row, else of DDP)
    over the row's. `parallel_efficiency_pct` is `epoch_speedup` in percent of the number of devices.
    """
    here = rows.index.to_numpy()
    ddp = np.array([one_device_row(rows, row, "ddp", kind) for _, row in rows.iterrows()])
    own = np.array([one_device_row(rows, row, row["strategy"], kind) for _, row in rows.iterrows()])
    epoch = ratios(samples, "epoch_s", np.where(own < 0, ddp, own), here, "epoch_speedup")
    percent = 100 / rows["devices"].to_numpy(float)
    efficiency = epoch.rename(columns=lambda column: column.replace("epoch_speedup", "parallel_efficiency_pct"))
    efficiency.iloc[:, :2] = efficiency.iloc[:, :2].mul(percent, axis=0)  # not the number of seeds
    throughput = [ratios(samples, "throughput_samples_per_s", here, one, name)
                  for one, name in ((ddp, "speedup"), (own, "own_speedup"))]
    return pd.concat([*throughput, epoch, efficiency], axis=1).set_index(rows.index)


def add_intervals(rows: pd.DataFrame, by_row: DataFrameGroupBy) -> None:
    """Give rows of a single seed its intervals over sampled steps, and all rows `few_steps`: whether a run has too few.

    Several seeds have their interval over seeds instead.
    """
    for column in FROM_NOISE:
        for end in (LOW, HIGH):
            ends = by_row[column + end].agg(lambda values: values.mean(skipna=False))
            rows[column + end] = ends.where(rows[column + MEAN[2]] == 1)
    rows["few_steps"] = by_row["sampled_steps"].min() < FEWEST_STEPS  # False where it was not recorded


def compare(runs: list[Run], study: Study) -> tuple[pd.DataFrame, dict[int, list[Run]]]:
    """A row per setting, in reading order, and the runs behind each row by its index.

    In addition to the settings a row has for each metric its mean over seeds, `_ci95` (half-width of the mean's 95 %
    confidence interval) and `_n` (seeds), and against its `baseline`, DDP on as many devices, `_change_pct`,
    `_change_ci95`, `_change_n` (seeds that both have) and `_differs` (the change's interval excludes zero).
    The `speedups` of strong scaling keep their names, those of weak scaling begin with `weak_`.
    Several runs of one seed count as one, with their mean. `dirty` is "yes" if any run of the row was.
    """
    numbers = [*dict.fromkeys([*study.targets, *study.measured, *TIMES, *INTERVALS])]
    columns = ["seed", "epoch_workload", "source_digest", "family", "commit", "dirty", *study.settings, *numbers]
    table = pd.DataFrame([run.summary for run in runs]).reindex(columns=columns)
    table = with_settings(table.astype(dict.fromkeys(numbers, float)), study)
    settings = table.groupby(study.settings, dropna=False, sort=False)
    table["row"] = settings.ngroup()
    rows = settings.size().rename("runs").reset_index()
    add_targets(rows, table, study)

    seeds = table.groupby(["row", "seed"])[study.measured].mean()
    samples: Samples = {index: seeds.loc[[index]].droplevel("row") for index in rows.index}
    samples[-1] = samples[0].iloc[:0]
    rows = rows.join(pd.DataFrame([in_one_line(estimate(samples[index]), MEAN) for index in rows.index]))
    by_row = table.groupby("row")
    add_intervals(rows, by_row)
    for column in ("epoch_workload", "source_digest", "family"):
        rows[column] = by_row[column].first()
    rows["commit"] = by_row["commit"].agg(lambda commits: " ".join(commits.dropna().unique()))
    rows["is_dirty"] = by_row["dirty"].agg(lambda states: (states == YES).any()).astype(bool)
    rows["dirty"] = by_row["dirty"].agg(lambda states: states.iloc[0] if states.nunique(dropna=False) == 1 else np.nan)
    rows.loc[rows["is_dirty"], "dirty"] = YES
    add_names(rows, study)
    baseline = np.array([ddp_row(rows, row) for _, row in rows.iterrows()])
    scaled = [speedups(rows, samples, "strong"), speedups(rows, samples, "weak").add_prefix(WEAK)]
    rows = rows.join([changes(rows, samples, baseline), *scaled])
    rows["baseline"] = rows["setting"].reindex(baseline).to_numpy()
    rows["is_baseline"] = rows.index.isin(baseline)
    rows["rank"] = [[*study.strategies, name].index(name) for name in rows["strategy"]]
    members = {index: [runs[place] for place in np.flatnonzero(table["row"] == index)] for index in rows.index}
    return rows.sort_values(["group", "rank", "strategy", "devices", *study.details]), members
