"""Means over seeds, changes paired by seed, and their 95 % confidence intervals.

A sample is an array whose first axis are seeds; a value may be NaN in any seed.
"""

from typing import NamedTuple

import numpy as np
from scipy.stats import false_discovery_control, t

ROUNDING = 1e-12  # relative: a smaller difference comes from the order of summation
FALSE_DISCOVERIES = 0.05  # accepted share of marked changes that are none


class Estimate(NamedTuple):
    """An estimate per quantity; each field has the shape of a sample without its seeds."""

    mean: np.ndarray
    half_width: np.ndarray  # of the 95 % confidence interval; NaN for fewer than two seeds
    n: np.ndarray  # number of seeds with a value


def estimate(sample: np.ndarray) -> Estimate:
    """Mean over seeds and the half-width of its 95 % confidence interval.

    Student's t: half-width = t(0.975, n - 1) s / sqrt(n), with the standard deviation s over n - 1.
    """
    known = ~np.isnan(sample)
    n = known.sum(axis=0)
    with np.errstate(invalid="ignore", divide="ignore"):
        mean = np.nansum(sample, axis=0) / n
        variance = np.nansum((sample - mean) ** 2, axis=0) / (n - 1)
        half_width = t.ppf(0.975, n - 1) * np.sqrt(variance / n)
    span = np.max(sample, axis=0, initial=-np.inf, where=known) - np.min(sample, axis=0, initial=np.inf, where=known)
    same = span <= ROUNDING * np.max(np.abs(sample), axis=0, initial=0, where=known)
    return Estimate(mean, np.where(same & (n > 1), 0.0, half_width), n)


def log_ratios(sample: np.ndarray, reference: np.ndarray) -> np.ndarray:
    """log(sample / reference) for each seed; NaN where either has no value or one that is not positive."""
    ratios = positive_logs(sample) - positive_logs(reference)
    return np.where(np.abs(ratios) <= ROUNDING, 0.0, ratios)


def positive_logs(values: np.ndarray) -> np.ndarray:
    """Natural logarithms; NaN for what is not positive."""
    return np.log(np.where(values > 0, values, np.nan))


def in_percent(found: Estimate) -> Estimate:
    """An estimate of log-ratios as a change in percent: exp(mean) - 1, and half the width of its interval.

    The interval from exp(mean - h) - 1 to exp(mean + h) - 1 reaches further up than down, by a fifth at h = 0.2.
    """
    with np.errstate(over="ignore"):  # an interval of hundreds of powers of ten is as good as an infinite one
        return Estimate(100 * np.expm1(found.mean), 100 * np.exp(found.mean) * np.sinh(found.half_width), found.n)


def p_values(found: Estimate) -> np.ndarray:
    """Two-sided p-values of Student's t-test that each mean is zero; NaN without an interval."""
    with np.errstate(invalid="ignore", divide="ignore"):
        statistic = t.ppf(0.975, found.n - 1) * np.abs(found.mean) / found.half_width
    return np.where((found.half_width == 0) & (found.mean == 0), 1.0, 2 * t.sf(statistic, found.n - 1))


def discoveries(p: np.ndarray) -> np.ndarray:
    """Which of these p-values stand out, by Benjamini and Hochberg (1995) over all that are not NaN.

    Of those that stand out at most 5 % are chance, on average. Where nothing differs, anything at all stands out in one
    table in twenty.
    """
    found, known = np.zeros(p.shape, bool), ~np.isnan(p)
    if known.any():
        found[known] = false_discovery_control(p[known]) <= FALSE_DISCOVERIES
    return found


def paired_ratio(sample: np.ndarray, reference: np.ndarray) -> Estimate:
    """Mean over the common seeds of the ratio to a reference, with its interval; NaN if the reference is <= 0."""
    return estimate(sample / np.where(reference > 0, reference, np.nan))
