"""Intervals over sampled steps in the tables of plots.py, and the noise scale over training."""

import json
from typing import Any

import numpy as np
import pandas as pd
import pytest

import plots
from comparison.autotuning import find_tuners
from comparison.digits import interval_text
from comparison.noise_figure import noise_chart, windows
from comparison.report import charts, write_comparison
from comparison.rows import compare
from comparison.runs import find_runs
from comparison.tables import cell
from tests.shared.made_up_runs import rows_of, write_run, write_seeds

NAN = float("nan")
KNOWN: dict[str, Any] = {
    "noise_scale_samples": 90.6, "noise_scale_samples_low": 56.8, "noise_scale_samples_high": 224.2,
    "statistical_efficiency": 0.8696, "statistical_efficiency_low": 0.8198, "statistical_efficiency_high": 0.9375,
    "goodput_samples_per_s": 293.3, "goodput_samples_per_s_low": 276.6, "goodput_samples_per_s_high": 316.3,
    "sampled_steps": 73, "effective_sampled_steps": 8.3, "noise_scale_negative_pct": 32.9}
INTERVALS = [name for name in KNOWN if name.endswith(("_low", "_high"))]


def known(**changed: Any) -> dict[str, Any]:
    return KNOWN | changed


@pytest.mark.parametrize("value, low, high, text", [
    (0.8696, 0.8198, 0.9375, "0.87 (0.82 to 0.94)"), (0.8696, 0.8690, 0.8703, "0.8696 (0.8690 to 0.8703)"),
    (90.6, 56.8, 224.2, "90 (60 to 220)"), (90.6, 56.8, NAN, "90 (60 to ∞)"), (2.0, 2.0, 2.0, "2.000 (2.000 to 2.000)"),
    (0.5, 0.0, 1.0, "0.5 (0.0 to 1.0)"), (25.0, 25.0, NAN, "25.00 (25.00 to ∞)")])
def test_digits_follow_the_interval(value, low, high, text):
    assert interval_text(value, low, high) == text


def test_a_single_seed_shows_its_interval_over_sampled_steps(tmp_path):
    write_run(tmp_path / "run", **KNOWN)
    [(_, row)] = rows_of(tmp_path).iterrows()
    assert cell(row, "statistical_efficiency") == "0.87 (0.82 to 0.94)"
    assert cell(row, "goodput_samples_per_s") == "290 (280 to 320)"
    assert cell(row, "noise_scale_negative_pct") == "32.9" and cell(row, "throughput_samples_per_s") == "50.0"
    compared = rows_of(tmp_path)
    assert compared["goodput_samples_per_s_high"].tolist() == [316.3]


def test_a_noise_scale_without_an_upper_end(tmp_path):
    write_run(tmp_path / "run", **known(noise_scale_samples_high=None, statistical_efficiency_high=1.0))
    [(_, row)] = rows_of(tmp_path).iterrows()
    assert cell(row, "noise_scale_samples") == "90 (60 to ∞)"
    assert cell(row, "statistical_efficiency") == "0.87 (0.82 to 1.00)"


def test_several_seeds_show_their_interval_over_seeds(tmp_path):
    for seed, efficiency in enumerate((0.8, 0.88)):
        write_run(tmp_path / f"run{seed}", seed=seed, **known(statistical_efficiency=efficiency))
    [(_, row)] = rows_of(tmp_path).iterrows()
    assert cell(row, "statistical_efficiency") == "0.8 ± 0.5"
    assert pd.isna(row.to_dict()["statistical_efficiency_low"])


def test_runs_repeated_with_one_seed_are_still_a_single_seed(tmp_path):
    for name, low in (("a", 0.80), ("b", 0.82)):
        write_run(tmp_path / name, **known(statistical_efficiency_low=low))
    [(_, row)] = rows_of(tmp_path).iterrows()
    assert row["statistical_efficiency_low"] == pytest.approx(0.81)


def test_what_is_written_explains_intervals_and_too_few_steps(tmp_path):
    few = known(sampled_steps=19, **dict.fromkeys(INTERVALS))
    write_run(tmp_path / "many", **KNOWN)
    write_run(tmp_path / "few", devices=2, **few)
    rows, members = compare(find_runs(tmp_path, plots.STUDY), plots.STUDY)
    text, _ = write_comparison(rows, members, tmp_path, plots.STUDY, find_tuners(tmp_path, plots.REFERENCE), [])
    assert "0.87 (0.82 to 0.94)" in text and "the 95 % interval over\n  the run's sampled steps" in text
    assert "0.870‡" in text and "293‡" in text and "90.6‡" in text and "50.0‡" not in text
    assert text.count("- ‡ : rests on too few steps.") == 1
    assert "sampled steps of negative estimate %" in text
    table = pd.read_csv(tmp_path / "comparison.csv").set_index("devices")
    assert table.loc[1, INTERVALS].to_dict() == {name: KNOWN[name] for name in INTERVALS}
    assert table.loc[[2], INTERVALS].count().sum() == 0


