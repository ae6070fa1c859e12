"""plots.py on made-up run folders whose every number is known."""

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from matplotlib.image import imread

import plots
from comparison.figures import new_chart
from comparison.report import charts, tables
from comparison.rows import compare
from comparison.runs import find_runs
from comparison.settings import tell_workloads_apart
from comparison.tables import cell
from tests.shared.made_up_runs import rows_of, write_run

ROOT = Path(__file__).resolve().parents[1]

# Runs the script as a command does, then fails if it brought in what a table does not need.
COMMAND = """
import runpy, sys
runpy.run_path("plots.py", run_name="__main__")
assert not {"torch", "transformers"} & set(sys.modules), "plots.py must not need torch"
"""

def exit_of(capsys, monkeypatch, *arguments):
    monkeypatch.setattr(sys, "argv", ["plots.py", *map(str, arguments)])
    with pytest.raises(SystemExit) as raised:
        plots.main()
    return raised.value.code, capsys.readouterr().err.splitlines()


@pytest.fixture(scope="module")
def study(tmp_path_factory):
    """One run of the script over good, unfinished and broken runs, shared by the tests of what it writes."""
    root = tmp_path_factory.mktemp("study") / "results"
    write_run(root / "one", throughput=50, validation_loss=2.0, curves=True)
    write_run(root / "two_a", devices=2, throughput=98, seed=0, validation_loss=1.9, curves=True)
    write_run(root / "two_b", devices=2, throughput=102, seed=1, validation_loss=2.1, curves=True)
    write_run(root / "deep" / "pipe", "pipeline", 2, throughput=75, validation_loss=2.2, curves=True)
    write_run(root / "pipe_four", "pipeline", 4, throughput=60, validation_loss=None)
    write_run(root / "large_batch", devices=2, throughput=200, global_batch_size=64)
    write_run(root / "running", status="running")
    write_run(root / "out_of_memory", status="out_of_memory")
    (write_run(root / "bad_json") / "run.json").write_text("{", encoding="utf-8")
    (write_run(root / "list_json") / "run.json").write_text("[1]", encoding="utf-8")
    (write_run(root / "deep_json") / "run.json").write_text("[" * 100_000, encoding="utf-8")
    (write_run(root / "no_json") / "run.json").unlink()
    (write_run(root / "no_summary") / "summary.csv").unlink()
    (write_run(root / "empty_summary") / "summary.csv").write_text("", encoding="utf-8")
    (write_run(root / "binary_summary") / "summary.csv").write_bytes(b"\xff\xfe\x00,\n")
    summary = write_run(root / "two_rows") / "summary.csv"
    summary.write_text(summary.read_text() + summary.read_text().splitlines()[1] + "\n", encoding="utf-8")
    summary = write_run(root / "ragged") / "summary.csv"
    summary.write_text(summary.read_text().rstrip() + ",1,2\n", encoding="utf-8")
    summary = write_run(root / "cut") / "summary.csv"
    summary.write_text(summary.read_text()[:-len("es\n")], encoding="utf-8")
    write_run(root / "no_runtime", runtime_s=None)
    write_run(root / "wordy", f1="high")
    write_run(root / "infinite", validation_loss="inf")
    write_run(root / "enormous", validation_loss="1e308")
    write_run(root / "two_lines", model="tiny\nmodel")
    summary = write_run(root / "twice") / "summary.csv"
    summary.write_text("".join(f"{line},{line.split(',')[0]}\n" for line in summary.read_text().splitlines()))
    write_run(root / "half_a_device", devices=1, micro_batches=1.5)
    (write_run(root / "bad_curve") / "steps.csv").write_text("train_loss\nlow\n", encoding="utf-8")

    output = root.parent / "report"
    command = [sys.executable, "-c", COMMAND, str(root), "--output_dir", str(output)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, encoding="utf-8", check=False)
    assert done.returncode == 0, done.stderr
    done.table = pd.read_csv(output / "comparison.csv")
    done.output = output
    return done


def row(study, setting, batch=32):
    table = study.table
    (found,) = table[(table["setting"] == setting) & (table["global_batch_size"] == batch)].to_dict("records")
    return found


def test_mean_and_interval_over_seeds(study):
    two = row(study, "DDP x 2")
    assert (two["runs"], two["throughput_samples_per_s_n"]) == (2, 2)
    assert two["throughput_samples_per_s"] == pytest.approx(100)
    assert two["throughput_samples_per_s_ci95"] == pytest.approx(12.706205 * 2)  # t(0.975, 1) s / sqrt(n)
    assert "100 ± 30" in study.stdout
    assert np.isnan(row(study, "1 device")["throughput_samples_per_s_ci95"])


