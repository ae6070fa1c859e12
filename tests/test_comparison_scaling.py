"""Strong and weak scaling on made-up runs: known speedups and efficiencies, and what is never compared."""

import numpy as np
import pandas as pd
import pytest

import plots
from comparison.autotuning import find_tuners
from comparison.report import charts, tables, write_comparison
from comparison.rows import compare
from comparison.runs import find_runs
from comparison.scaling import scaling_charts, scaling_tables, weak_charts, weak_groups
from tests.shared.made_up_runs import rows_of, write_run, write_seeds

WEAK = {"global_batch_size": 128, "workload": "4444"}  # four devices, each with the batch of the one-device run


def epoch_run(folder, strategy="ddp", devices=1, epoch_s=100, **values):
    values = {"throughput": 2000 / epoch_s, "task": "imdb", "epoch_workload": "e0e0", **values}
    return write_run(folder, strategy, devices, epoch_s=epoch_s, **values)


def compared(root):
    return compare(find_runs(root, plots.STUDY), plots.STUDY)


def weak_of(root):
    """The only group of weak scaling, and its tables."""
    rows, _ = compared(root)
    ((_, _, group),) = weak_groups(rows, plots.STUDY)
    return group.set_index("setting"), list(map(str, scaling_tables(group, plots.STUDY, "weak")))


def cells(table):
    lines = [line.strip("|").split("|") for line in table.splitlines() if "--" not in line]
    return [[cell.strip() for cell in line] for line in lines]


def test_strong_scaling(tmp_path):
    epoch_run(tmp_path / "one", validation_loss=0.3, accuracy=88)
    epoch_run(tmp_path / "four", devices=4, epoch_s=30, validation_loss=0.3, accuracy=88)
    rows, _ = compared(tmp_path)
    four = rows.set_index("setting").loc["DDP x 4"]
    assert four["epoch_speedup"] == pytest.approx(100 / 30)
    assert four["parallel_efficiency_pct"] == pytest.approx(100 * 100 / 30 / 4)
    parts = list(map(str, tables(rows, plots.STUDY)))
    title = "### Strong scaling: the same global batch on every number of devices"
    title, one, four = cells(parts[parts.index(title) + 1])
    assert title[3:6] == ["average epoch time s", "speedup of epochs T_1 / T_N", "parallel efficiency %"]
    assert one == ["1 device", "1", "32", "100", "1.00", "100", "88.0", "0.300"]
    assert four == ["DDP x 4", "4", "32", "30.0", "3.33", "83.3", "88.0", "0.300"]
    assert list(weak_groups(rows, plots.STUDY)) == []  # the batch per device falls


def test_weak_scaling_relates_rows_of_other_batches_and_workloads(tmp_path):
    epoch_run(tmp_path / "one")
    epoch_run(tmp_path / "two", devices=2, epoch_s=60)
    epoch_run(tmp_path / "four", devices=4, epoch_s=25, throughput=72, **WEAK)
    group, parts = weak_of(tmp_path)
    assert list(group.index) == ["1 device", "DDP x 4"]
    four = group.loc["DDP x 4"]
    assert (four["epoch_speedup"], four["parallel_efficiency_pct"], four["speedup"]) == pytest.approx((4, 100, 3.6))
    assert parts[0] == "### Weak scaling: the same batch per device, so a global batch that grows with their number"
    assert cells(parts[1])[1:] == [["1 device", "1", "32", "100", "1.00", "100"],
                                   ["DDP x 4", "4", "128", "25.0", "4.00", "100"]]

    rows, _ = compared(tmp_path)
    assert rows["group"].nunique() == 2
    assert rows.loc[rows["devices"] == 4, "epoch_speedup"].isna().all()  # of strong scaling
    for _, strong in rows.groupby("group"):
        assert strong["workload"].nunique() == 1
        text = "\n".join(map(str, scaling_tables(strong, plots.STUDY, "strong")))
        assert ("DDP x 2" in text, "DDP x 4" in text) == (strong["workload"].iloc[0] == "00e1", False)


