"""Means, intervals and paired changes against numbers computed by hand, and the digits that they are shown with."""

from math import exp, inf, log, nan, sinh, sqrt

import numpy as np
import pytest
from scipy.stats import ttest_ind, ttest_rel

from comparison.digits import change_text, mean_text
from comparison.statistics import discoveries, estimate, in_percent, log_ratios, p_values, paired_ratio
from tests.shared.made_up_runs import rows_of, write_run, write_seeds

RATE = "throughput_samples_per_s"
CHANGE, CHANGE_CI = f"{RATE}_change_pct", f"{RATE}_change_ci95"
T1, T2 = 12.706205, 4.302653  # t(0.975, 1) and t(0.975, 2)


def sample(values):
    return np.array(values, float)[:, None]  # (seeds, 1)


def numbers(found):
    return tuple(part[0] for part in found)


def change(values, base):
    """The change in percent with its interval, and its p-value."""
    found = estimate(log_ratios(sample(values), sample(base)))
    return numbers(in_percent(found)), p_values(found)[0]


@pytest.mark.parametrize(
    ("values", "expected"),
    [
        ([1, 2, 3, 4, 5], (3, 2.776445 * 2.5**0.5 / 5**0.5, 5)),  # t(0.975, 4) s / sqrt(n)
        ([98, 102], (100, T1 * 2, 2)),
        ([98, nan, 102], (100, T1 * 2, 2)),
        ([98], (98, nan, 1)),
        ([98, nan], (98, nan, 1)),
        ([nan], (nan, nan, 0)),
        ([7, 7, 7], (7, 0, 3)),
        ([0.1 + 0.2, 0.3, 0.3], (0.3, 0, 3)),  # unequal by the order of a summation
        ([0, 0], (0, 0, 2)),
        ([-1, -3], (-2, T1, 2)),
    ],
)
def test_mean_and_interval(values, expected):
    assert numbers(estimate(sample(values))) == pytest.approx(expected, rel=1e-6, nan_ok=True)


def test_a_paired_change_shows_what_the_spread_between_seeds_hides():
    base, other = [100, 200, 300], [110, 212, 311]
    logs = [log(1.1), log(1.06), log(311 / 300)]
    mean, spread = sum(logs) / 3, np.std(logs, ddof=1)
    found, p = change(other, base)
    assert found == pytest.approx((100 * (exp(mean) - 1), 100 * exp(mean) * sinh(T2 * spread / 3**0.5), 3), rel=1e-6)
    assert p == pytest.approx(ttest_rel(np.log(other), np.log(base))[1], rel=1e-6)
    assert p < 0.1 < ttest_ind(np.log(other), np.log(base))[1]


def test_a_ratio_is_as_certain_on_a_machine_whose_speed_varies():
    """Half the speed of a baseline: 10 % of noise that both share, 2 % that each has alone, three seeds.

    Marked is what stands out as one of ten changes, the others of which are none.
    """
    random = np.random.default_rng(0)
    shared = 100 * np.exp(0.1 * random.standard_normal((3, 20_000)))
    base, other = (level * shared * np.exp(0.02 * random.standard_normal(shared.shape)) for level in (1, 0.5))
    found = estimate(log_ratios(other, base))
    assert np.median(in_percent(found), axis=1) == pytest.approx([-50, 2.9, 3], abs=0.1)
    assert (p_values(found) < 0.05 / 10).mean() > 0.995
    difference = estimate(100 * (other - base) / base.mean(axis=0))  # what log-ratios replaced
    assert np.median(difference.half_width) == pytest.approx(11.3, abs=0.1)
    assert (p_values(difference) < 0.05 / 10).mean() == pytest.approx(0.72, abs=0.02)


@pytest.mark.parametrize(
    ("values", "base", "expected", "p"),
    [
        ([nan, 212, nan], [nan, 200, 7], (6, nan, 1), nan),  # one common seed: no interval
        ([110, nan], [nan, 200], (nan, nan, 0), nan),  # none
        ([110, nan, 90], [100, 100, nan], (10, nan, 1), nan),
        ([110, 110], [100, 100], (10, 0, 2), 0),
        ([100, 100], [100, 100], (0, 0, 2), 1),
        ([0.1 + 0.2, 0.3], [0.3, 0.3], (0, 0, 2), 1),
        ([1, 2], [0, 0], (nan, nan, 0), nan),  # there are no percent of nothing
        ([1, 2], [-1, -3], (nan, nan, 0), nan),
        ([-1, 0], [1, 3], (nan, nan, 0), nan),
        ([1e30, 1], [1e-30, 1], (100 * (1e30 - 1), inf, 2), ttest_rel([60, 0], [0, 0])[1]),
    ],
)
def test_careful_cases_of_a_change(values, base, expected, p):
    assert change(values, base) == (pytest.approx(expected, rel=1e-6, nan_ok=True), pytest.approx(p, nan_ok=True))


