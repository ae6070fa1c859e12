"""Money and energy of runs whose every number is known, in plots.py and plan.py."""

import math

import pandas as pd
import pytest

import plots
from comparison.costs import add_costs, with_costs
from comparison.rows import compare
from comparison.runs import find_runs
from prediction.plan_report import Wanted
from prediction.planning import Option
from prediction.predict import Prediction
from prediction.setting import Setting
from tests.shared.made_up_runs import write_run


def rows(root, price=None, grams=None) -> pd.DataFrame:
    study = with_costs(plots.STUDY, price, grams)
    runs = find_runs(root, study)
    add_costs(runs, price, grams)
    return compare(runs, study)[0].set_index("setting")


def test_price_energy_and_co2_of_a_run_and_to_its_target(tmp_path):
    write_run(tmp_path / "a", devices=2, runtime_s=7200, time_to_target_s=1800, target_f1=80, energy_j=7.2e6,
              power_w=400)
    found = rows(tmp_path, price=2.5, grams=300).loc["DDP x 2"]
    assert (found["cost"], found["cost_to_target"]) == (10, 2.5)  # 2 devices x 2 hours, and half an hour
    assert (found["energy_kwh"], found["energy_to_target_kwh"]) == pytest.approx((2, 0.4))  # 800 W for half an hour
    assert (found["co2_g"], found["co2_to_target_g"]) == pytest.approx((600, 120))


def test_what_was_not_measured_stays_empty(tmp_path):
    write_run(tmp_path / "a", devices=2, runtime_s=7200)
    found = rows(tmp_path, price=2.5, grams=300).loc["DDP x 2"].to_dict()
    assert found["cost"] == 10
    for column in ("cost_to_target", "energy_kwh", "energy_to_target_kwh", "co2_g", "co2_to_target_g"):
        assert math.isnan(found[column])


def test_prices_to_different_targets_are_not_averaged(tmp_path):
    for seed, target in enumerate((70, 80)):
        write_run(tmp_path / f"a{seed}", seed=seed, time_to_target_s=100, target_f1=target)
    assert math.isnan(rows(tmp_path, price=1.0).loc["1 device"].to_dict()["cost_to_target"])


def test_only_what_was_asked_for_has_columns(tmp_path):
    write_run(tmp_path / "a")
    assert "cost" not in rows(tmp_path) and "co2_g" not in rows(tmp_path, price=1.0)
    assert "cost" not in rows(tmp_path, grams=1.0)


@pytest.mark.parametrize("words", [["--price_per_device_hour", "0"], ["--grams_co2_per_kwh", "-1"],
                                   ["--grams_co2_per_kwh", "nan"]])
def test_a_price_that_is_none_is_one_line(words, tmp_path, monkeypatch, capsys):
    write_run(tmp_path / "a")
    monkeypatch.setattr("sys.argv", ["plots.py", str(tmp_path), *words])
    with pytest.raises(SystemExit) as stopped:
        plots.main()
    said = capsys.readouterr().err
    assert stopped.value.code == 2 and words[0] in said and said.count("\n") == 1


def test_a_plans_energy_is_power_times_time():
    found = Option(Setting("ddp", 4, 1, 1), 1.0, Prediction(0.5, 10.0, 0.0, None, 0.0, 1.0, []))
    wanted = Wanted(samples=36_000, price=2.0, grams=300, watts=250)
    assert wanted.cost(found) == pytest.approx(8)  # an hour of 4 devices
    assert (wanted.energy_kwh(found), wanted.co2_g(found)) == pytest.approx((1.0, 300))
    assert Wanted(samples=36_000, grams=300).energy_kwh(found) is None