def test_runs_older_than_the_intervals_are_shown_without_interval_and_mark(tmp_path):
    write_run(tmp_path / "run", statistical_efficiency=0.8696)
    [(_, row)] = rows_of(tmp_path).iterrows()
    assert cell(row, "statistical_efficiency") == "0.870"


def write_norms(folder, g_squared, trace, micro_batch: float = 8) -> None:
    """steps.csv of a run with a batch of 32 of which every second step was sampled."""
    small, large = (np.asarray(g_squared) + trace / size for size in (micro_batch, 32))
    steps = 2 * np.arange(1, len(small) + 1)
    table = pd.DataFrame({"step": steps, "micro_batch_squared_norm": small, "batch_squared_norm": large})
    table = table.set_index("step").reindex(range(1, steps[-1] + 1)).reset_index()
    table.assign(samples=32 * table["step"]).to_csv(folder / "steps.csv", index=False)


def test_windows_show_that_the_noise_scale_grows(tmp_path):
    folder = write_run(tmp_path / "run", micro_batch_size=8)
    rng = np.random.default_rng(0)
    means = np.repeat([4.0, 2.0, 0.1], 22)
    write_norms(folder, means + rng.normal(0, 0.5, 66), trace=100.0)
    [run] = find_runs(tmp_path, plots.STUDY)
    table = windows(run)
    assert table["value"].tolist() == pytest.approx([25, 50, 1000], rel=0.5)
    assert ((table["low"] < table["value"]) & (table["value"] < table["high"])).all()
    assert np.isfinite(table["high"][:2]).all()
    assert table["samples"].tolist() == [64 * 11.5, 64 * 33.5, 64 * 55.5]
    rows, members = compare([run], plots.STUDY)
    assert "noise_scale_over_samples" in charts(rows, members, "heading", plots.STUDY)


def test_a_micro_batch_of_data_parallel_is_that_of_all_its_gpus(tmp_path):
    folder = write_run(tmp_path / "run", "data_parallel", 2, micro_batch_size=8)
    devices = [{"device": "cuda:0"}, {"device": "cuda:1"}]
    (folder / "run.json").write_text(json.dumps({"status": "finished", "ranks": [{"devices": devices}]}))
    write_norms(folder, [2.0, 2.2] * 20, trace=100.0, micro_batch=16)
    [run] = find_runs(tmp_path, plots.STUDY)
    assert windows(run)["value"].tolist() == pytest.approx([100 / 2.1] * 2)


def test_few_or_unusable_steps_make_no_windows_and_no_figure(tmp_path):
    write_norms(write_run(tmp_path / "few", seed=0), [2.0] * 39, trace=100.0)
    write_norms(write_run(tmp_path / "negative", seed=1), [-2.0] * 80, trace=10.0)
    write_norms(write_run(tmp_path / "no_batch", seed=2, micro_batch_size=None), [2.0] * 80, trace=100.0)
    write_run(tmp_path / "no_norms", seed=3, curves=True)
    write_run(tmp_path / "no_steps", seed=4)
    runs = find_runs(tmp_path, plots.STUDY)
    assert [len(windows(run)) for run in runs] == [0] * 5
    rows, members = compare(runs, plots.STUDY)
    assert noise_chart(rows, members, "heading", plots.STUDY) is None


def test_windows_without_an_upper_end_are_drawn(tmp_path):
    write_norms(write_run(tmp_path / "run", micro_batch_size=8), [9.0, -8.0] * 30, trace=100.0)
    write_seeds(tmp_path, "other", [50, 51], devices=2, micro_batch_size=8)
    runs = find_runs(tmp_path, plots.STUDY)
    rows, members = compare(runs, plots.STUDY)
    figure = noise_chart(rows, members, "heading", plots.STUDY)
    assert figure is not None
    figure.savefig(tmp_path / "figure.png")
    low, high = figure.axes[0].get_ylim()
    assert 0 < low < 200 < high < 10_000
