"""Which changes are marked: beyond chance and reruns' noise, large enough, on machines that kept their speed."""

import random
from math import exp, log, sqrt

import numpy as np
import pandas as pd
import pytest

import plots
from benchmarks.false_alarms import compare_labels, labels, read, relabel
from comparison.autotuning import find_tuners
from comparison.changes import Runs, find_changes
from comparison.report import noise, write_comparison
from comparison.rows import compare
from comparison.runs import Run, find_runs
from tests.shared.made_up_runs import rows_of, write_run, write_seeds

STUDY = plots.STUDY
RATE = "throughput_samples_per_s"
MARKED, FLOOR, SPREAD = f"{RATE}_differs", f"{RATE}_change_floor_pct", f"{RATE}_rerun_sd_pct"
T3 = 3.182446  # t(0.975, 3)
CLEAR = [1, 1.001, 0.999]  # by which a clear change varies over seeds


def times(factor):
    return [100 * factor * part for part in CLEAR]


def row_of(root, name="ZeRO-2 x 2") -> dict:
    return rows_of(root).loc[name].to_dict()


@pytest.mark.parametrize("column, change, marked", [
    ("throughput", 1.02, True), ("throughput", 1.008, False), ("validation_loss", 1.002, True),
    ("validation_loss", 1.0005, False), ("validation_loss", 1 + 1e-6, False)])
def test_a_change_that_matters_to_nobody_is_not_marked(column, change, marked, tmp_path):
    """1 %, or 0.1 % of a loss: with equal values in all seeds any other change would be marked."""
    for seed in range(3):
        for name, strategy, factor in (("a", "ddp", 1), ("b", "zero2", change)):
            rate, loss = (2.0 * factor if column == name else 2.0 for name in ("throughput", "validation_loss"))
            write_run(tmp_path / f"{name}{seed}", strategy, 2, rate, seed=seed, validation_loss=loss)
    assert row_of(tmp_path)[f"{RATE if column == 'throughput' else column}_differs"] == marked


def test_of_many_changes_one_is_found_by_chance(tmp_path):
    """The same numbers that are marked by themselves are not among others that show nothing."""
    write_seeds(tmp_path, "ddp", [100, 100, 100], devices=2, runtime_s="1")
    write_seeds(tmp_path, "zero1", [108, 110, 106], "zero1", 2, runtime_s="1")
    assert rows_of(tmp_path).loc["ZeRO-1 x 2", MARKED]
    for number, strategy in enumerate(("zero0", "zero2", "zero3", "fsdp")):
        write_seeds(tmp_path, strategy, [90, 100 + number, 110], strategy, 2, runtime_s="1")
    rows = rows_of(tmp_path)
    assert not rows[MARKED].any()
    zero = row_of(tmp_path, "ZeRO-1 x 2")
    assert zero[f"{RATE}_change_ci95"] < zero[f"{RATE}_change_pct"], "its interval excludes zero all the same"


def test_each_metric_counts_in_one_table():
    columns = [column for family in STUDY.families for column in family]
    assert sorted(columns) == sorted(STUDY.measured)
    assert "gpu_utilization_pct" in STUDY.families[0] and RATE in STUDY.families[0]


# ---------------------------------------------------------------------- reruns

def with_reruns(root, spread, other):
    """DDP twice for each of three seeds, `spread` apart in logarithms, and ZeRO-2 once."""
    for seed, part in enumerate(CLEAR):
        for name, sign in (("a", 1), ("b", -1)):
            write_run(root / f"{name}{seed}", devices=2, throughput=100 * part * exp(sign * spread / 2), seed=seed)
    write_seeds(root, "zero", times(other), "zero2", 2)


def test_what_reruns_differ_by_is_the_least_that_is_marked(tmp_path):
    spread = 0.02
    for name, other in (("within", 1.0315), ("beyond", 1.033)):
        with_reruns(tmp_path / name, spread, other)
    rows = rows_of(tmp_path / "within")
    deviation = spread / sqrt(2)
    assert rows[SPREAD].to_list() == pytest.approx([100 * deviation] * 2), "of the whole table, not of DDP's row"
    assert rows[f"{RATE}_rerun_n"].to_list() == [3, 3]
    floor = T3 * deviation * sqrt(3 * (1 + 1 / 2)) / 3  # three seeds: one run against the mean of two
    assert rows.loc["ZeRO-2 x 2", FLOOR] == pytest.approx(100 * (exp(floor) - 1), rel=1e-5)
    assert 1.0315 < exp(floor) < 1.033
    assert not rows.loc["ZeRO-2 x 2", MARKED]
    assert rows_of(tmp_path / "beyond").loc["ZeRO-2 x 2", MARKED]
    assert rows.loc["DDP x 2", f"{RATE}_n"] == 3, "seeds are the unit of an interval"
    rows, members = compare(find_runs(tmp_path / "within", STUDY), STUDY)
    text, _ = write_comparison(rows, members, tmp_path / "out", STUDY, find_tuners(tmp_path), [])
    assert ("\n\nReruns of one seed vary by 1.4 % (standard deviation of throughput, 3 reruns); changes of throughput "
            "within 3.2 % are not marked.\n\n| setting ") in text
    assert text.count("Reruns of one seed") == 1
    table = pd.read_csv(tmp_path / "out" / "comparison.csv").set_index("setting")
    assert [column for column in map(str, table) if "rerun_" in column and "validation" in column] == [], "had no value"
    assert table.loc["ZeRO-2 x 2", FLOOR] == pytest.approx(100 * (exp(floor) - 1), rel=1e-5)


