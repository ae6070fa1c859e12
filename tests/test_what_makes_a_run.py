"""Runs share a row, or a table, only if nothing but the seed, or the strategy, is between them."""

import json

import pytest

import plots
from comparison.rows import compare
from comparison.runs import find_runs
from measurement.results import deepspeed_settings
from tests.made_up_runs import rows_of, write_run, write_seeds


def zero_config(**settings):
    """As zero.py hands it to DeepSpeed, with some settings of ZeRO's."""
    return {"train_batch_size": 32, "train_micro_batch_size_per_gpu": 16, "gradient_accumulation_steps": 1,
            "gradient_clipping": 1.0, "wall_clock_breakdown": False, "zero_optimization": {"stage": 2} | settings}


# ---------------------------------------------------------------------- a row: DeepSpeed's settings

def test_what_flags_decide_is_no_setting_of_deepspeeds():
    offload = zero_config(offload_optimizer={"device": "cpu", "pin_memory": True}, reduce_bucket_size=5e8)
    offload |= {"zero_force_ds_cpu_optimizer": False, "torch_autocast": {"enabled": True}, "steps_per_print": None}
    assert deepspeed_settings(offload) == (
        'steps_per_print=null; wall_clock_breakdown=false; zero_optimization.offload_optimizer.pin_memory=true; '
        'zero_optimization.reduce_bucket_size=500000000')
    assert deepspeed_settings({"train_batch_size": 32, "zero_optimization": {"stage": 1}}) == "default"
    assert deepspeed_settings(None) is None


CASES = {  # settings of two rows -> what tells their names apart
    "a number": [{"reduce_bucket_size": 1000}, {"reduce_bucket_size": 500}, "reduce_bucket_size 1000",
                 "reduce_bucket_size 500"],
    "one by default": [{"overlap_comm": True}, {}, "overlap_comm true", "overlap_comm by default"],
    "two of them": [{"overlap_comm": True}, {"overlap_comm": False, "contiguous_gradients": False},
                    "contiguous_gradients by default, overlap_comm true",
                    "contiguous_gradients false, overlap_comm false"],
    "in a block": [{"offload_optimizer": {"pin_memory": True}}, {"offload_optimizer": {"pin_memory": False}},
                   "pin_memory true", "pin_memory false"],
    "of two blocks": [{"a": {"x": 1}, "b": {"x": 1}}, {"a": {"x": 2}, "b": {"x": 2}},
                      "zero_optimization.a.x 1, zero_optimization.b.x 1",
                      "zero_optimization.a.x 2, zero_optimization.b.x 2"],
}


@pytest.mark.parametrize("recorded", [True, False], ids=["column", "run.json only, as in earlier commits"])
@pytest.mark.parametrize("case", CASES)
def test_other_deepspeed_settings_are_another_row_named_by_what_differs(tmp_path, case, recorded):
    for number, settings in enumerate(CASES[case][:2]):
        for seed in (0, 1):
            config = zero_config(**settings)
            text = {"deepspeed_settings": deepspeed_settings(config)} if recorded else {}
            folder = write_run(tmp_path / f"{number}{seed}", "zero2", 2, 100 + 10 * number + seed, seed=seed, **text)
            description = {"status": "finished", "deepspeed_config": config}
            (folder / "run.json").write_text(json.dumps(description), encoding="utf-8")
    rows = rows_of(tmp_path)
    assert sorted(rows.index) == sorted(f"ZeRO-2 x 2, {words}" for words in CASES[case][2:])
    assert list(rows["runs"]) == [2, 2]


def test_very_different_deepspeed_settings_are_told_apart_by_a_hash(tmp_path):
    for number in (0, 1):
        text = deepspeed_settings(zero_config(**{f"setting_with_a_long_name_{n}": n + number for n in range(9)}))
        write_run(tmp_path / str(number), "zero2", 2, deepspeed_settings=text)
    names = list(rows_of(tmp_path).index)
    assert all(len(name) == len("ZeRO-2 x 2, DeepSpeed settings 12345678") for name in names) and len(set(names)) == 2


def test_equal_and_unrecorded_settings(tmp_path):
    """What a spelling changes is no difference; a run of which nothing is known has a row of its own."""
    for number, size in enumerate((5e8, 500_000_000)):
        text = deepspeed_settings(zero_config(reduce_bucket_size=size))
        write_run(tmp_path / f"same{number}", "zero2", 2, seed=number, deepspeed_settings=text)
    assert list(rows_of(tmp_path)["runs"]) == [2]
    write_run(tmp_path / "unknown", "zero2", 2)
    [name] = [name for name in rows_of(tmp_path).index if "unrecorded" in name]
    assert name == "ZeRO-2 x 2, unrecorded deepspeed settings"


def test_scaling_relates_rows_of_the_same_deepspeed_settings(tmp_path):
    for size, rates in ((1000, (50, 90)), (500, (60, 80))):
        text = deepspeed_settings(zero_config(reduce_bucket_size=size))
        for devices, rate in zip((1, 2), rates, strict=True):
            write_seeds(tmp_path, f"{size}-{devices}-", [rate], "zero2", devices, deepspeed_settings=text)
    rows, _ = compare(find_runs(tmp_path, plots.STUDY), plots.STUDY)
    rows = rows.set_index("setting")
    assert rows.loc["ZeRO-2 x 2, reduce_bucket_size 1000", "own_speedup"] == pytest.approx(90 / 50)
    assert rows.loc["ZeRO-2 x 2, reduce_bucket_size 500", "own_speedup"] == pytest.approx(80 / 60)


def test_all_tables_and_figures_can_show_such_rows(tmp_path, monkeypatch, capsys):
    for size in (1000, 500):
        text = deepspeed_settings(zero_config(reduce_bucket_size=size))
        for devices in (1, 2):
            write_run(tmp_path / f"{size}-{devices}", "zero2", devices, 50.0 * devices, epoch_s=4 / devices,
                      deepspeed_settings=text, epoch_workload="e", curves=True)
    monkeypatch.setattr("sys.argv", ["plots.py", str(tmp_path)])
    plots.main()
    assert "ZeRO-2, reduce_bucket_size 1000" in capsys.readouterr().out, "a column of the scaling table"
