"""What --report_to sends, read back from TensorBoard's event files and from W&B's offline record."""

import os
import struct
import subprocess
import sys

import pytest

import plots
from measurement.trackers import Tracking
from tests.shared.made_up_runs import write_run
from tests.shared.runs import ROOT
from workload import argument_checks
from workload.arguments import Arguments, parse_arguments
from workload.errors import InputError


def events(folder):
    """Steps and values of each tag in a run's event files."""
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    read = EventAccumulator(str(folder / "tensorboard"), size_guidance={"scalars": 0})
    read.Reload()
    return {tag: [(event.step, event.value) for event in read.Scalars(tag)] for tag in read.Tags()["scalars"]}


def rows_of(run, table, *columns):
    return [tuple(float(row[column]) for column in columns) for row in run.rows(table)]


def test_tensorboard_has_the_rows_of_the_tables(train):
    run = train("pipeline.py", "--num_gpus", "2", "--report_to", "tensorboard", "--eval_steps", "3")
    found = events(run.folder)
    for table, column in (("steps", "train_loss"), ("steps", "learning_rate"), ("evaluations", "validation_loss"),
                          ("evaluations", "exact_match")):
        steps, values = zip(*rows_of(run, f"{table}.csv", "step", column), strict=True)
        sent_steps, sent = zip(*found[f"{table}/{column}"], strict=True)
        assert sent_steps == steps and sent == pytest.approx(values, rel=1e-6)
    [(step, rate)] = found["summary/throughput_samples_per_s"]
    assert step == 8 and rate == pytest.approx(float(run.summary["throughput_samples_per_s"]))


def test_a_run_that_is_tracked_trains_as_one_that_is_not(train):
    plain, tracked = train("bert_baseline.py", "--num_gpus", "1"), train(
        "bert_baseline.py", "--num_gpus", "1", "--report_to", "tensorboard")
    assert rows_of(plain, "steps.csv", "train_loss", "grad_norm") == rows_of(tracked, "steps.csv", "train_loss",
                                                                             "grad_norm")
    assert plain.summary["workload"] == tracked.summary["workload"]


# A process of its own: W&B reads the environment once in a process.
SEND = """
import sys
from pathlib import Path
from measurement.trackers import Tracking
Tracking("wandb", Path(sys.argv[1]), {"task": "squad_v2", "seed": 0}).finish()
"""


def test_wandb_keeps_the_rows_offline(tmp_path):
    folder = write_run(tmp_path / "a", curves=True)
    for table in ("steps", "evaluations"):
        add_steps(folder / f"{table}.csv", 30 if table == "steps" else 3)
    subprocess.run([sys.executable, "-c", SEND, str(folder)], cwd=ROOT, env=os.environ | {"WANDB_MODE": "offline"},
                   check=True)
    history = wandb_history(folder)
    assert [row["_step"] for row in history if "steps/train_loss" in row] == list(range(1, 31))
    losses = [row["evaluations/validation_loss"] for row in history if "evaluations/validation_loss" in row]
    assert losses == [4, 3, 2.5]
    assert any(row.get("summary/throughput_samples_per_s") == 50 for row in history)


def add_steps(path, count):
    """Give made-up tables the column `step` that a run's have."""
    head, *lines = path.read_text().splitlines()
    every = 30 // count
    path.write_text("\n".join([f"step,{head}", *(f"{every * number},{line}" for number, line in enumerate(lines, 1))])
                    + "\n")


def wandb_history(folder):
    from wandb.proto import wandb_internal_pb2

    [path] = folder.glob("wandb/offline-run-*/*.wandb")
    found = []
    for data in leveldb_records(path.read_bytes()[7:], first=7):  # behind W&B's own header
        record = wandb_internal_pb2.Record()  # pyright: ignore[reportAttributeAccessIssue]  made at run time
        record.ParseFromString(data)
        if record.WhichOneof("record_type") == "history":
            items = {item.key or ".".join(item.nested_key): item.value_json for item in record.history.item}
            found.append({name: float(value) for name, value in items.items()})
    return found


def leveldb_records(content, first, block=32768):
    """The records of LevelDB's log format: blocks of parts, each with checksum, length and kind (1 whole, 4 last)."""
    place, record = 0, b""
    while place + 7 <= len(content):
        if block - (first + place) % block < 7:  # no room for another part: the block ends in zeros
            place += block - (first + place) % block
            continue
        _, length, kind = struct.unpack("<IHB", content[place:place + 7])
        record += content[place + 7:place + 7 + length]
        place += 7 + length
        if kind in (1, 4):
            yield record
            record = b""


def test_rows_that_were_sent_are_not_sent_again(tmp_path):
    folder = write_run(tmp_path / "a", curves=True)
    add_steps(folder / "steps.csv", 30)
    (folder / "evaluations.csv").unlink()
    tracking = Tracking("tensorboard", folder, {}, after_step=10)
    tracking.send()
    tracking.send()
    tracking.finish()
    assert [step for step, _ in events(folder)["steps/train_loss"]] == list(range(11, 31))


def test_plots_sends_finished_runs_once(tmp_path, monkeypatch, capsys):
    for name in ("a", "b"):
        add_steps(write_run(tmp_path / name, curves=True, seed=ord(name)) / "steps.csv", 30)
        (tmp_path / name / "evaluations.csv").unlink()
    for said in ("Sent 2 runs", "Sent 0 runs"):
        monkeypatch.setattr(sys, "argv", ["plots.py", str(tmp_path), "--report_to", "tensorboard"])
        plots.main()
        assert said in capsys.readouterr().out
    assert len(events(tmp_path / "a")["steps/train_loss"]) == 30


def test_a_package_that_is_missing_is_one_line_before_anything_starts(monkeypatch):
    monkeypatch.setattr(argument_checks, "find_spec", lambda name: None)
    with pytest.raises(InputError, match="the package wandb is not installed; python -m pip install wandb"):
        parse_arguments(Arguments, ["--report_to", "wandb"])


def test_so_is_an_account_that_is_missing(monkeypatch, tmp_path):
    for name in ("WANDB_MODE", "WANDB_API_KEY"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("NETRC", str(tmp_path / "netrc"))
    with pytest.raises(InputError, match="nobody is logged in; run wandb login, or set WANDB_MODE=offline"):
        parse_arguments(Arguments, ["--report_to", "wandb"])