def test_changes_against_ddp_on_as_many_devices(study):
    pipe = row(study, "pipeline 2 stages")
    assert pipe["baseline"] == "DDP x 2"
    assert pipe["throughput_samples_per_s_change_pct"] == pytest.approx(100 * (75 / 98 - 1))  # seed 0 against seed 0
    assert pipe["validation_loss_change_pct"] == pytest.approx(100 * (2.2 / 1.9 - 1))
    assert np.isnan(pipe["throughput_samples_per_s_change_ci95"])
    assert "75.0 (-23.5%)" in study.stdout
    for setting in ("1 device", "DDP x 2", "pipeline 4 stages"):  # the baselines themselves, and a row without
        assert np.isnan(row(study, setting)["throughput_samples_per_s_change_pct"])
    assert "| DDP x 2 (baseline) |" in study.stdout


def test_speedup_over_one_device_of_the_same_job(study):
    speedups = {name: row(study, name)["speedup"] for name in ("1 device", "DDP x 2", "pipeline 4 stages")}
    assert speedups == {"1 device": 1, "DDP x 2": 1.96, "pipeline 4 stages": 1.2}
    assert np.isnan(row(study, "DDP x 2", batch=64)["speedup"])


def test_the_mark_of_a_change(tmp_path):
    for seed, (base, pipe) in enumerate([(100, 90.5), (200, 180), (300, 268.5)]):  # ratios 0.905, 0.9, 0.895
        write_run(tmp_path / f"a{seed}", devices=2, throughput=base, seed=seed)
        write_run(tmp_path / f"b{seed}", "pipeline", 2, throughput=pipe, seed=seed, f1=70 + seed)
    pipe = rows_of(tmp_path).loc["pipeline 2 stages"]
    assert cell(pipe, "throughput_samples_per_s") == "200 ± 200 (-10.0 ± 1.2%*)"
    assert cell(pipe, "f1") == "71 ± 2"
    assert cell(pipe, "runs") == "3"
    assert cell(pipe, "accuracy") == "—"


def test_what_was_not_measured_is_empty(study):
    assert study.table["gpu_utilization_pct"].isna().all()
    (line,) = [
        line for line in study.stdout.splitlines() if line.startswith("| pipeline 4 stages") and "60" in line
    ]
    cells = [cell.strip() for cell in line.strip("|").split("|")]
    assert cells == ["pipeline 4 stages", "160", "60.0", "—", "—", "—", "—", "1"]


def test_tables_hold_only_comparable_rows_in_reading_order(study):
    text = (study.output / "comparison.md").read_text(encoding="utf-8")
    assert text in study.stdout
    groups = {part.split("\n")[0]: part for part in text.split("\n## ")[1:]}
    job = "fp32, length 128, 1 CPU thread a process"
    headings = [f"squad_v2, tiny, global batch {batch}, {job}" for batch in (32, 64)]
    assert list(groups) == [*headings, "How to read the tables"]
    small, large, _ = groups.values()
    assert small.split("\n\n")[1].startswith("Not verified: ")
    first_table = small.split("\n\n")[2].splitlines()
    names = [line.split("|")[1].strip() for line in first_table[2:]]
    assert names == ["1 device", "DDP x 2 (baseline)", "pipeline 2 stages", "pipeline 4 stages"]
    assert large.count("\n| DDP x 2 ") == 1
    assert all(
        len({len(line) for line in table.splitlines()}) == 1 for table in text.split("\n\n") if "|" in table
    )
    assert max(map(len, text.splitlines())) <= 160


