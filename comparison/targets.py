"""Time to quality: the target of each run, and which times may be averaged and compared.

A run that never reached its target has no time, so the mean over the others flatters its setting. Such a mean is
shown with the number of runs that reached the target, and is never compared.
"""

from typing import NamedTuple

import numpy as np
import pandas as pd

from comparison.study import Study

TIMES = ["time_to_target_s", "samples_to_target"]
TO_TARGET = [*TIMES, "cost_to_target", "energy_to_target_kwh", "co2_to_target_g"]  # all that follows from a time
SEVERAL = "several"  # the target of a row whose runs had different ones, and which has no mean time


class Aim(NamedTuple):
    """A target with its value, hashable and sortable."""

    curve: str
    value: float
    text: str


def aim_of(run: pd.Series | dict, study: Study) -> Aim | None:
    """The target of a run, if it had one."""
    for column, target in study.targets.items():
        if pd.notna(value := run.get(column)):
            return Aim(target.curve, value, target.pattern.format(value))
    return None


def add_targets(rows: pd.DataFrame, runs: pd.DataFrame, study: Study) -> None:
    """Give each row its `target` and how many of its runs `reached` it; remove times that have no mean.

    Args:
        rows: a row per setting.
        runs: a row per run; its column `row` is the index of its setting.
    """
    aims = [aim_of(run, study) for _, run in runs.iterrows()]
    aims = pd.Series([aim.text if aim else None for aim in aims], runs.index, dtype=object).groupby(runs["row"])
    is_mixed = aims.nunique() > 1
    runs.loc[runs["row"].map(is_mixed), [column for column in TO_TARGET if column in runs]] = np.nan
    done = runs["time_to_target_s"].notna().groupby(runs["row"]).sum()
    rows["target"] = aims.first().mask(is_mixed, SEVERAL)
    rows["reached"] = (done.astype(str) + " of " + aims.count().astype(str)).where(aims.nunique() == 1)
    rows["all_reached"] = (done == aims.count()) & ~is_mixed


def may_compare_times(row: pd.Series, baseline: pd.Series) -> bool:
    """Whether the targets are equal and every run of both rows reached its own."""
    return row["target"] == baseline["target"] and row["all_reached"] and baseline["all_reached"]
