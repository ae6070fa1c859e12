"""What a run leaves in its folder besides losses: time to quality, the published formulas, why a column is empty."""

import csv
import hashlib
import io
import re

import pandas as pd
import pytest

from measurement.columns import RANK_COLUMNS, SUMMARY_COLUMNS
from measurement.environment import source_digest
from tests.shared.runs import ONE_PROCESS, PROFILED, ROOT, ROWS

RUNS = {"one process": ONE_PROCESS, "DDP": (*ROWS["DDP x 2"], *PROFILED),
        "pipeline": (*ROWS["pipeline x 2"], *PROFILED), "torch pipeline": (*ROWS["torch gpipe x 2"], *PROFILED),
        "ZeRO": (*ROWS["ZeRO-2 x 2"], *PROFILED), "HF Trainer": (*ROWS["HF Trainer x 2"], *PROFILED),
        "FSDP": (*ROWS["FSDP x 2"], *PROFILED)}
BARE = ("--noise_scale_steps", "0", "--measure", "throughput")


@pytest.mark.parametrize("run", RUNS)
def test_every_column_is_filled_or_its_emptiness_explained(run, train):
    run = train(*RUNS[run])
    assert list(run.summary) == SUMMARY_COLUMNS
    assert list(run.rows("ranks.csv")[0]) == RANK_COLUMNS
    empty = {name for name, value in run.summary.items() if value == ""}
    assert empty == set(run.description["empty"])
    assert "unknown" not in run.description["empty"].values()


def test_the_first_evaluation_that_reaches_the_target_counts(train):
    run = train(*RUNS["DDP"])
    evaluations = run.rows("evaluations.csv")
    assert [row["step"] for row in evaluations] == ["4", "8"] and float(evaluations[0]["validation_loss"]) < 50
    assert run.summary["samples_to_target"] == evaluations[0]["samples"] == "128"
    assert run.summary["time_to_target_s"] == evaluations[0]["elapsed_s"]
    assert float(run.summary["target_loss"]) == 50 and run.summary["target_f1"] == ""


def test_a_target_that_is_never_reached_leaves_the_time_empty(train):
    run = train(*ONE_PROCESS, "--target_f1", "99.9", *BARE)
    assert run.summary["time_to_target_s"] == run.summary["samples_to_target"] == ""
    assert run.description["empty"]["time_to_target_s"] == "no evaluation reached the target"


def test_measuring_can_be_left_out_and_changes_nothing(train):
    bare, full = train(*ONE_PROCESS, "--target_f1", "99.9", *BARE), train(*ONE_PROCESS)
    assert bare.summary["validation_loss"] == full.summary["validation_loss"]
    assert float(bare.summary["throughput_samples_per_s"]) > 0
    assert not (bare.folder / "devices.csv").exists() and bare.rows("steps.csv") == []
    assert bare.summary["noise_scale_samples"] == bare.summary["cpu_utilization_pct"] == ""
    assert bare.description["empty"]["cpu_utilization_pct"] == "not measured with --measure throughput"


def test_flops_utilization_from_the_other_columns(train):
    row = {name: float(value) for name, value in train(*RUNS["DDP"]).summary.items()
           if name.startswith(("throughput", "mfu", "hfu", "model_flops", "peak_tflops"))}
    rate = row["throughput_samples_per_s"] * row["model_flops_per_sample"]
    assert row["mfu_pct"] == pytest.approx(100 * rate / (2 * 0.05e12))
    assert row["hfu_pct"] > row["mfu_pct"], "padding is computed as well"
    assert train(*RUNS["DDP"]).description["peak_tflops_source"] == "--peak_tflops"


def test_data_parallel_without_gpus_is_one_device_and_says_so(train):
    run = train(*ROWS["DataParallel x 1"])
    assert run.summary["devices"] == run.summary["replicas"] == "1"
    assert "one device" in run.description["note"]


def test_a_run_says_that_few_steps_were_timed(train):
    said = train(*ONE_PROCESS).output.stdout
    assert re.search(r"\d samples/s \(from [1-7] timed steps? only\), validation loss", said), said


def test_a_run_says_which_code_ran(train):
    run = train(*ONE_PROCESS)
    script = hashlib.sha256((ROOT / "bert_baseline.py").read_bytes()).hexdigest()
    assert run.summary["script_digest"] == run.description["script_digest"] == script[:12]
    assert run.summary["source_digest"] == run.description["source_digest"] == source_digest()
    for name in ("torch", "transformers", "deepspeed"):
        assert run.summary[name] == run.description["versions"][name]
    git = run.description["git"] or {"commit": "", "dirty": None}
    assert run.summary["commit"] == git["commit"]
    assert run.summary["dirty"] == {True: "yes", False: "no", None: ""}[git["dirty"]]


