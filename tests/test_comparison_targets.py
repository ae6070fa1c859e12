"""Time to quality: compared only among equal targets, and only where every run reached its own."""

import numpy as np
import pandas as pd
import pytest

import plots
from comparison.figures import quality_chart
from comparison.report import charts, tables
from comparison.rows import compare
from comparison.runs import find_runs
from comparison.targets import Aim
from tests.shared.made_up_runs import rows_of, write_run

CHANGE = "time_to_target_s_change_pct"


def timed(root, name, seconds, strategy="ddp", seed=0, target=85, **values):
    """A run on two devices with an F1 that rises to 90 in three evaluations; no seconds: never reached."""
    values = {"target_f1": target, "time_to_target_s": seconds or "", "f1": 90, **values}
    folder = write_run(root / name, strategy, 2, seed=seed, **values)
    scores = {"samples": [320, 640, 960], "elapsed_s": [10, 20, 30], "f1": [70, 80, 90]}
    pd.DataFrame(scores).to_csv(folder / "evaluations.csv", index=False)


def test_times_of_equal_targets_are_compared(tmp_path):
    timed(tmp_path, "a", 20)
    timed(tmp_path, "b", 30, "pipeline")
    rows = rows_of(tmp_path)
    assert list(rows["target"]) == ["F1 ≥ 85 %"] * 2
    assert list(rows["reached"]) == ["1 of 1"] * 2
    assert rows.loc["pipeline 2 stages", CHANGE] == pytest.approx(50)


def test_times_of_other_targets_are_not_compared(tmp_path):
    timed(tmp_path, "a", 20)
    timed(tmp_path, "b", 30, "pipeline", target=80)
    timed(tmp_path, "c", 30, "zero2", target=None, target_loss=1.5)
    rows = rows_of(tmp_path)
    assert list(rows["target"]) == ["F1 ≥ 85 %", "F1 ≥ 80 %", "validation loss ≤ 1.5"]
    assert list(rows["time_to_target_s"]) == [20, 30, 30]
    assert rows[CHANGE].isna().all()
    assert rows.loc["pipeline 2 stages", "f1_change_pct"] == 0  # all else is compared


def test_a_mean_over_those_that_reached_it_is_not_compared(tmp_path):
    for seed, (base, pipe) in enumerate([(20, 30), (20, None), (20, 30)]):
        timed(tmp_path, f"a{seed}", base, seed=seed)
        timed(tmp_path, f"b{seed}", pipe, "pipeline", seed)
    pipe = rows_of(tmp_path).loc["pipeline 2 stages"]
    assert pipe[["reached", "time_to_target_s"]].to_list() == ["2 of 3", 30]
    assert np.isnan(pipe[CHANGE])


def test_runs_of_one_setting_with_several_targets_have_no_mean_time(tmp_path):
    timed(tmp_path, "a", 20)
    timed(tmp_path, "b", 30, seed=1, target=88)
    timed(tmp_path, "c", 30, "pipeline")
    rows = rows_of(tmp_path)
    assert rows.loc["DDP x 2", "target"] == "several"
    assert rows[["time_to_target_s", "reached"]].notna().all(axis=1).to_list() == [False, True]
    assert rows[CHANGE].isna().all()


def test_table_and_a_figure_for_each_target(tmp_path):
    timed(tmp_path, "a", 20)
    timed(tmp_path, "b", None, "pipeline")
    timed(tmp_path, "c", 20, "zero2", target=80)
    write_run(tmp_path / "old", "fsdp", 2)  # knows of no target
    rows, members = compare(find_runs(tmp_path, plots.STUDY), plots.STUDY)
    parts = list(map(str, tables(rows, plots.STUDY)))
    lines = [line for line in parts[parts.index("### Time to quality") + 1].splitlines() if "F1 ≥" in line]
    cells = [[cell.strip() for cell in line.strip("|").split("|")] for line in lines]
    assert cells == [
        ["DDP x 2 (baseline)", "F1 ≥ 85 %", "1 of 1", "20.0"],
        ["pipeline 2 stages", "F1 ≥ 85 %", "0 of 1", "—"],
        ["ZeRO-2 x 2", "F1 ≥ 80 %", "1 of 1", "20.0"],
    ]
    drawn = charts(rows, members, "made up", plots.STUDY)
    assert {name for name in drawn if name.startswith("time_to")} == {"time_to_f1_80", "time_to_f1_85"}

    chart = quality_chart(rows, members, Aim("f1", 85.0, "F1 ≥ 85 %"), "made up", plots.STUDY)
    names = [text.get_text().replace("\n", " ") for text in chart.legends[0].get_texts()]
    assert names == ["target", "DDP x 2", "pipeline 2 stages: never reached"]
    target, *curves = chart.axes[0].get_lines()
    assert list(target.get_ydata()) == [85, 85]
    assert [list(map(float, line.get_xdata())) for line in curves] == [[10, 20, 30], [20], [10, 20, 30]]
    assert float(curves[1].get_ydata()[0]) == 80  # on the curve, at the evaluation that reached it


def test_no_target_no_table(tmp_path):
    write_run(tmp_path / "a")
    rows, members = compare(find_runs(tmp_path, plots.STUDY), plots.STUDY)
    assert "### Time to quality" not in tables(rows, plots.STUDY)
    assert not [name for name in charts(rows, members, "made up", plots.STUDY) if name.startswith("time_to")]