def test_unusable_runs_are_named_with_the_reason(study):
    reasons = {
        "running": "not finished, its status is 'running'",
        "out_of_memory": "not finished, its status is 'out_of_memory'",
        "bad_json": "run.json is missing or is not JSON with a status",
        "list_json": "run.json is missing or is not JSON with a status",
        "deep_json": "run.json is missing or is not JSON with a status",
        "no_json": "run.json is missing or is not JSON with a status",
        "no_summary": "summary.csv is missing",
        "empty_summary": "summary.csv cannot be read",
        "binary_summary": "summary.csv cannot be read",
        "two_rows": "summary.csv has 2 rows, not one",
        "ragged": "line 2 has 19 cells, the first has 17",
        "cut": "summary.csv is cut off inside a row",
        "no_runtime": "summary.csv has no runtime_s",
        "wordy": "summary.csv: f1 is 'high', not a usable number",
        "infinite": "summary.csv: validation_loss is 'inf', not a usable number",
        "enormous": "summary.csv: validation_loss is '1e308', not a usable number",
        "two_lines": r"summary.csv: model is 'tiny\nmodel', not a usable name",
        "twice": "summary.csv has the column 'strategy' more than once",
        "half_a_device": "summary.csv: micro_batches is '1.5', not a usable number",
        "bad_curve": "steps.csv: train_loss is 'low', not a usable number",
    }
    lines = study.stderr.splitlines()
    assert len(lines) == len(reasons)  # a line each: nothing else, and no traceback
    for name, reason in reasons.items():
        (line,) = [line for line in lines if f"{name}: " in line]
        assert line.startswith("left out ")
        assert reason in line
    assert study.table["runs"].sum() == 6


def test_figures(study):
    drawn = {path.stem: path for path in (study.output / "figures").iterdir()}
    lines = {
        f"{loss}_over_{axis}" for loss in ("train_loss", "validation_loss") for axis in ("samples", "time")
    }
    bars = {"runtime_s", "throughput_samples_per_s", "speedup", "validation_loss"}
    expected = {f"global_batch_32_{name}" for name in bars | lines}
    assert set(drawn) == expected | {"global_batch_64_runtime_s", "global_batch_64_throughput_samples_per_s"}
    assert f"{len(drawn)} figures" in study.stdout
    for path in drawn.values():
        pixels = imread(path)
        assert min(pixels.shape[:2]) > 400
        assert len(np.unique(pixels[..., 0])) > 20  # many shades of red: more than an empty sheet
        assert (pixels[..., :3].min(axis=2) < 0.9).mean() > 0.02


def test_small_numbers_are_written_out_beside_the_axis():
    """A power of ten would stand in the heading."""
    figure, axes = new_chart("reduce", "a heading", "reduce (s/step)", 6)
    axes.bar(0, 3e-5)
    figure.canvas.draw()
    assert axes.yaxis.get_offset_text().get_text() == ""
    assert "0.000010" in [label.get_text() for label in axes.get_yticklabels()]


def test_baseline_of_the_same_micro_batch_size_else_the_fastest(tmp_path):
    write_run(tmp_path / "a", devices=2, throughput=80, micro_batch_size=8, micro_batches=2)
    write_run(tmp_path / "b", devices=2, throughput=100, micro_batch_size=16)
    write_run(tmp_path / "c", "pipeline", 2, throughput=60, micro_batch_size=8, micro_batches=4)
    write_run(tmp_path / "d", "pipeline", 2, throughput=50, micro_batch_size=4, micro_batches=8)
    rows = rows_of(tmp_path)
    slow, fast = "DDP x 2, 2 micro-batches", "DDP x 2, 1 micro-batch"
    few, many = "pipeline 2 stages, 4 micro-batches", "pipeline 2 stages, 8 micro-batches"
    assert list(rows.index) == [fast, slow, few, many]
    assert rows["baseline"].dropna().to_dict() == {few: slow, many: fast}
    assert rows["throughput_samples_per_s_change_pct"].dropna().to_dict() == pytest.approx(
        {few: -25, many: -50}
    )


@pytest.mark.parametrize(
    "column", ["task", "model", "precision", "max_seq_length", "cpu_threads", "workload"]
)
def test_no_baseline_in_another_job(tmp_path, column):
    write_run(tmp_path / "a", devices=2, throughput=100, **{column: 7})
    write_run(tmp_path / "b", "pipeline", 2, throughput=60)
    rows = rows_of(tmp_path)
    assert rows["baseline"].isna().all()
    assert rows["group"].nunique() == 2


def test_headings_name_the_flags_behind_a_workload(tmp_path):
    for name, task, workload, flags in (("a", "squad_v2", "11aa", {"dropout": None, "epochs": 1}),
                                        ("b", "squad_v2", "22bb", {"dropout": 0.0, "epochs": 1}),
                                        ("c", "imdb", "33cc", {"dropout": 0.5, "epochs": 9})):
        folder = write_run(tmp_path / name, task=task, workload=workload)
        (folder / "run.json").write_text(json.dumps({"status": "finished", "workload": workload, "flags": flags}))
    rows, members = compare(find_runs(tmp_path, plots.STUDY), plots.STUDY)
    names = tell_workloads_apart(rows, members, plots.STUDY)
    assert sorted(names.values()) == [", workload 11aa (--dropout unset)", ", workload 22bb (--dropout 0.0)"]


