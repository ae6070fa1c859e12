"""Means over seeds, differences paired by seed, and their 95 % confidence intervals.

A sample is a table with a row per seed and a column per metric; a value may be NaN in any seed.
"""

from typing import NamedTuple

import pandas as pd
from scipy.stats import t

ROUNDING = 1e-12  # relative: a smaller difference comes from the order of summation


class Estimate(NamedTuple):
    """An estimate per metric; each field is a Series over the metrics."""

    mean: pd.Series
    half_width: pd.Series  # of the 95 % confidence interval; NaN for fewer than two seeds
    n: pd.Series  # number of seeds with a value


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

    The interval is that of the mean difference; the baseline's mean counts as known exactly. NaN if no seed is
    common, or if the baseline's mean is not positive.
    """
    difference = sample - baseline  # aligned by seed: NaN where either has none
    base = baseline.reindex(difference.index).where(difference.notna())
    difference = difference.mask(difference.abs() <= ROUNDING * base.abs(), 0.0)
    mean, half_width, n = estimate(difference)
    scale = 100 / base.mean().where(lambda mean: mean > 0)
    return Estimate(mean * scale, half_width * scale, n)


def paired_ratio(sample: pd.DataFrame, reference: pd.DataFrame) -> Estimate:
    """Mean over the common seeds of the ratio to a reference, with its interval; NaN if the reference is <= 0."""
    return estimate(sample / reference.where(reference > 0))


def excludes_zero(estimate: Estimate) -> pd.Series:
    """Whether the interval excludes zero; False if there is no interval."""
    return estimate.mean.abs() > estimate.half_width