def test_published_formulas_from_the_recorded_steps(train):
    run = train(*ONE_PROCESS)
    losses = pd.read_csv(io.StringIO((run.folder / "steps.csv").read_text()))["train_loss"]
    expected = losses.diff().abs().mean() / 4  # a micro-batch of 4
    assert float(run.summary["published_stats_efficiency"]) == pytest.approx(expected)
    goodput = expected * float(run.summary["throughput_samples_per_s"])
    assert float(run.summary["published_goodput"]) == pytest.approx(goodput)


def test_data_seconds_are_a_part_of_every_step(train):
    for run in [train(*words) for words in RUNS.values()]:
        for row in csv.DictReader(io.StringIO((run.folder / "steps.csv").read_text())):
            assert float(row["data_s"]) > 0
        assert 0 < float(run.summary["data_s_per_step"]) < 1


def test_an_epoch_has_a_row_with_its_seconds_for_all_samples(train):
    """Also for those of the incomplete last batch, which is dropped; by its timed steps, from the second on."""
    run = train(*ONE_PROCESS, "--max_train_examples", "64", "--max_steps", "7", "--eval_steps", "4",
                "--global_batch_size", "24")
    draws = {split: data["draw"] for split, data in run.description["data"].items()}
    assert draws["train"] == {"from": 2010, "seed": 1, "by_class": False} and draws["validation"]["from"] == 420
    epochs = run.rows("epochs.csv")
    assert [[row[name] for name in ("epoch", "step", "samples")] for row in epochs] == [
        ["1", "2", "48"], ["2", "4", "96"], ["3", "6", "144"]], "the last is not over"
    for steps, row in zip(([0, 1], [2, 3], [4, 5]), epochs, strict=True):
        timed = [run.column("step_s")[step] for step in steps if step > 0]
        assert float(row["epoch_s"]) == pytest.approx(64 * sum(timed) / (24 * len(timed)), abs=1e-5)
        assert float(row["train_loss"]) == pytest.approx(sum(run.column("train_loss")[step] for step in steps) / 2)
    timed = sum(run.column("step_s")[1:6])
    assert float(run.summary["epoch_s"]) == pytest.approx(64 * timed / (24 * 5), abs=1e-5), "the first counts for less"
    evaluation = run.rows("evaluations.csv")[0]
    assert [row["f1"] for row in epochs] == ["", evaluation["f1"], ""]
    assert "first epoch" in train(*ONE_PROCESS).description["empty"]["epoch_s"]


def test_an_epoch_without_timed_steps_has_no_seconds(train):
    run = train(*ONE_PROCESS, "--max_train_examples", "32", "--max_steps", "4")
    assert [row["epoch_s"] == "" for row in run.rows("epochs.csv")] == [True, False, False, False]
    # Of 4 steps, 3 of which are an epoch, one is untimed, one warms the profiler up, and one is profiled.
    short = train(*ONE_PROCESS, "--max_train_examples", "96", "--max_steps", "4", "--profile_steps", "1")
    assert short.summary["epoch_s"] == short.rows("epochs.csv")[0]["epoch_s"] == ""
    assert short.description["empty"]["epoch_s"] == "no step of an epoch that was trained to its end was timed"


def test_an_epoch_that_was_resumed_keeps_its_timed_steps(train, broken_off, resume):
    flags = (*ONE_PROCESS, "--max_train_examples", "128")
    run = resume(broken_off(train(*flags)), *flags)
    steps, second = run.column("step_s"), run.rows("epochs.csv")[1]
    # From the checkpoint after step 6, and after it again two steps are not timed.
    assert float(second["epoch_s"]) == pytest.approx(128 * (steps[4] + steps[5]) / 64, abs=1e-5)
    assert float(run.summary["epoch_s"]) == pytest.approx(128 * sum(steps[2:6]) / 128, abs=1e-5)


def test_the_work_of_an_epoch_is_the_same_whatever_the_batch(train):
    one, other, unlike = (train(*ONE_PROCESS, *BARE, "--max_train_examples", "64", "--max_steps", "2", *flags)
                          for flags in ((), ("--global_batch_size", "16"), ("--learning_rate", "1e-4")))
    assert one.summary["workload"] != other.summary["workload"]
    assert one.summary["epoch_workload"] == other.summary["epoch_workload"] != unlike.summary["epoch_workload"]


def test_runtime_reaches_from_the_command_to_the_end(train):
    for run in (train("torchrun", "bert_baseline.py"), train("torchrun", "--nproc-per-node", "2", "zero.py")):
        last_evaluation = float(run.rows("evaluations.csv")[-1]["elapsed_s"])
        first_step = run.rows("steps.csv")[0]
        assert float(first_step["elapsed_s"]) > 2, "starting Python and torch takes seconds, and counts"
        assert last_evaluation <= float(run.summary["runtime_s"]) < last_evaluation + 10