def test_schedules_are_rows_of_their_own(tmp_path):
    for schedule in ("1f1b", "zero_bubble"):
        for seed in (0, 1):
            write_run(tmp_path / f"{schedule}{seed}", "torch_pipeline", 2, seed=seed, schedule=schedule)
    write_run(tmp_path / "deepspeed", "pipeline", 2, schedule="1f1b")
    write_run(tmp_path / "ddp", "ddp", 2, schedule="")
    write_run(tmp_path / "older", "ddp", 4)
    names = ["torch pipeline 2 stages, 1f1b", "torch pipeline 2 stages, zero_bubble", "pipeline 2 stages", "DDP x 2"]
    assert {*names, "DDP x 4"} == set(rows_of(tmp_path).index)
    assert list(rows_of(tmp_path).loc[names, "runs"]) == [2, 2, 1, 1]


def test_runs_on_another_number_of_nodes_are_rows_of_their_own(tmp_path):
    write_run(tmp_path / "single", throughput=50)  # recorded before records had nodes
    write_run(tmp_path / "one", devices=4, throughput=200, nodes=1)
    write_run(tmp_path / "two", devices=4, throughput=100, nodes=2)
    write_run(tmp_path / "zero", "zero3", devices=4, throughput=110, nodes=2)
    write_run(tmp_path / "four", "zero2", devices=4, throughput=110, nodes=4)
    rows = rows_of(tmp_path)
    assert rows.loc["DDP x 4, 1 node", "speedup"] == 4 and rows.loc["DDP x 4, 2 nodes", "speedup"] == 2
    assert rows.loc["ZeRO-3 x 4", "baseline"] == "DDP x 4, 2 nodes"
    assert rows.loc["ZeRO-3 x 4", "throughput_samples_per_s_change_pct"] == pytest.approx(10)
    assert pd.isna(rows.loc["ZeRO-2 x 4", "baseline"])


def test_an_unrecorded_workload_counts_as_equal(tmp_path):
    write_run(tmp_path / "a", devices=2, throughput=100)
    write_run(tmp_path / "b", "pipeline", 2, throughput=60, workload=None)
    assert rows_of(tmp_path).loc["pipeline 2 stages", "baseline"] == "DDP x 2"
    write_run(tmp_path / "c", devices=2, throughput=50, workload="other")  # now it could be either
    assert rows_of(tmp_path)["baseline"].isna().all()


def test_a_baseline_of_zero_gives_no_change(tmp_path):
    write_run(tmp_path / "a", devices=2, gpu_utilization_pct=0)
    write_run(tmp_path / "b", "pipeline", 2, gpu_utilization_pct=10)
    assert rows_of(tmp_path)["gpu_utilization_pct_change_pct"].isna().all()


def test_a_run_too_short_to_have_a_throughput_keeps_its_row(tmp_path):
    write_run(tmp_path / "a", devices=2, runtime_s=5, throughput_samples_per_s="")
    write_run(tmp_path / "b", "pipeline", 2, runtime_s=6)
    rows = rows_of(tmp_path)
    assert rows.loc["pipeline 2 stages", "runtime_s_change_pct"] == pytest.approx(20)
    assert rows["throughput_samples_per_s_change_pct"].isna().all()
    assert cell(rows.loc["DDP x 2"], "throughput_samples_per_s") == "—"


def test_names_of_settings(tmp_path):
    write_run(tmp_path / "a", "pipeline", 4, pipeline_stages=2, replicas=2)
    for strategy in ("hf_trainer", "fsdp", "zero3", "zero2_offload", "torch_pipeline", "data_parallel", "homemade"):
        write_run(tmp_path / strategy, strategy, 2)
    expected = ["pipeline 2 stages x 2 replicas", "ZeRO-3 x 2", "ZeRO-2 offload x 2", "FSDP x 2", "DataParallel x 2"]
    assert list(rows_of(tmp_path).index) == [
        *expected,
        "torch pipeline 2 stages",
        "HF Trainer x 2",
        "homemade x 2",
    ]


@pytest.mark.parametrize("strategy, replicas, name", [
    ("tensor_parallel", 1, "tensor parallel x 4"), ("tensor_parallel", 2, "tensor parallel x 2 x 2 replicas"),
    ("tensor_parallel_sequence_fsdp", 2, "tensor and sequence parallel, FSDP x 2 x 2 replicas")])
