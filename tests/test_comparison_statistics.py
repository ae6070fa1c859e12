"""Means, intervals and paired changes against numbers computed by hand, and the digits that they are shown with."""

from math import inf, nan

import numpy as np
import pandas as pd
import pytest
from scipy.stats import ttest_ind

from comparison.digits import change_text, mean_text
from comparison.statistics import estimate, excludes_zero, paired_change, paired_ratio
from tests.shared.made_up_runs import rows_of, write_run, write_seeds

RATE = "throughput_samples_per_s"
CHANGE, CHANGE_CI = f"{RATE}_change_pct", f"{RATE}_change_ci95"


def sample(values):
    return pd.DataFrame({"x": pd.Series(values, dtype=float)})


def numbers(found):
    return tuple(part["x"] for part in found)


@pytest.mark.parametrize(
    ("values", "expected"),
    [
        ([1, 2, 3, 4, 5], (3, 2.776445 * 2.5**0.5 / 5**0.5, 5)),  # t(0.975, 4) s / sqrt(n)
        ([98, 102], (100, 12.706205 * 2, 2)),
        ([98, nan, 102], (100, 12.706205 * 2, 2)),
        ([98], (98, nan, 1)),
        ([98, nan], (98, nan, 1)),
        ([], (nan, nan, 0)),
        ([7, 7, 7], (7, 0, 3)),
        ([0.1 + 0.2, 0.3, 0.3], (0.3, 0, 3)),  # unequal by the order of a summation
        ([0, 0], (0, 0, 2)),
        ([-1, -3], (-2, 12.706205, 2)),
    ],
)
def test_mean_and_interval(values, expected):
    assert numbers(estimate(sample(values))) == pytest.approx(expected, rel=1e-6, nan_ok=True)


def test_a_paired_difference_shows_what_the_spread_between_seeds_hides():
    base, other = sample([100, 200, 300]), sample([110, 212, 311])
    change = paired_change(other, base)
    # differences 10, 12, 11: 11 ± 4.302653 x 1 / sqrt(3), in percent of 200
    assert numbers(change) == pytest.approx((5.5, 4.302653 / 3**0.5 / 2, 3), rel=1e-6)
    assert excludes_zero(change)["x"]
    unpaired = ttest_ind(other["x"], base["x"]).confidence_interval()
    assert unpaired.low < 0 < unpaired.high


@pytest.mark.parametrize(
    ("values", "base", "expected", "differs"),
    [
        ({0: 110, 1: 212}, {1: 200, 2: 7}, (6, nan, 1), False),  # one common seed: no interval, no mark
        ({0: 110}, {1: 200}, (nan, nan, 0), False),  # none
        ({0: 110, 1: nan, 2: 90}, {0: 100, 1: 100, 2: nan}, (10, nan, 1), False),
        ({0: 110, 1: 120, 2: nan, 3: 330}, {0: 100, 1: nan, 2: 5, 3: 300}, (10, 12.706205 * 5, 2), False),
        ({0: 110, 1: 110}, {0: 100, 1: 100}, (10, 0, 2), True),
        ({0: 100, 1: 100}, {0: 100, 1: 100}, (0, 0, 2), False),
        ({0: 0.1 + 0.2, 1: 0.3}, {0: 0.3, 1: 0.3}, (0, 0, 2), False),
        ({0: 1, 1: 2}, {0: 0, 1: 0}, (nan, nan, 2), False),  # there are no percent of nothing
        ({0: 1, 1: 2}, {0: -1, 1: -3}, (nan, nan, 2), False),
        ({0: -1, 1: -2}, {0: 1, 1: 3}, (-175, 12.706205 * 75, 2), False),
    ],
)
def test_careful_cases_of_a_change(values, base, expected, differs):
    change = paired_change(sample(values), sample(base))
    assert numbers(change) == pytest.approx(expected, rel=1e-6, nan_ok=True)
    assert excludes_zero(change)["x"] == differs


def test_a_ratio_is_paired_as_well():
    assert numbers(paired_ratio(sample([150, 340]), sample([100, 200, 300]))) == pytest.approx(
        (1.6, 12.706205 * 0.1, 2), rel=1e-6
    )
    assert np.isnan(paired_ratio(sample([1, 2]), sample([0, 0])).mean["x"])


def test_seeds_of_a_row_and_of_its_baseline(tmp_path):
    write_seeds(tmp_path, "one", {0: 50, 1: 40})
    write_seeds(tmp_path, "two", {0: 100, 1: 80, 2: 60}, devices=2)
    write_run(tmp_path / "again", devices=2, throughput=110, seed=0)  # counts with 100 as 105
    write_seeds(tmp_path, "pipe", {1: 72, 2: 54, 3: 1}, "pipeline", 2)
    rows = rows_of(tmp_path)
    two, pipe = rows.loc["DDP x 2"], rows.loc["pipeline 2 stages"]
    assert (two["runs"], two[f"{RATE}_n"]) == (4, 3)
    assert two[RATE] == pytest.approx((105 + 80 + 60) / 3)
    assert two["speedup"] == pytest.approx((2.1 + 2) / 2)
    assert two["speedup_ci95"] == pytest.approx(12.706205 * 0.05, rel=1e-6)
    assert pipe[[CHANGE, f"{RATE}_change_n"]].to_list() == pytest.approx([-10, 2])  # -8 and -6 of 70
    assert pipe[CHANGE_CI] == pytest.approx(12.706205 / 70 * 100, rel=1e-6)
    assert not pipe[f"{RATE}_differs"]
    assert rows.loc["1 device", "speedup"] == 1
    assert np.isnan(rows.loc["1 device", "speedup_ci95"])
    assert pipe[["speedup", "speedup_n"]].to_list() == pytest.approx([1.8, 1])


def test_a_baseline_with_other_seeds_gives_no_change(tmp_path):
    write_seeds(tmp_path, "two", {0: 100, 1: 80}, devices=2)
    write_seeds(tmp_path, "pipe", {2: 72, 3: 54}, "pipeline", 2)
    pipe = rows_of(tmp_path).loc["pipeline 2 stages"]
    assert pipe["baseline"] == "DDP x 2"
    assert np.isnan(pipe[CHANGE])
    assert pipe[f"{RATE}_ci95"] == pytest.approx(12.706205 * 9, rel=1e-6)


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
    ],
)
def test_digits_of_a_change(change, half_width, text):
    assert change_text(change, half_width, abs(change) > (inf if np.isnan(half_width) else half_width)) == text