def test_reruns_of_unequal_number_are_pooled(tmp_path):
    write_seeds(tmp_path, "one", {0: 100, 1: 100}, devices=2)
    for number, throughput in enumerate((100 * exp(0.03), 100 * exp(-0.03))):
        write_run(tmp_path / f"again{number}", devices=2, throughput=throughput, seed=0)
    write_run(tmp_path / "zero", "zero2", 2, 50, seed=1)
    write_run(tmp_path / "zero_again", "zero2", 2, 50 * exp(0.01), seed=1)
    zero = row_of(tmp_path)
    assert zero[SPREAD] == pytest.approx(100 * sqrt((2 * 0.03**2 + 2 * 0.005**2) / 3))
    assert zero[f"{RATE}_rerun_n"] == 3
    assert zero[FLOOR] == pytest.approx(100 * (exp(T3 * zero[SPREAD] / 100 * sqrt(1 / 2 + 1 / 1)) - 1), rel=1e-6)


def test_reruns_alone_make_no_interval(tmp_path):
    for number in range(4):
        write_run(tmp_path / f"a{number}", devices=2, throughput=100 + number)
        write_run(tmp_path / f"b{number}", "zero2", 2, throughput=50 + number)
    zero = row_of(tmp_path)
    assert (zero["runs"], zero[f"{RATE}_n"], zero[MARKED]) == (4, 1, False)
    assert np.isnan([zero[f"{RATE}_ci95"], zero[f"{RATE}_change_ci95"]]).all()
    assert zero[f"{RATE}_change_pct"] == pytest.approx(100 * (51.5 / 101.5 - 1))
    assert zero[SPREAD] > 0


def test_reruns_of_what_is_compared_with_nothing(tmp_path):
    write_run(tmp_path / "a", throughput=100)
    write_run(tmp_path / "b", throughput=100 * exp(0.02))
    assert noise(rows_of(tmp_path)) == ["Reruns of one seed vary by 1.4 % (standard deviation of throughput, 1 rerun)."]


def test_without_reruns_nothing_is_said_of_them(tmp_path):
    write_seeds(tmp_path, "ddp", times(1), devices=2)
    write_seeds(tmp_path, "zero", times(1.1), "zero2", 2)
    rows = rows_of(tmp_path)
    assert noise(rows) == [] and rows.loc["ZeRO-2 x 2", MARKED]
    assert not [column for column in map(str, rows) if "rerun" in column or "floor" in column]


# ---------------------------------------------------------------------- machines that move

@pytest.mark.parametrize("strategy, seed, drift, load, steal, said, marked", [
    ("ddp", 1, 7.25, 1, 1, "speed +7.2 %", False), ("zero2", 2, -5.5, "", "", "speed -5.5 %", False),
    ("ddp", 0, 5.0, 2, 3, None, True), ("zero2", 0, "", "", "", None, True),
    ("ddp", 3, 9.0, 0, 0, "speed +9.0 %", True),
    ("ddp", 0, "", 4, 2, "others 6.0 %", False), ("ddp", 0, 6, 50, "", "speed +6.0 %, others 50.0 %", False)])
def test_a_machine_that_moves_supports_no_mark(strategy, seed, drift, load, steal, said, marked, tmp_path):
    write_seeds(tmp_path, "ddp", [*times(1), 100], devices=2)  # ZeRO-2 has no seed 3
    write_seeds(tmp_path, "zero2", times(1.1), "zero2", 2)
    table = pd.read_csv(tmp_path / f"{strategy}{seed}" / "summary.csv", dtype=str)
    table[["machine_drift_pct", "other_load_pct", "steal_pct"]] = drift, load, steal
    table.to_csv(tmp_path / f"{strategy}{seed}" / "summary.csv", index=False)
    rows = rows_of(tmp_path)
    assert rows.loc["ZeRO-2 x 2", MARKED] == marked
    assert noise(rows) == ([] if said is None else [
        "During these runs the machine's speed changed by more than 5 %, or other programs took more than that of its "
        "processor: "
        f"{strategy}{seed} ({said}). No change that rests on them is marked."])


