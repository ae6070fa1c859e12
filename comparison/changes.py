"""Changes against the baseline, the noise of reruns, and which changes are marked.

A change is marked if chance hardly explains it (`statistics.discoveries`, over all changes of a table), if it is larger
than the smallest that matters and than what reruns of the same differ by, and if no run behind it was on a machine that
changed its speed, or worked for others, meanwhile.
"""

from typing import NamedTuple

import numpy as np
import pandas as pd
from scipy.stats import t

from comparison.statistics import discoveries, estimate, in_percent, log_ratios, p_values, positive_logs
from comparison.study import DRIFT, OTHERS, Study
from comparison.targets import TO_TARGET

MOST_DRIFT = 5.0  # percent: a run whose machine changed its speed, or worked for others, by more supports no mark


class Cells(NamedTuple):
    """Means over the runs of a seed and row. The last row is empty, so that row -1 stands for none."""

    means: np.ndarray  # (seeds, rows + 1, metrics); NaN where no run has a value
    counts: np.ndarray  # (seeds, rows + 1, metrics): runs behind each mean


class Runs(NamedTuple):
    """What the runs measured, and where each belongs."""

    values: np.ndarray  # (runs, metrics)
    row: np.ndarray  # (runs,), numbers from 0
    seed: np.ndarray  # (runs,), numbers from 0
    has_moved: np.ndarray  # (runs,): whether the machine changed its speed, or worked for others as well

    def cells(self, values: np.ndarray) -> Cells:
        """The means of values, (runs, columns), in each seed and row."""
        shape = (self.seed.max() + 1, self.row.max() + 2, values.shape[1])
        sums, counts = np.zeros(shape), np.zeros(shape)
        np.add.at(sums, (self.seed, self.row), np.nan_to_num(values))
        np.add.at(counts, (self.seed, self.row), ~np.isnan(values))
        with np.errstate(invalid="ignore"):
            return Cells(sums / counts, counts)


class Changes(NamedTuple):
    """Each row's changes against its baseline; every field is an array of (rows, metrics)."""

    percent: np.ndarray
    half_width: np.ndarray  # half the width of the 95 % confidence interval, in percent
    n: np.ndarray  # seeds that both have
    is_marked: np.ndarray
    floor: np.ndarray  # percent: what reruns of the same would differ by, with 95 % confidence; NaN without reruns
    rerun_deviation: np.ndarray  # standard deviation of the reruns' logarithms, in percent; equal within a group
    reruns: np.ndarray  # its degrees of freedom: runs beyond the first of a seed and row; NaN for none


def runs_of(table: pd.DataFrame, study: Study) -> Runs:
    """The runs of a table with a line for each: its `row` and `seed`, how its machine was, and measured columns."""
    seed, _ = pd.factorize(table["seed"], sort=True)
    return Runs(table[study.measured].to_numpy(float), table["row"].to_numpy(), seed, has_moved(table))


def has_moved(table: pd.DataFrame) -> np.ndarray:
    """For each run of a table whether its machine changed its speed, or worked for others; unknown counts as no."""
    return (table[DRIFT].abs().gt(MOST_DRIFT) | table[list(OTHERS)].sum(axis=1).gt(MOST_DRIFT)).to_numpy()


def how_moved(run: pd.Series) -> str:
    """What `has_moved` found in a run."""
    drift, others = run[DRIFT], run[list(OTHERS)].sum()
    found = [f"speed {drift:+.1f} %"] if abs(drift) > MOST_DRIFT else []
    return ", ".join(found + ([f"others {others:.1f} %"] if others > MOST_DRIFT else []))


def rerun_spread(runs: Runs, group: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """How far runs of one seed and one row lie apart: the pooled standard deviation of their logarithms.

    Pooled over all rows of a group: sqrt(squares around each seed's and row's mean / sum of (runs - 1)). It is no part
    of any interval: the unit of those is the seed.

    Args:
        group: (rows,), the group of each row.

    Returns:
        The deviation and its degrees of freedom, (rows, metrics), equal within a group; without reruns NaN and 0.
    """
    logs = positive_logs(runs.values)
    cells = runs.cells(logs)
    _, group = np.unique(group, return_inverse=True)  # numbers from 0
    squares, freedom = np.zeros((2, group.max() + 1, logs.shape[1]))  # (groups, metrics)
    np.add.at(squares, group[runs.row], np.nan_to_num(logs - cells.means[runs.seed, runs.row]) ** 2)
    np.add.at(freedom, group, np.maximum(cells.counts - 1, 0).sum(axis=0)[:-1])
    squares, freedom = squares[group], freedom[group]
    return np.sqrt(squares / np.where(freedom > 0, freedom, np.nan)), freedom


def find_changes(runs: Runs, baseline: np.ndarray, has_times: np.ndarray, group: np.ndarray, study: Study) -> Changes:
    """Each row's changes against its baseline, over the seeds that both have, and which of them are marked.

    A change is the mean of log(value / baseline's) over seeds, in percent. Its floor is what reruns of the same would
    differ by, with 95 % confidence: t(0.975, f) s sqrt(sum over seeds of (1 / runs + 1 / baseline's runs)) / seeds,
    with the reruns' standard deviation s and its f degrees of freedom.

    Args:
        baseline: (rows,), the number of each row's baseline, -1 for none.
        has_times: (rows,), whether the row's times to a target may be compared with its baseline's.
        group: (rows,), the number of each row's group.
    """
    columns = {column: place for place, column in enumerate(study.measured)}
    cells = runs.cells(runs.values)
    logs = log_ratios(cells.means[:, :-1], cells.means[:, baseline])  # (seeds, rows, metrics)
    logs[:, ~has_times, [[columns[time]] for time in TO_TARGET if time in columns]] = np.nan
    found = estimate(logs)

    deviation, freedom = rerun_spread(runs, group)
    with np.errstate(divide="ignore", invalid="ignore"):
        shares = 1 / cells.counts[:, :-1] + 1 / cells.counts[:, baseline]
        shares = np.where(np.isnan(logs), 0, shares).sum(axis=0)
        floor = t.ppf(0.975, freedom) * deviation * np.sqrt(shares) / found.n

    p = p_values(found)
    smallest = np.log1p([study.smallest_change(column) / 100 for column in columns])
    size = np.abs(found.mean)
    # What is too small still counts among the changes looked at; what rests on a machine that moved does not.
    p[~np.isnan(p) & ((size < smallest) | (size <= floor))] = 1.0
    moved = np.zeros(cells.counts.shape[:2], bool)
    np.logical_or.at(moved, (runs.seed, runs.row), runs.has_moved)
    moved = moved[:, :-1] | moved[:, baseline]  # (seeds, rows)
    p[(moved[:, :, None] & ~np.isnan(logs)).any(axis=0)] = np.nan
    is_marked = np.zeros(p.shape, bool)
    tables = [np.flatnonzero(group == number) for number in np.unique(group)]  # the rows of each
    for family in study.families:
        places = np.array([columns[column] for column in family])
        for rows in tables:
            table = np.ix_(rows, places)
            is_marked[table] = discoveries(p[table])
    return Changes(*in_percent(found), is_marked, 100 * np.expm1(floor), 100 * deviation,
                   np.where(freedom > 0, freedom, np.nan))
