"""Turn runs into a row per setting, with means, intervals, changes against the baseline and speedups."""

from collections.abc import Iterable, Sequence

import numpy as np
import pandas as pd
from pandas.api.typing import DataFrameGroupBy

from comparison.changes import find_changes, has_moved, how_moved, runs_of
from comparison.runs import Run
from comparison.settings import RATE, Choices, add_names, with_settings
from comparison.statistics import estimate, paired_ratio
from comparison.study import DRIFT, OTHERS, Study
from comparison.targets import TIMES, add_targets, may_compare_times
from measurement.columns import FROM_NOISE, HIGH, INTERVALS, LOW, YES
from measurement.metrics import FEWEST_STEPS

# Endings of a metric's name in the columns of a row: its mean, its change against the baseline, whether that is marked,
# and the noise of reruns, if there are any.
MEAN = ("", "_ci95", "_n")
CHANGE = ("_change_pct", "_change_ci95", "_change_n")
DIFFERS = "_differs"
FLOOR = "_change_floor_pct"
RERUNS = ("_rerun_sd_pct", "_rerun_n")
ENDS = (*MEAN, *CHANGE, DIFFERS, FLOOR, *RERUNS)
FIRST = ("epoch_workload", "source_digest", "family", "model_sha256", "data_sha256")  # a row has its first run's
WEAK = "weak_"  # prefix of columns relative to one device in weak scaling


def with_endings(parts: Iterable[np.ndarray], ends: Sequence[str], columns: Sequence[str]) -> pd.DataFrame:
    """Arrays of (rows, metrics) side by side, each under the metrics' names with its own ending."""
    return pd.concat([pd.DataFrame(part, columns=[column + end for column in columns])
                      for part, end in zip(parts, ends, strict=True)], axis=1)


def ratios(values: np.ndarray, above: np.ndarray, below: np.ndarray, name: str) -> pd.DataFrame:
    """The ratio of a metric between the rows `above` and the rows `below`, over the seeds that both have.

    Args:
        values: (seeds, rows + 1); the last row is empty.
    """
    table = pd.DataFrame(dict(zip([name + end for end in MEAN], paired_ratio(values[:, above], values[:, below]),
                                  strict=True)))
    table.loc[above == below, name + MEAN[1]] = np.nan  # 1 by definition
    return table


def speedups(rows: pd.DataFrame, choices: Choices, values: dict[str, np.ndarray], kind: str) -> pd.DataFrame:
    """Each row relative to one device, in strong or in weak scaling.

    `speedup` and `own_speedup` are the row's throughput over that of DDP and of the same strategy on one device.
    `epoch_speedup` is the seconds of an epoch on one device (of the same strategy if it has such a row, else of DDP)
    over the row's. `parallel_efficiency_pct` is `epoch_speedup` in percent of the number of devices.

    Args:
        values: for each metric an array of (seeds, rows + 1); the last row is empty.
    """
    here = rows.index.to_numpy()
    ddp, own = choices.one_device_rows(kind, "ddp"), choices.one_device_rows(kind)
    epoch = ratios(values["epoch_s"], np.where(own < 0, ddp, own), here, "epoch_speedup")
    percent = 100 / rows["devices"].to_numpy(float)
    efficiency = epoch.rename(columns=lambda column: column.replace("epoch_speedup", "parallel_efficiency_pct"))
    efficiency.iloc[:, :2] = efficiency.iloc[:, :2].mul(percent, axis=0)  # not the number of seeds
    throughput = [ratios(values[RATE], here, one, name)
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
    `_change_ci95`, `_change_n` (seeds that both have) and `_differs` (the change is marked; see `comparison.changes`).
    Several runs of one seed count as one, with their mean; what they say of the noise is in `_rerun_sd_pct`,
    `_rerun_n` and `_change_floor_pct`. `moved` names the runs whose machine changed its speed or worked for others.
    The `speedups` of strong scaling keep their names, those of weak scaling begin with `weak_`.
    `dirty` is "yes" if any run of the row was.
    """
    numbers = [*dict.fromkeys([*study.targets, *study.measured, *TIMES, *INTERVALS, DRIFT, *OTHERS])]
    columns = ["seed", "folder", *FIRST, "commit", "dirty", *study.settings,
               *numbers]
    table = pd.DataFrame([run.summary for run in runs]).reindex(columns=columns)
    table = with_settings(table.astype(dict.fromkeys(numbers, float)), study)
    settings = table.groupby(study.settings, dropna=False, sort=False)
    table["row"] = settings.ngroup()
    rows = settings.size().rename("runs").reset_index()
    add_targets(rows, table, study)

    measured = runs_of(table, study)
    means = measured.cells(measured.values).means
    rows = rows.join(with_endings(estimate(means[:, :-1]), MEAN, study.measured))
    by_row = table.groupby("row")
    add_intervals(rows, by_row)
    for column in FIRST:
        rows[column] = by_row[column].first()
    rows["commit"] = by_row["commit"].agg(lambda commits: " ".join(commits.dropna().unique()))
    rows["is_dirty"] = by_row["dirty"].agg(lambda states: (states == YES).any()).astype(bool)
    rows["dirty"] = by_row["dirty"].agg(lambda states: states.iloc[0] if states.nunique(dropna=False) == 1 else np.nan)
    rows.loc[rows["is_dirty"], "dirty"] = YES
    add_names(rows, study)
    choices = Choices(rows)
    baseline = choices.ddp_rows()
    values = dict(zip(study.measured, np.moveaxis(means, 2, 0), strict=True))
    scaled = [speedups(rows, choices, values, "strong"), speedups(rows, choices, values, "weak").add_prefix(WEAK)]
    has_times = np.array([base < 0 or may_compare_times(row, rows.iloc[base])
                          for base, (_, row) in zip(baseline, rows.iterrows(), strict=True)])
    found = find_changes(measured, baseline, has_times, rows["group"].to_numpy(), study)
    changes = with_endings(found, [*CHANGE, DIFFERS, FLOOR, *RERUNS], study.measured)
    noise = [metric + end for metric in study.measured for end in (FLOOR, *RERUNS)]
    rows = rows.join([changes.drop(columns=[column for column in noise if changes[column].isna().all()]), *scaled])
    moved = table[has_moved(table)]
    names = [f"{run['folder']} ({how_moved(run)})" for _, run in moved.iterrows()]
    rows["moved"] = pd.Series(names, moved.index, dtype=object).groupby(moved["row"]).agg(", ".join)
    rows["baseline"] = rows["setting"].reindex(baseline).to_numpy()
    rows["is_baseline"] = rows.index.isin(baseline)
    looks = [study.look(name) for name in rows["strategy"]]
    rows["rank"] = [look.place if look else len(study.strategies) for look in looks]
    places = by_row.indices
    members = {index: [runs[place] for place in places[index]] for index in rows.index}
    return rows.sort_values(["group", "rank", "strategy", "devices", *study.details]), members