def test_one_machine_that_moves_leaves_other_marks(tmp_path):
    write_seeds(tmp_path, "ddp", times(1), devices=2)
    write_seeds(tmp_path, "zero2", times(1.1), "zero2", 2, machine_drift_pct=6)
    write_seeds(tmp_path, "zero3", times(1.1), "zero3", 2, machine_drift_pct=1)
    rows = rows_of(tmp_path)
    assert rows[MARKED].to_dict() == {"DDP x 2": False, "ZeRO-2 x 2": False, "ZeRO-3 x 2": True}


# ---------------------------------------------------------------------- orders, and runs that differ in nothing

def made_up(values, row, seed):
    """Runs whose throughput is known and all else is not."""
    table = np.full((len(values), len(STUDY.measured)), np.nan)
    table[:, STUDY.measured.index(RATE)] = values
    return Runs(table, np.array(row), np.array(seed), np.zeros(len(values), bool))


def tables_with_a_mark(drawn, seeds, sweeps=150):
    """Share of made-up experiments that mark a difference: ten equal settings, DDP twice, 5 % of drift, 2 % of noise.

    Args:
        drawn: whether a seed's runs go in an order drawn from the seed, or DDP first as listed.
    """
    noise, count = np.random.default_rng(1), 0
    for sweep in range(sweeps):
        values, row = [], []
        for seed in range(seeds):
            order = [0, *range(10)]
            if drawn:
                random.Random(seeds * sweep + seed).shuffle(order)
            row += order
            values += [100 * exp(-0.05 * place / 10 + 0.02 * noise.standard_normal()) for place in range(11)]
        runs = made_up(values, row, np.repeat(range(seeds), 11))
        baseline = np.array([-1] + [0] * 9)
        count += find_changes(runs, baseline, np.ones(10, bool), np.zeros(10), STUDY).is_marked.any()
    return count / sweeps


def test_a_drift_of_the_machine_is_no_strategy_where_the_order_is_drawn():
    assert tables_with_a_mark(drawn=False, seeds=10) > 0.3
    assert all(tables_with_a_mark(drawn=True, seeds=seeds) <= 0.05 for seeds in (3, 10))


@pytest.fixture(scope="module")
def nothing(tmp_path_factory):
    """36 made-up runs of one setting, 12 of each of three seeds, whose speed varies by 2 %."""
    root, noise = tmp_path_factory.mktemp("nothing"), np.random.default_rng(2)
    for seed in range(3):
        for number in range(12):
            rate = 100 * exp(0.1 * seed + 0.02 * noise.standard_normal())
            write_run(root / f"seed{seed}-{number}", throughput=rate, seed=seed, validation_loss=2.0 + seed,
                      throughput_tokens_per_s=50 * rate, machine_drift_pct=0)
    return root


@pytest.mark.parametrize("are_reruns", [False, True])
def test_runs_that_differ_in_nothing_raise_few_alarms(nothing, are_reruns):
    """5 % of tables, and what 200 relabellings leave to chance."""
    runs = read(nothing)
    outcome = relabel(runs, 200, are_reruns, 0.0)
    assert outcome.result <= 0.05 + 2 * sqrt(0.05 * 0.95 / 200)
    assert outcome == relabel(runs, 200, are_reruns, 0.0), "the same again"
    assert relabel(runs, 50, are_reruns, 0.5).found > 0.7, "a slow label is found"


def test_labels_are_compared_as_plots_compares_them(nothing):
    """One relabelling by way of summary.csv, names, groups and baselines."""
    runs = read(nothing)
    drawn = labels(np.random.default_rng(3), runs.seed, are_reruns=True)
    assert (np.bincount(drawn) == [6] + [3] * 10).all(), "balanced"
    names = ["ddp", *(name for name in STUDY.strategies if name != "ddp" and "pipeline" not in name)][:11]
    found = [Run(run.summary | {"strategy": names[label]}, {})
             for run, label in zip(find_runs(nothing, STUDY), drawn, strict=True)]
    rows, _ = compare(found, STUDY)
    rows = rows.set_index("strategy").loc[names]
    changes = compare_labels(runs, drawn, 0.0, STUDY)
    place = STUDY.measured.index(RATE)
    for part, end in ((changes.percent, "_change_pct"), (changes.half_width, "_change_ci95"),
                      (changes.is_marked, "_differs"), (changes.floor, "_change_floor_pct")):
        assert rows[RATE + end].astype(float).to_list() == pytest.approx(part[:, place].astype(float), nan_ok=True)
    ddp = [log(value) for value, label in zip(runs.values[:, place], drawn, strict=True) if label == 0]
    assert rows[SPREAD].iloc[0] == pytest.approx(
        100 * sqrt(np.mean([np.var(ddp[2 * seed:2 * seed + 2], ddof=1) for seed in range(3)])))
