"""The published figures load as the tables expect, and their recomputation gives known answers on made-up records."""

import json
import subprocess
import sys

import pandas as pd
import pytest

from experiments import published_records as records
from tests.shared.runs import ROOT

FIGURES = sorted((ROOT / "results" / "published").glob("*.csv"))
COLUMNS = ["study", "setting", "devices", "column", "value", "unit", "source", "measures"]


def record(losses: list[float], throughputs: list[float], runtime: float, utilization: list[float], **more) -> dict:
    return {"total_runtime": runtime, "losses": losses, "throughputs": throughputs, "gpu_utilization": utilization,
            "average_statistical_efficiency": 0.5} | more


@pytest.fixture
def published_folder(tmp_path):
    """Three small records in the published form, the baseline with its own spelling of two keys."""
    baseline = record([5.0, 3.0, 4.0, 1.0], [16.0, 8.0, 16.0, 8.0], 8.0, [100.0, 0.0, 50.0, 50.0])
    baseline["gpu_utilizations"] = baseline.pop("gpu_utilization")
    baseline["average loss"] = 3.25
    contents = [baseline, record([2.0, 2.0, 1.0], [32.0] * 3, 10.0, [0.0, 0.0, 30.0]),
                record([2.0, 2.0], [64.0] * 2, 4.0, [25.0, 25.0])]
    for run, content in zip(records.PUBLISHED, contents, strict=True):
        (tmp_path / run.file).write_text(json.dumps(content))
    return tmp_path


@pytest.fixture
def run_folder(tmp_path):
    """Four steps of a run: 2 replicas, 32 samples a step, 8 a forward pass."""
    pd.DataFrame({"step": [1, 2, 3, 4], "step_s": [0.5, 1.0, 0.5, 1.0], "train_loss": [4.0, 2.0, 3.0, 2.0]}).to_csv(
        tmp_path / "steps.csv", index=False)
    pd.DataFrame([{"devices": 2, "replicas": 2, "global_batch_size": 32, "micro_batch_size": 8, "runtime_s": 8.0,
                   "samples": 128, "throughput_samples_per_s": 40.0, "gpu_utilization_pct": None,
                   "cpu_utilization_pct": 75.0}]).to_csv(tmp_path / "summary.csv", index=False)
    return tmp_path


def command(*flags: str) -> subprocess.CompletedProcess:
    return subprocess.run([sys.executable, "-m", "experiments.published_records", *flags], cwd=ROOT,
                          capture_output=True, text=True)


def test_stats_efficiency_is_the_mean_absolute_change_per_sample():
    assert records.stats_efficiency(pd.Series([5.0, 3.0, 4.0, 1.0]), 1) == 2
    assert records.stats_efficiency(pd.Series([5.0, 3.0, 4.0, 1.0])) == 2 / 16


def test_a_loss_that_jitters_without_falling_has_the_efficiency_of_one_that_falls():
    jitter, fall = pd.Series([3.0, 1.0, 3.0, 1.0, 3.0]), pd.Series([9.0, 7.0, 5.0, 3.0, 1.0])
    assert records.stats_efficiency(jitter) == records.stats_efficiency(fall)
    assert (records.net_share(jitter), records.net_share(fall)) == (0, 1)
    assert pd.isna(records.net_share(pd.Series([2.0, 2.0])))  # nothing moved


def test_held_shows_a_log_line_until_the_next():
    losses = pd.Series([8.0, 6.0, 4.0, 2.0, 3.0, 5.0, 9.0])
    assert records.held(losses, 2).tolist() == [7, 7, 3, 3, 4]
    assert records.held(losses, 2, average=False).tolist() == [6, 6, 2, 2, 5]
    assert records.held(losses, 7).empty and records.held(losses, 9).empty


def test_zero_share_counts_differences():
    assert records.zero_share(pd.Series([7.0, 7.0, 3.0, 3.0, 4.0])) == 0.5


def test_logging_less_often_lowers_the_efficiency_of_the_same_curve():
    table = records.logging_table(pd.Series([1.0, 2.0] * 60))
    assert table.index.tolist() == ["every step", "latest of 10, held", "mean of 10, held", "latest of 50, held",
                                    "mean of 50, held"]
    assert table["change %"].tolist() == [0, -100, -100, -100, -100]
    assert table["zero differences %"].tolist() == [0, 100, 100, 100, 100]
    assert records.logging_table(pd.Series([1.0, 2.0] * 50)).index.tolist() == table.index[:3].tolist()  # 100 steps


def test_record_tables_on_a_made_up_record(published_folder):
    tables = records.record_tables({run: records.read_record(published_folder / run.file) for run in records.PUBLISHED})
    columns, loss, time, gpu, _ = tables.values()
    baseline = records.PUBLISHED[0].name
    assert columns.loc[baseline].to_dict() == {
        "runtime s": 8, "throughput": 12, "validation loss": 3.25, "GPU util %": 50, "stats efficiency": 0.125,
        "in the record": 0.5, "goodput": 1.5}
    assert loss["zero differences %"].tolist() == [0, 50, 100]
    assert loss.loc[baseline, "net fall %"] == pytest.approx(100 * 4 / 6)
    assert time.loc[baseline, ["step timer s", "outside it %", "true samples/s", "per GPU"]].tolist() == [6, 25, 32, 8]
    assert time["steps"].tolist() == [4, 53, 52]  # with the 50 before the Trainer's first log line
    assert time["true samples/s"].tolist() == [32, 53 * 64 / 10, 52 * 128 / 4]
    assert time["recorded steps only"].tolist() == [32, 3 * 64 / 10, 2 * 128 / 4]
    assert gpu["exactly 100"].tolist() == [25, 0, 0]
    assert gpu["exactly 0"].tolist() == [25, pytest.approx(200 / 3), 0]