def test_of_many_changes_the_smallest_p_value_has_to_be_smaller():
    """Benjamini and Hochberg: the k-th smallest of m stands out if it or a later one is at most 0.05 k / m."""
    assert discoveries(np.array([0.04])).all()
    assert not discoveries(np.array([0.04, 0.5])).any()
    assert discoveries(np.array([[0.04, 0.02], [nan, 0.9]])).tolist() == [[False, False], [False, False]]
    assert discoveries(np.array([0.04, 0.02, 0.05])).all(), "0.05 x 3 / 3"
    assert discoveries(np.array([nan, 0.9, 0.01])).tolist() == [False, False, True], "0.05 x 1 / 2"
    assert not discoveries(np.array([nan])).any()


def test_a_ratio_is_paired_as_well():
    found = paired_ratio(sample([150, 340, nan]), sample([100, 200, 300]))
    assert numbers(found) == pytest.approx((1.6, T1 * 0.1, 2), rel=1e-6)
    assert np.isnan(paired_ratio(sample([1, 2]), sample([0, 0])).mean[0])


def test_seeds_of_a_row_and_of_its_baseline(tmp_path):
    write_seeds(tmp_path, "one", {0: 50, 1: 40})
    write_seeds(tmp_path, "two", {0: 100, 1: 80, 2: 60}, devices=2)
    write_run(tmp_path / "again", devices=2, throughput=110, seed=0)  # counts with 100 as 105
    write_seeds(tmp_path, "pipe", {1: 72, 2: 51, 3: 1}, "pipeline", 2)
    rows = rows_of(tmp_path)
    two, pipe = (rows.loc[name].to_dict() for name in ("DDP x 2", "pipeline 2 stages"))
    assert (two["runs"], two[f"{RATE}_n"]) == (4, 3)
    assert two[RATE] == pytest.approx((105 + 80 + 60) / 3)
    assert two["speedup"] == pytest.approx((2.1 + 2) / 2)
    assert two["speedup_ci95"] == pytest.approx(T1 * 0.05, rel=1e-6)
    middle = sqrt(0.9 * 0.85)  # of the ratios 72 / 80 and 51 / 60
    assert [pipe[CHANGE], pipe[f"{RATE}_change_n"]] == pytest.approx([100 * (middle - 1), 2])
    assert pipe[CHANGE_CI] == pytest.approx(100 * middle * sinh(T1 * log(0.9 / 0.85) / 2), rel=1e-6)
    assert not pipe[f"{RATE}_differs"]
    one = rows.loc["1 device"].to_dict()
    assert one["speedup"] == 1 and np.isnan(one["speedup_ci95"])
    assert [pipe["speedup"], pipe["speedup_n"]] == pytest.approx([1.8, 1])


def test_a_baseline_with_other_seeds_gives_no_change(tmp_path):
    write_seeds(tmp_path, "two", {0: 100, 1: 80}, devices=2)
    write_seeds(tmp_path, "pipe", {2: 72, 3: 54}, "pipeline", 2)
    pipe = rows_of(tmp_path).loc["pipeline 2 stages"]
    assert pipe["baseline"] == "DDP x 2"
    assert np.isnan(pipe[CHANGE])
    assert pipe[f"{RATE}_ci95"] == pytest.approx(T1 * 9, rel=1e-6)


@pytest.mark.parametrize(
    ("value", "half_width", "text"),
    [
        # a single run: three significant digits
        (0, nan, "0"),
        (0.82071, nan, "0.821"),
        (99.97, nan, "100"),
        (10912.6, nan, "10900"),
        (-1.64349, nan, "-1.64"),
        # the first significant digit of the half-width, the second as well after a 1
        (178.53, 2.13, "179 ± 2"),
        (178.53, 1.43, "178.5 ± 1.4"),
        (178.53, 26, "180 ± 30"),
        (5, 0.0996, "5.00 ± 0.10"),
        (0.4, 20, "0 ± 20"),
        (-0.001, 0.5, "0.0 ± 0.5"),
        # never more than four
        (12345.6, 3, "12350 ± 10"),
        (0.561234, 1e-7, "0.5612 ± 0.0001"),
        (9.99996, 1e-7, "10.00 ± 0.01"),
        (0.3, 0, "0.3000 ± 0"),
        (0, 0, "0 ± 0"),
    ],
)
def test_digits_of_a_mean(value, half_width, text):
    assert mean_text(value, half_width) == text


@pytest.mark.parametrize(
    ("change", "half_width", "text"),
    [
        (-18.04, 1.23, "(-18.0 ± 1.2%*)"),
        (20.4, 180, "(+20 ± 180%)"),
        (0.00212, 0.0003, "(+0.0021 ± 0.0003%*)"),
        (0, 0, "(+0 ± 0%)"),
        (-18.04, nan, "(-18.0%)"),
        (-0.04, nan, "(+0.0%)"),
        (123.4, nan, "(+123%)"),
        (207e6, nan, "(> +1000%)"),
        (4200, 300, "(> +1000%*)"),
        (-18.04, 2e4, "(-18 ± > 1000%)"),
        (0.002, inf, "(+0 ± > 1000%)"),
    ],
)
def test_digits_of_a_change(change, half_width, text):
    assert change_text(change, half_width, abs(change) > (inf if np.isnan(half_width) else half_width)) == text