@pytest.mark.parametrize("other", [{"epoch_workload": "0ff0"}, {"epoch_workload": None}, {"precision": "bf16"}])
def test_other_epochs_are_never_compared(tmp_path, other):
    epoch_run(tmp_path / "one")
    epoch_run(tmp_path / "weak", devices=4, epoch_s=25, **{**WEAK, **other})
    epoch_run(tmp_path / "strong", devices=4, epoch_s=30, **{"workload": "5555", **other})
    rows, _ = compared(tmp_path)
    assert list(weak_groups(rows, plots.STUDY)) == []
    scales = rows.filter(regex="^(weak_)?(own_speedup|speedup|epoch_speedup|parallel_efficiency_pct)$")
    assert scales[rows["devices"] == 4].isna().all(axis=None)


def test_groups_of_weak_scaling_by_learning_rate_and_batch_per_device(tmp_path):
    for rate, seconds in (("aaaa", 100), ("bbbb", 200)):
        epoch_run(tmp_path / f"{rate}1", epoch_s=seconds, epoch_workload=rate, workload=f"{rate}1")
        epoch_run(tmp_path / f"{rate}4", devices=4, epoch_s=50, epoch_workload=rate, **{**WEAK, "workload": f"{rate}4"})
    found = list(weak_groups(compared(tmp_path)[0], plots.STUDY))
    assert [group["epoch_speedup"].tolist() for _, _, group in found] == [[1, 2], [1, 4]]
    assert [heading.split(", ")[-2:] for heading, _, _ in found] == [
        ["batch per device 32", f"epoch workload {rate}"] for rate in ("aaaa", "bbbb")]
    assert len({prefix for _, prefix, _ in found}) == 2


def test_paired_by_seed_with_an_interval(tmp_path):
    for seed, (one, four) in enumerate([(100, 50), (120, 40), (90, 30)]):
        epoch_run(tmp_path / f"one{seed}", epoch_s=one, seed=seed)
        epoch_run(tmp_path / f"four{seed}", devices=4, epoch_s=four, seed=seed)
    epoch_run(tmp_path / "unpaired", devices=4, epoch_s=1, seed=7)
    four = rows_of(tmp_path).loc["DDP x 4"]
    assert four["epoch_speedup"] == pytest.approx(8 / 3)  # of 2, 3, 3; not the ratio of the means
    assert four["epoch_speedup_ci95"] == pytest.approx(4.302653 / 3)  # t(0.975, 2) s / sqrt(n), s = 1 / sqrt(3)
    assert four["parallel_efficiency_pct_ci95"] == pytest.approx(25 * 4.302653 / 3)
    assert four["parallel_efficiency_pct_n"] == 3
    assert np.isnan(rows_of(tmp_path).loc["1 device", "epoch_speedup_ci95"])  # 1 by definition


def test_one_device_of_the_same_strategy_else_of_ddp(tmp_path):
    epoch_run(tmp_path / "one")
    epoch_run(tmp_path / "zero", "zero2", epoch_s=120)
    epoch_run(tmp_path / "zero4", "zero2", 4, epoch_s=40)
    epoch_run(tmp_path / "fsdp4", "fsdp", 4, epoch_s=40)
    speedups = rows_of(tmp_path)[["epoch_speedup", "own_speedup", "speedup"]]
    assert speedups.loc["ZeRO-2 x 4"].tolist() == pytest.approx([3, 3, 2.5])
    assert speedups.loc["FSDP x 4"].tolist() == pytest.approx([2.5, np.nan, 2.5], nan_ok=True)


def test_throughput_by_devices_and_strategy(tmp_path):
    for devices, throughput in ((1, 50), (2, 90), (4, 150)):
        write_run(tmp_path / f"ddp{devices}", devices=devices, throughput=throughput)
    for devices, throughput in ((1, 40), (4, 100)):
        write_run(tmp_path / f"zero{devices}", "zero3", devices, throughput)
    write_run(tmp_path / "two", "pipeline", 2, throughput=80)
    write_run(tmp_path / "two_twice", "pipeline", 4, throughput=120, pipeline_stages=2, replicas=2)
    write_run(tmp_path / "four", "pipeline", 4, throughput=110)
    write_run(tmp_path / "lone", "fsdp", 4, throughput=130)  # on four devices only: says nothing on scaling
    rows, _ = compared(tmp_path)
    own_title, own, ddp_title, ddp = map(str, scaling_tables(rows, plots.STUDY, "strong"))
    assert own_title == "### Strong scaling: global samples/s, x one device of the same strategy"
    assert cells(own) == [
        ["devices", "DDP", "ZeRO-3"], ["1", "1.00", "1.00"], ["2", "1.80", "—"], ["4", "3.00", "2.50"]]
    assert ddp_title == "### Strong scaling: global samples/s, x DDP on one device"
    assert cells(ddp) == [
        ["devices", "DDP", "pipeline 2 stages", "pipeline 4 stages", "ZeRO-3"],
        ["1", "1.00", "—", "—", "0.800"], ["2", "1.80", "1.60", "—", "—"], ["4", "3.00", "2.40", "2.20", "2.00"]]