def test_run_tables_on_a_made_up_run(run_folder):
    curve, utilization, throughput = records.run_tables(*records.read_run(run_folder)).values()
    assert curve.loc["every step", "stats efficiency"] == pytest.approx(4 / 3 / 8)  # divisor: the micro-batch
    assert utilization.loc["run", "cpu_utilization_pct"] == 75
    assert utilization.loc["run", ["gpu_utilization_pct", "mfu_pct"]].isna().all()  # empty, and an older run's lack
    # One replica's 16 samples in 0.5 and 1 s; 8 samples x 2 devices; as measured; 128 samples in 8 s.
    assert throughput["samples/s"].tolist() == [24, 24, 40, 16]


def test_both_options_print_their_tables(published_folder, run_folder):
    finished = command("--records", str(published_folder), "--run", str(run_folder))
    assert finished.returncode == 0, finished.stderr
    for title in ("recomputed", "Time and samples", "GPU utilization", "logged less often", "(a)", "(b)", "(c)"):
        assert title in finished.stdout
    assert "not measured" in finished.stdout


def spoil(folder, name: str, text: str | None) -> None:
    (folder / name).unlink() if text is None else (folder / name).write_text(text)


@pytest.mark.parametrize("option, name, text, words", [
    ("--records", "baseline_metrics.json", None, "No such file"),
    ("--records", "baseline_metrics.json", "{", "not a published record"),
    ("--records", "baseline_metrics.json", "[1]", "not a published record"),
    ("--records", "pipeline_metrics_2_stages.json", '{"gpu_utilization": [1]}', "losses"),
    ("--records", "pipeline_metrics_2_stages.json", json.dumps(record(["x"], [1.0], 1.0, [1.0])), "published record"),
    ("--run", "steps.csv", None, "No such file"),
    ("--run", "summary.csv", "", "No columns"),
    ("--run", "steps.csv", "step,step_s\n1,0.5\n", "train_loss"),
    ("--run", "steps.csv", "train_loss,step_s\n,0.5\n", "train_loss"),
    ("--run", "summary.csv", "devices\nx\n", "devices"),
])
def test_what_cannot_be_read_gets_one_line(option, name, text, words, published_folder, run_folder):
    spoil(published_folder, name, text)
    finished = command(option, str(published_folder))
    assert finished.returncode == 2 and not finished.stdout
    assert len(finished.stderr.splitlines()) == 1 and name in finished.stderr and words in finished.stderr


@pytest.mark.parametrize("flags, words", [([], "--records"), (["--rec", "x"], "--rec"), (["--run"], "--run")])
def test_wrong_flags_get_one_line(flags, words):
    finished = command(*flags)
    assert finished.returncode == 2
    assert len(finished.stderr.splitlines()) == 1 and words in finished.stderr


def test_the_five_files_are_there():
    assert [path.stem for path in FIGURES] == ["autotuning", "bert_squad", "elsewhere", "gpt2_oscar", "imdb_scaling"]


@pytest.mark.parametrize("path", FIGURES, ids=lambda path: path.stem)
def test_published_figures_load(path):
    table = pd.read_csv(path)
    assert table.columns.tolist() == COLUMNS
    assert table.empty == (path.stem == "imdb_scaling")  # that study printed no figure
    assert (table.study == path.stem).all()
    assert pd.to_numeric(table.value).notna().all() and pd.to_numeric(table.devices).dropna().gt(0).all()
    for column in ("setting", "column", "source", "measures"):
        assert table[column].notna().all() and table[column].astype(str).str.strip().ne("").all()
    assert not table.duplicated(["setting", "devices", "column"]).any()


def test_bert_squad_is_what_was_published():
    table = pd.read_csv(ROOT / "results" / "published" / "bert_squad.csv")
    values = table.pivot(index="setting", columns="column", values="value")
    names = ["runtime_s", "throughput_samples_per_s", "validation_loss", "gpu_utilization_pct",
             "published_stats_efficiency", "published_goodput", "optimizer_steps"]
    assert values[names].values.tolist() == [[3688, 37.98, 0.6027, 94.96, 0.01627, 0.6179, 5430],
                                             [3148, 70.40, 0.8701, 14.45, 0.0000707, 0.0049, 6735],
                                             [1930.19, 116.27, 1.090, 6.7454, 0.0001116, 0.0129, 3340]]
    assert table.groupby("setting").devices.first().tolist() == [4, 2, 4]
    assert table.source.str.contains("repository").all() and table.source.str.contains("talk").all()


def test_gpt2_speedups_are_the_published_ones_not_the_true_ones():
    table = pd.read_csv(ROOT / "results" / "published" / "gpt2_oscar.csv")
    four = table[table.devices == 4].value.tolist()
    assert table.column.eq("speedup").all() and four == [3.881, 3.653, 3.76, 2.472]


def test_autotuning_keeps_its_two_metrics_apart():
    table = pd.read_csv(ROOT / "results" / "published" / "autotuning.csv")
    throughput = table[table.column == "throughput_samples_per_s"]
    own = throughput.measures.str.contains("tuner's own")
    assert throughput[~own].value.tolist() == [2502.236, 2523.684, 2682.849]
    assert throughput[own].value.tolist() == [2880.94, 2861.43, 2714.96, 2420.78, 2880.94]