def test_a_tensor_groups_name_has_its_size(strategy, replicas, name, tmp_path):
    write_run(tmp_path / "run", strategy, 4, pipeline_stages=1, replicas=replicas)
    assert list(rows_of(tmp_path).index) == [name]


def test_nothing_to_compare_ends_in_one_line(tmp_path, capsys, monkeypatch):
    code, lines = exit_of(capsys, monkeypatch, tmp_path)
    assert (code, lines) == (2, [f"error: no finished run to compare in {tmp_path}"])
    write_run(tmp_path / "run", status="failed")
    code, lines = exit_of(capsys, monkeypatch, tmp_path)
    assert code == 2
    assert [line.split()[0] for line in lines] == ["left", "error:"]


def test_an_unknown_flag_names_the_nearest(tmp_path, capsys, monkeypatch):
    assert exit_of(capsys, monkeypatch, "--mix_version", tmp_path) == (
        2, ["error: unknown flag --mix_version; did you mean --mix_versions? --help lists all"])


@pytest.mark.parametrize("arguments", [["nowhere"], ["--unknown"], ["--output", "x"], ["a", "b"]])
def test_wrong_arguments_end_in_one_line(tmp_path, capsys, monkeypatch, arguments):
    monkeypatch.chdir(tmp_path)
    code, lines = exit_of(capsys, monkeypatch, *arguments)
    assert (code, len(lines)) == (2, 1)


def test_an_output_that_is_a_file_ends_in_one_line(tmp_path, capsys, monkeypatch):
    run = write_run(tmp_path / "run")
    code, lines = exit_of(capsys, monkeypatch, run, "--output_dir", run / "run.json")
    assert (code, len(lines)) == (2, 1)


def test_a_table_prints_what_is_there(tmp_path):
    write_run(tmp_path / "a", devices=2, mfu_pct=40)
    write_run(tmp_path / "b", "pipeline", 2, mfu_pct=30, bubble_pct=20)
    rows, members = compare(find_runs(tmp_path, plots.STUDY), plots.STUDY)
    parts = list(map(str, tables(rows, plots.STUDY)))
    titles = [part for part in parts if part.startswith("#")]
    assert titles == ["### Use of the hardware", "### Where a pipeline's step goes"]  # none of empty tables
    assert "GPU utilization" in parts[0]  # the first stays whole
    assert parts[2].splitlines()[0].split() == ["|", "setting", "|", "MFU", "%", "|"]
    assert parts[4].splitlines()[0].split() == ["|", "setting", "|", "bubble", "measured", "%", "|"]
    assert "DDP" not in parts[4]  # has none
    assert {"mfu_pct", "bubble_pct"} <= set(charts(rows, members, "made up", plots.STUDY))
    assert "gpu_utilization_pct" not in charts(rows, members, "made up", plots.STUDY)


def test_a_strategy_with_recomputation_is_a_row_beside_the_plain_one(tmp_path):
    write_run(tmp_path / "ddp", devices=4, throughput=200)
    write_run(tmp_path / "recompute", "ddp_recompute", devices=4, throughput=150)
    write_run(tmp_path / "pipeline", "pipeline_recompute", devices=4, throughput=150)
    write_run(tmp_path / "one", "ddp_recompute", devices=1, throughput=50)
    rows = rows_of(tmp_path)
    assert set(rows.index) == {"DDP x 4", "DDP recompute x 4", "pipeline recompute 4 stages", "DDP recompute x 1"}
    assert rows.loc["DDP recompute x 4", "baseline"] == "DDP x 4"
    assert rows.loc["DDP recompute x 4", "throughput_samples_per_s_change_pct"] == pytest.approx(-25)
    assert rows.loc["DDP recompute x 4", "own_speedup"] == pytest.approx(3)


def test_groups_of_another_size_are_another_row(tmp_path):
    write_run(tmp_path / "pairs", "fsdp_hybrid2", devices=8, throughput=200)
    write_run(tmp_path / "fours", "fsdp_hybrid4", devices=8, throughput=210)
    write_run(tmp_path / "both", "fsdp_hybrid4_recompute", devices=8, throughput=150)
    write_run(tmp_path / "plain", "fsdp", devices=8, throughput=180)
    assert list(rows_of(tmp_path).index) == ["FSDP x 8", "FSDP in groups of 2 x 8", "FSDP in groups of 4 x 8",
                                             "FSDP in groups of 4 recompute x 8"]