def test_a_cell_holds_one_row(tmp_path):
    write_run(tmp_path / "one", throughput=50)
    write_run(tmp_path / "small", devices=2, throughput=80, micro_batch_size=8, micro_batches=2)
    write_run(tmp_path / "large", devices=2, throughput=90, micro_batch_size=16, micro_batches=1)
    for schedule in ("1f1b", "gpipe"):
        for devices in (2, 4):
            write_run(tmp_path / f"{schedule}{devices}", "torch_pipeline", devices, 60, schedule=schedule,
                      pipeline_stages=2, replicas=devices // 2)
    rows, _ = compared(tmp_path)
    *_, table = map(str, scaling_tables(rows, plots.STUDY, "strong"))
    assert cells(table)[0] == ["devices", "DDP", "DDP, 1 micro-batch", "DDP, 2 micro-batches",
                               "torch pipeline 2 stages, 1f1b", "torch pipeline 2 stages, gpipe"]
    assert cells(table)[2] == ["2", "—", "1.80", "1.60", "1.20", "1.20"]


def test_runs_without_epochs_have_no_table_of_them(tmp_path):
    write_run(tmp_path / "one", throughput=50)  # an older run: neither epoch_s nor epoch_workload
    write_run(tmp_path / "four", devices=4, throughput=150)
    rows, _ = compared(tmp_path)
    assert list(weak_groups(rows, plots.STUDY)) == []
    assert not any("T_1 / T_N" in str(part) for part in tables(rows, plots.STUDY))
    assert scaling_charts(rows, "made up", plots.STUDY, "strong") == {}


def test_one_device_alone_does_not_scale(tmp_path):
    epoch_run(tmp_path / "one")
    epoch_run(tmp_path / "zero", "zero2", epoch_s=120)
    rows, _ = compared(tmp_path)
    assert scaling_tables(rows, plots.STUDY, "strong") == []
    assert scaling_charts(rows, "made up", plots.STUDY, "strong") == {}
    assert list(weak_groups(rows, plots.STUDY)) == []


def test_an_autotuned_run_does_not_scale(tmp_path):
    epoch_run(tmp_path / "one", "zero1", tuned_by="autotuner", micro_batch_size=16)
    epoch_run(tmp_path / "four", "zero1", 4, tuned_by="hand", **WEAK)
    assert list(weak_groups(compared(tmp_path)[0], plots.STUDY)) == []


def write_epochs(folder, seconds):
    epochs = range(1, len(seconds) + 1)
    table = pd.DataFrame({"epoch": epochs, "step": epochs, "samples": epochs, "epoch_s": seconds, "train_loss": 1})
    table.assign(validation_loss=None, accuracy=None).to_csv(folder / "epochs.csv", index=False)


def test_figures(tmp_path):
    write_epochs(epoch_run(tmp_path / "one"), [101, 99, 100])
    write_epochs(epoch_run(tmp_path / "four", devices=4, epoch_s=30), [31, 29, 30])
    epoch_run(tmp_path / "weak", devices=4, epoch_s=25, **WEAK)
    rows, members = compared(tmp_path)
    group = rows[rows["global_batch_size"] == 32]
    drawn = charts(group, members, "made up", plots.STUDY)
    over_devices = {"strong_scaling_epoch_speedup", "strong_scaling_parallel_efficiency_pct"}
    assert over_devices | {"epoch_s", "epoch_s_over_epoch"} <= set(drawn)
    lines = drawn["epoch_s_over_epoch"]().axes[0].lines
    epochs = {line.get_linestyle(): line.get_xydata().tolist() for line in lines}
    assert epochs == {"-": [[1, 101], [2, 99], [3, 100]], ":": [[1, 31], [2, 29], [3, 30]]}
    for name, ideal, measured in (("epoch_speedup", [[1, 1], [4, 4]], [[1, 1], [4, 100 / 30]]),
                                  ("parallel_efficiency_pct", [[1, 100], [4, 100]], [[1, 100], [4, 2500 / 30]])):
        figure = drawn[f"strong_scaling_{name}"]()
        lines = [line.get_xydata().tolist() for line in figure.axes[0].lines]
        assert lines[0] == ideal
        assert np.ravel(lines[1]) == pytest.approx(np.ravel(measured))
        assert [text.get_text() for text in figure.legends[0].get_texts()] == ["ideal", "DDP"]
    ((heading, _, weak),) = weak_groups(rows, plots.STUDY)
    names = ("epoch_speedup", "parallel_efficiency_pct", "epoch_s", "epoch_s_over_epoch")
    assert set(weak_charts(weak, members, heading, plots.STUDY)) == {f"weak_scaling_{name}" for name in names}

    text, count = write_comparison(rows, members, tmp_path / "out", plots.STUDY, find_tuners(tmp_path), [])
    written = {path.stem for path in (tmp_path / "out" / "figures").iterdir()}
    assert len(written) == count
    slug = "global_batch_32_workload_00e1_"
    assert {"weak_scaling_epoch_speedup", *(slug + name for name in over_devices)} <= written
    assert "\n## imdb, tiny, fp32, length 128, 1 CPU thread a process, batch per device 32\n" in text
    assert "Weak scaling keeps the batch per device equal" in text
    table = pd.read_csv(tmp_path / "out" / "comparison.csv")
    assert table["epoch_speedup"].tolist() == pytest.approx([1, 100 / 30, np.nan], nan_ok=True)
    assert table["weak_epoch_speedup"].tolist() == pytest.approx([1, np.nan, 4], nan_ok=True)


def test_metrics_of_the_tasks(tmp_path):
    quality = {"accuracy": 84.5, "accuracy_mismatched": 83.25, "perplexity": 31.5}
    folder = write_run(tmp_path / "one", **quality)
    curve = pd.DataFrame({"step": [1, 2], "samples": [32, 64], "elapsed_s": [1, 2], "accuracy": [50, 84.5]})
    curve.assign(perplexity=[90, 31.5]).to_csv(folder / "evaluations.csv", index=False)
    rows, members = compared(tmp_path)
    parts = list(map(str, tables(rows, plots.STUDY)))
    assert cells(parts[parts.index("### Quality and speedup") + 1]) == [
        ["setting", "accuracy %", "accuracy, mismatched %", "perplexity", "speedup x 1 device"],
        ["1 device", "84.5", "83.2", "31.5", "1.00"]]
    drawn = charts(rows, members, "made up", plots.STUDY)
    for column in ("accuracy", "perplexity"):
        for axis in ("samples", "time"):
            assert len(drawn[f"{column}_over_{axis}"]().axes[0].lines) == 1


def test_throughput_of_weak_scaling_beside_a_published_speedup(tmp_path, monkeypatch, capsys):
    write_seeds(tmp_path / "runs", "one", [50], task="oscar", epoch_workload="e0e0")
    write_seeds(tmp_path / "runs", "four", [180], devices=4, task="oscar", epoch_workload="e0e0", **WEAK)
    monkeypatch.setattr("sys.argv", ["plots.py", str(tmp_path / "runs"), "--published"])
    plots.main()
    part = capsys.readouterr().out.split("## Published: gpt2_oscar\n\n")[1].split("\n\n")
    title, one, four, *others = cells(part[0])
    assert title[-1] == "samples/s, same batch per device, x 1 device of the strategy"
    assert (one[1], one[-1], four[1], four[-1]) == ("1.00", "1.00", "—", "3.60")
    assert ["published: DDP, 4 GPUs", "3.653 x 1 GPU", "—", "—"] in others
    assert "- published speedup of DDP: TFLOPS per GPU at the last log x GPUs / the 1-GPU value" in part[1]
