"""Means over seeds, differences paired by seed, and their 95 % confidence intervals.

A sample is a table with a row per seed and a column per metric; a value may be NaN in any seed.
"""

from typing import NamedTuple

import pandas as pd
from scipy.stats import t

ROUNDING = 1e-12  # relative: less than this apart, two numbers differ by the order of their summation


class Estimate(NamedTuple):
    """Series over the metrics."""

    mean: pd.Series
    half_width: pd.Series  # of the 95 % confidence interval; NaN for fewer than two seeds
    n: pd.Series  # seeds that have a value


def estimate(sample: pd.DataFrame) -> Estimate:
    """Mean over seeds and the half-width of its 95 % confidence interval.

    Student's t: half-width = t(0.975, n - 1) s / sqrt(n), with the standard deviation s over n - 1.
    """
    n = sample.count()
    half_width = sample.sem() * t.ppf(0.975, n - 1)
    same = sample.max() - sample.min() <= ROUNDING * sample.abs().max()
    return Estimate(sample.mean(), half_width.mask(same & (n > 1), 0.0), n)


def paired_change(sample: pd.DataFrame, baseline: pd.DataFrame) -> Estimate:
    """Mean difference to the baseline in percent of the baseline's mean, over the seeds that both have.

    The interval is that of the mean difference; the baseline's mean, to which it is put in relation, counts as
    known. NaN where no seed is common or where the baseline's mean is not positive: there are no percent of it.
    """
    difference = sample - baseline  # aligned by seed: NaN where either has none
    base = baseline.reindex(difference.index).where(difference.notna())
    difference = difference.mask(difference.abs() <= ROUNDING * base.abs(), 0.0)
    mean, half_width, n = estimate(difference)
    scale = 100 / base.mean().where(lambda mean: mean > 0)
    return Estimate(mean * scale, half_width * scale, n)


def paired_ratio(sample: pd.DataFrame, reference: pd.DataFrame) -> Estimate:
    """Mean over the common seeds of the ratio to a reference, with its interval; NaN where that is not positive."""
    return estimate(sample / reference.where(reference > 0))


def excludes_zero(estimate: Estimate) -> pd.Series:
    """Whether the interval leaves zero out; False where there is no interval."""
    return estimate.mean.abs() > estimate.half_width
