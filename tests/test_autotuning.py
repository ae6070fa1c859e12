"""DeepSpeed's autotuner: over zero.py for real, and what plots.py makes of what it leaves behind."""

import json
import sys

import pandas as pd
import pytest

import plots
from tests.shared.made_up_runs import SUMMARY, table_below, write_run, write_seeds, write_tuner
from tests.shared.runs import EXACT, FinishedRun
from workload.arguments import ZeroArguments, parse_arguments
from workload.deepspeed_settings.config import follow_config, tuned_by
from workload.errors import InputError


def compare(root, monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", ["plots.py", str(root)])
    plots.main()
    return capsys.readouterr()


def test_the_two_tables_of_a_study(tmp_path, monkeypatch, capsys):
    """Runs by hand and tuned runs with equal settings are rows of their own; only seeds share a row."""
    root = tmp_path / "study"
    write_tuner(root / "trials")
    write_seeds(root, "trainer", [100, 102], "hf_trainer", 2, micro_batch_size=16, micro_batches=1, tuned_by="hand")
    write_seeds(root, "deepspeed", [111, 113], "zero1", 2, micro_batch_size=16, micro_batches=1, tuned_by="hand")
    write_seeds(root, "smaller", [90], "zero1", 2, micro_batch_size=8, micro_batches=2, tuned_by="hand")
    write_seeds(root, "tuned", [121, 123], "zero1", 2, micro_batch_size=16, micro_batches=1, tuned_by="autotuner")
    write_seeds(root, "elsewhere", [400], "zero1", 4, micro_batch_size=8, micro_batches=1, tuned_by="hand")
    done = compare(root, monkeypatch, capsys)
    assert done.err == ""
    end_to_end = table_below(done.out.replace("### ", "## "), "Autotuning: throughput, end to end")
    assert end_to_end[0][1:] == ["throughput samples/s", "tuned by", "ZeRO stage", "micro-batch size",
                                 "micro-batches a step"]
    assert sorted(line[1:] for line in end_to_end[1:]) == sorted([
        ["101 ± 13", "hand", "—", "16", "1"], ["112 ± 13", "hand", "1", "16", "1"], ["90.0", "hand", "1", "8", "2"],
        ["122 ± 13", "autotuner", "1", "16", "1"]])
    assert len({line[0] for line in end_to_end}) == 5
    strategies = done.out.split("### Autotuning")[0]
    assert "112" in strategies and "122" not in strategies, "an autotuned run is in no strategy's table"
    assert table_below(done.out, "Autotuning: what the tuner measured (study/trials)") == [
        ["tuning space", "experiments", "tuner's best throughput samples/s", "best experiment"],
        ["z0", "2", "233", "z0_gas4_tmbspg8"], ["z1", "2", "286", "z1_gas1_tmbspg32"],
        ["global", "4", "286", "z1_gas1_tmbspg32"]]
    assert (root / "comparison.md").read_text(encoding="utf-8").strip() in done.out
    tuners = pd.read_csv(root / "autotuning.csv")
    assert tuners["best_value"].tolist() == [232.835, 286.114, 286.114] and set(tuners["metric"]) == {"throughput"}
    rows = pd.read_csv(root / "comparison.csv")
    assert rows.loc[rows["tuned_by"] == "autotuner", "throughput_samples_per_s"].tolist() == [122]
    assert 999 not in rows["throughput_samples_per_s"].tolist()


def test_without_a_tuner_there_are_no_such_tables(tmp_path, monkeypatch, capsys):
    write_run(tmp_path / "one")
    write_run(tmp_path / "two", "zero1", 2, tuned_by="hand")
    done = compare(tmp_path, monkeypatch, capsys)
    assert "utotuning" not in done.out and not (tmp_path / "autotuning.csv").exists()


def test_a_broken_summary_is_named(tmp_path, monkeypatch, capsys):
    write_run(tmp_path / "one")
    write_tuner(tmp_path / "trials")
    (tmp_path / "trials" / "summary.txt").write_text(SUMMARY.replace("286.114", "much"))
    done = compare(tmp_path, monkeypatch, capsys)
    [line] = done.err.splitlines()
    assert "summary.txt" in line and "'much'" in line
    assert "Autotuning" not in done.out


@pytest.mark.parametrize("path, who", [
    (None, "hand"), ("ds_config.json", "hand"), ("trials/ds_config_optimal.json", "autotuner"), ("eyJh", "autotuner"),
])
def test_who_chose_the_settings(path, who):
    assert tuned_by(path) == who


def test_settings_to_be_tuned_are_for_the_tuner():
    with pytest.raises(InputError, match="deepspeed --autotuning run"):
        follow_config({"autotuning": {"enabled": True}}, parse_arguments(ZeroArguments, []), devices=2)


@pytest.mark.timeout(500)  # three starts, and the tuner looks only now and then whether a trial is over
def test_the_tuners_settings_rule_and_its_trials_are_no_runs(start, slow_lane, tmp_path, monkeypatch, capsys):
    tuning = {"enabled": True, "results_dir": str(tmp_path / "trials"), "exps_dir": str(tmp_path / "experiments")}
    settings = {"train_micro_batch_size_per_gpu": [4], "gradient_accumulation_steps": 2,
                "zero_optimization": {"stage": [1]}, "autotuning": tuning}
    (tmp_path / "tuner.json").write_text(json.dumps(settings))
    done = start("env", "LOCAL_SIZE=1", "deepspeed", "--autotuning", "run", "--num_gpus", "1", "zero.py", *EXACT,
                 "--stage", "2", "--output_dir", tmp_path, "--run_name", "best",
                 "--deepspeed_config", tmp_path / "tuner.json")
    said = done.stdout + done.stderr
    assert done.returncode == 0 and "best: 64 samples" in said, said

    trial = FinishedRun(tmp_path / "trials" / "z1_gas2_tmbspg4" / "run", None).description
    assert (trial["strategy"], trial["status"]) == ("zero1", "stopped")
    assert (trial["flags"]["global_batch_size"], trial["flags"]["micro_batch_size"]) == (8, 4)
    run = FinishedRun(tmp_path / "best", None)
    assert run.description["status"] == "finished" and len(run.rows("steps.csv")) == 8
    assert (run.summary["strategy"], run.summary["global_batch_size"]) == ("zero1", "8")
    assert run.summary["tuned_by"] == "autotuner"

    compared = compare(tmp_path, monkeypatch, capsys)
    assert compared.err == "" and "z1_gas2_tmbspg4" in compared.out
    assert pd.read_csv(tmp_path / "comparison.csv")["runs"].tolist() == [1]
